// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Each line is a number and its digest, written and synced before the next.
const (
	journalScript = `i=0; while :; do i=$((i+1)); echo "$i $(echo "$i" | sha256sum | cut -c1-16)" >>/data/data/journal; sync; done`
	// auditScript says how many lines a journal has, and fails if one is not whole or one is
	// missing.
	auditScript = `n=0
while read -r i sum; do
  n=$((n+1))
  [ "$i" = "$n" ] && [ "$sum" = "$(echo "$i" | sha256sum | cut -c1-16)" ] || { echo "line $n is $i $sum" >/dev/termination-log; exit 1; }
done <%s/journal
echo "$n" >/dev/termination-log
`
)

// Disks of the test's own, smaller than what claims of whole disks ask for in the specs beside: the
// pool of the other specs stays as it is.
var _ = Describe("Volumes of a thin pool", Label("pools", "copies"), func() {
	It("are snapshotted while they are written to, restored, cloned, and deleted in any order", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		if len(suite.nodes) < 2 {
			Skip("it takes two nodes to be drawn to the right one")
		}
		home, away := suite.nodes[0], suite.nodes[1]
		disks := map[string]Disk{
			home: {Serial: "E2E-COPY-HOME", SizeBytes: 1000 << 20},
			away: {Serial: "E2E-COPY-AWAY", SizeBytes: 1000 << 20},
		}
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-copies"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-COPY-*"}},
				Thin: &v1alpha1.ThinPool{OverprovisionRatio: "4"},
			},
		}
		for node, disk := range disks {
			plug(ctx, node, disk)
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
		Expect(suite.client.Create(ctx, set)).To(Succeed())
		pools := map[string]*v1alpha1.Pool{}
		for node := range disks {
			pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + node}}
			pools[node] = pool
			// The disks are given back, with time of their own.
			DeferCleanup(func(ctx SpecContext) {
				removePool(ctx, set, pool)
				awaitDisk(ctx, node, disks[node].Serial, "blank")
			}, NodeTimeout(patience))
		}
		for _, pool := range pools {
			awaitPool(ctx, pool, metav1.ConditionTrue, v1alpha1.ReasonPoolReady, "")
		}
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name, "csi.storage.k8s.io/fstype": "xfs"})
		space := newSpace(ctx)

		By("taking a snapshot of a volume that is written to")
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "data", Class: class, Size: "320Mi"})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreatePod(ctx, workload.Pod{Name: "writer", Claims: []string{"data"}, Node: home, Script: journalScript})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "writer", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		origin := volumeOf(ctx, boundVolume(ctx, space, "data"))
		awaitLines(ctx, home, origin, 3)
		local := takeSnapshot(ctx, space, "monday", "data")
		Expect(local.Spec.NodeName).To(Equal(home))
		Expect(local.Status.FSType).To(Equal("xfs"))

		By("restoring it, wherever the scheduler wanted the pod")
		snapshotGroup := "snapshot.storage.k8s.io"
		_, err = space.CreateClaim(ctx, workload.Claim{
			Name: "restored", Class: class, Size: "400Mi", Source: &corev1.TypedLocalObjectReference{APIGroup: &snapshotGroup, Kind: "VolumeSnapshot", Name: "monday"},
		})
		Expect(err).NotTo(HaveOccurred())
		lines, where, err := space.RunPod(ctx, workload.Pod{
			Name: "auditor", Claims: []string{"restored"}, PreferredNode: away, Script: fmt.Sprintf(auditScript, "/data/restored"),
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(where).To(Equal(home))
		Expect(strings.TrimSpace(lines)).NotTo(Equal("0"))
		restored := volumeOf(ctx, boundVolume(ctx, space, "restored"))
		Expect(restored.Spec.Source).NotTo(BeNil())
		Expect(restored.Status.Capacity.Value()).To(BeNumerically(">=", 400<<20))

		By("cloning it while it is written to, and using all three at once")
		_, err = space.CreateClaim(ctx, workload.Claim{
			Name: "cloned", Class: class, Size: "320Mi", Source: &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data"},
		})
		Expect(err).NotTo(HaveOccurred())
		size, _, err := space.RunPod(ctx, workload.Pod{
			Name: "beside", Claims: []string{"restored", "cloned", "data"}, Script: fmt.Sprintf(auditScript, "/data/cloned") + `df -P -m /data/restored | tail -1 | awk '{print $2}' >>/dev/termination-log`,
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(size)).To(HaveLen(2))
		mebibytes, err := strconv.Atoi(strings.Fields(size)[1])
		Expect(err).NotTo(HaveOccurred())
		Expect(mebibytes).To(BeNumerically(">=", 330), "MiB of the filesystem that was restored into a larger volume")

		By("asking for what cannot be")
		small, err := space.CreateClaim(ctx, workload.Claim{
			Name: "small", Class: class, Size: "100Mi", Source: &corev1.TypedLocalObjectReference{APIGroup: &snapshotGroup, Kind: "VolumeSnapshot", Name: "monday"},
		})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreatePod(ctx, workload.Pod{Name: "waits", Claims: []string{"small"}})
		Expect(err).NotTo(HaveOccurred())
		expectToldOn(ctx, space, small, []string{`VolumeSnapshot "monday" has 320Mi`, "asks for 100Mi"})
		Expect(space.DeletePod(ctx, "waits")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "small")).To(Succeed())

		By("deleting the origin, then the snapshot")
		for _, pod := range []string{"writer", "auditor", "beside"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		gone := boundVolume(ctx, space, "data")
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, gone.Name)).To(Succeed())
		Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, "monday"))).To(Succeed())
		Expect(space.Await(ctx, local, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		again, _, err := space.RunPod(ctx, workload.Pod{Name: "last", Claims: []string{"restored"}, Script: fmt.Sprintf(auditScript, "/data/restored")})
		Expect(err).NotTo(HaveOccurred())
		Expect(again).To(Equal(lines))
		for _, claim := range []string{"restored", "cloned"} {
			volume := boundVolume(ctx, space, claim)
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		}
		Expect(strings.TrimSpace(execOn(ctx, home, "lvs --noheadings -o lv_name "+local.Status.LVM.VGName))).To(Equal("thin"), "volumes that are left")
	}, SpecTimeout(3*patience))
})

