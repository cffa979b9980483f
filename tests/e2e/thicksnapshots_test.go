// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// A disk of the test's own, smaller than what claims of whole disks ask for in the specs beside:
// the pool of the other specs stays as it is.
var _ = Describe("Volumes of a thick pool", Label("pools", "copies"), func() {
	It("are snapshotted while they are written to, restored, cloned, deleted before their snapshots, and outlive one that overflows", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		disk := Disk{Serial: "E2E-THICK-SNAP", SizeBytes: 640 << 20}
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-thick-snapshots"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{disk.Serial}},
				NodeSelector: map[string]string{corev1.LabelHostname: node},
				Snapshots:    &v1alpha1.SnapshotRoom{InitialPercent: 10},
			},
		}
		plug(ctx, node, disk)
		awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(suite.client.Create(ctx, set)).To(Succeed())
		pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + node}}
		DeferCleanup(func(ctx SpecContext) { removePool(ctx, set, pool) }, NodeTimeout(patience))
		awaitPool(ctx, pool, metav1.ConditionTrue, v1alpha1.ReasonPoolReady, "")
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name, "csi.storage.k8s.io/fstype": "ext4"})
		space := newSpace(ctx)
		group := "snapshot.storage.k8s.io"
		ofSnapshot := func(name string) *corev1.TypedLocalObjectReference {
			return &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: name}
		}

		By("taking a snapshot of a volume that is written to")
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "data", Class: class, Size: "96Mi"})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreatePod(ctx, workload.Pod{Name: "writer", Claims: []string{"data"}, Node: node, Script: journalScript})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "writer", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		awaitLines(ctx, node, volumeOf(ctx, boundVolume(ctx, space, "data")), 3)
		local := takeSnapshot(ctx, space, "monday", "data")

		By("restoring it and cloning the volume, both while it is written to")
		_, err = space.CreateClaim(ctx, workload.Claim{Name: "restored", Class: class, Size: "112Mi", Source: ofSnapshot("monday")})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreateClaim(ctx, workload.Claim{
			Name: "cloned", Class: class, Size: "96Mi", Source: &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data"},
		})
		Expect(err).NotTo(HaveOccurred())
		lines, _, err := space.RunPod(ctx, workload.Pod{
			Name: "auditor", Claims: []string{"restored", "cloned"},
			Script: fmt.Sprintf(auditScript, "/data/cloned") + fmt.Sprintf(auditScript, "/data/restored"),
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(lines)).NotTo(Equal("0"))

		By("deleting the volume before its snapshot")
		for _, pod := range []string{"writer", "auditor"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		for _, claim := range []string{"data", "cloned"} {
			gone := boundVolume(ctx, space, claim)
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, gone.Name)).To(Succeed())
		}
		volumes := "lvs --noheadings -o lv_name " + local.Status.LVM.VGName
		Expect(execOn(ctx, node, volumes)).To(And(ContainSubstring("deleted-"+string(local.Spec.VolumeUID)), ContainSubstring(local.Status.LVM.LVName)))
		again, _, err := space.RunPod(ctx, workload.Pod{Name: "last", Claims: []string{"restored"}, Script: fmt.Sprintf(auditScript, "/data/restored")})
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(lines)).To(ContainElement(strings.TrimSpace(again)))
		Expect(space.DeletePod(ctx, "last")).To(Succeed())
		Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, "monday"))).To(Succeed())
		Expect(space.Await(ctx, local, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		Eventually(func(ctx context.Context) (string, error) { return suite.hosts.Exec(ctx, node, volumes) }).
			WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).ShouldNot(ContainSubstring("deleted-"))

		By("writing more to a volume than the pool has room to keep")
		quick := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name, "wipe": "none"})
		_, err = space.CreateClaim(ctx, workload.Claim{Name: "raw", Class: quick, Size: "64Mi", Block: true})
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, workload.Pod{Name: "first", Devices: []string{"raw"}, Script: fillScript("raw", 0, 1)})
		Expect(err).NotTo(HaveOccurred())
		full := takeSnapshot(ctx, space, "full", "raw")
		var free string
		Eventually(func(g Gomega, ctx context.Context) {
			free = strings.TrimSpace(execOn(ctx, node, "vgs --noheadings --nosuffix --units m -o vg_free "+local.Status.LVM.VGName))
			free, _, _ = strings.Cut(free, ".")
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(fmt.Sprint(pool.Status.Free.Value() >> 20)).To(Equal(free))
		}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
		_, err = space.CreateClaim(ctx, workload.Claim{Name: "filler", Class: quick, Size: free + "Mi", Block: true})
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, workload.Pod{
			Name: "second", Devices: []string{"raw", "filler"}, Script: strings.ReplaceAll(fillScript("raw", 0, 40), "/dev/zero", "/dev/urandom"),
		})
		Expect(err).NotTo(HaveOccurred(), "the volume itself is as it should be")
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(full), full)).To(Succeed())
			valid := meta.FindStatusCondition(full.Status.Conditions, v1alpha1.LocalSnapshotValid)
			g.Expect(valid).NotTo(BeNil())
			g.Expect(valid.Reason).To(Equal(v1alpha1.ReasonOverflowed))
		}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
		// With room in the pool again, or the scheduler would find no node before anybody looks at
		// the snapshot.
		for _, pod := range []string{"first", "second"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		filler := boundVolume(ctx, space, "filler")
		Expect(space.DeleteClaim(ctx, "filler")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, filler.Name)).To(Succeed())
		refused, err := space.CreateClaim(ctx, workload.Claim{Name: "refused", Class: quick, Size: "64Mi", Block: true, Source: ofSnapshot("full")})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreatePod(ctx, workload.Pod{Name: "waits", Devices: []string{"refused"}})
		Expect(err).NotTo(HaveOccurred())
		expectToldOn(ctx, space, refused, []string{`VolumeSnapshot "full" has overflowed`})

		By("giving the disk back")
		Expect(space.DeletePod(ctx, "waits")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "refused")).To(Succeed())
		Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, "full"))).To(Succeed())
		Expect(space.Await(ctx, full, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		for _, claim := range []string{"restored", "raw"} {
			volume := boundVolume(ctx, space, claim)
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		}
		removePool(ctx, set, pool)
		awaitDisk(ctx, node, disk.Serial, "blank")
	}, SpecTimeout(4*patience))
})