func boundVolume(ctx context.Context, space *workload.Space, claim string) *corev1.PersistentVolume {
	GinkgoHelper()
	volume, err := space.AwaitBound(ctx, claim)
	Expect(err).NotTo(HaveOccurred())
	return volume
}

// awaitLines waits until a volume's journal has so many lines, as the node sees it.
func awaitLines(ctx context.Context, node string, volume *v1alpha1.LocalVolume, least int) {
	GinkgoHelper()
	Eventually(func(ctx context.Context) (string, error) {
		return suite.hosts.Exec(ctx, node, fmt.Sprintf(
			`cat $(grep -- '%s ' /proc/mounts | head -1 | cut -d' ' -f2)/journal 2>/dev/null | wc -l | awk '{print ($1>=%d) ? "enough" : $1}'`,
			strings.ReplaceAll(volume.Status.LVM.LVName, "-", "--"), least))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(ContainSubstring("enough"))
}

// takeSnapshot takes a VolumeSnapshot of a claim and returns its LocalSnapshot.
func takeSnapshot(ctx context.Context, space *workload.Space, name, claim string) *v1alpha1.LocalSnapshot {
	GinkgoHelper()
	askForSnapshot(ctx, space, name, claim)
	return awaitSnapshot(ctx, space, name)
}

func askForSnapshot(ctx context.Context, space *workload.Space, name, claim string) {
	GinkgoHelper()
	snapshot := snapshotObject("VolumeSnapshot", space.Namespace, name)
	snapshot.Object["spec"] = map[string]any{
		"volumeSnapshotClassName": "berth", "source": map[string]any{"persistentVolumeClaimName": claim},
	}
	Expect(suite.client.Create(ctx, snapshot)).To(Succeed())
}

// awaitSnapshot waits until a VolumeSnapshot is ready and returns its LocalSnapshot.
func awaitSnapshot(ctx context.Context, space *workload.Space, name string) *v1alpha1.LocalSnapshot {
	GinkgoHelper()
	snapshot := snapshotObject("VolumeSnapshot", space.Namespace, name)
	Expect(space.Await(ctx, snapshot, func(object client.Object, _ bool) (bool, error) {
		ready, _, err := unstructured.NestedBool(object.(*unstructured.Unstructured).Object, "status", "readyToUse")
		return ready, err
	})).To(Succeed(), "the snapshot to be ready")
	return localSnapshotOf(ctx, *snapshot)
}

// localSnapshotOf returns the LocalSnapshot of a VolumeSnapshot that is ready.
func localSnapshotOf(ctx context.Context, snapshot unstructured.Unstructured) *v1alpha1.LocalSnapshot {
	GinkgoHelper()
	content, _, err := unstructured.NestedString(snapshot.Object, "status", "boundVolumeSnapshotContentName")
	Expect(err).NotTo(HaveOccurred())
	bound := snapshotObject("VolumeSnapshotContent", "", content)
	Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(bound), bound)).To(Succeed())
	handle, _, err := unstructured.NestedString(bound.Object, "status", "snapshotHandle")
	Expect(err).NotTo(HaveOccurred())
	local := &v1alpha1.LocalSnapshot{}
	Expect(suite.client.Get(ctx, client.ObjectKey{Name: handle}, local)).To(Succeed())
	return local
}
