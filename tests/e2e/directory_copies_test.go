// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("Directories with reflinks", Label("copies", "long"), func() {
	It("are snapshotted, restored and cloned while nobody writes to them", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[len(suite.nodes)-1]
		disk := Disk{Serial: "E2E-REFLINK", SizeBytes: 512 << 20}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank").Status.Path
		const root = "/srv/e2e-reflink"
		execOn(ctx, node, fmt.Sprintf("mkfs.xfs -q -m reflink=1 %[1]s && mkdir -p %[2]s && mount -o prjquota %[1]s %[2]s", device, root))
		DeferCleanup(func(ctx SpecContext) {
			execOn(ctx, node, fmt.Sprintf("umount %[1]s && rmdir %[1]s && blkdiscard --zeroout --force %[2]s", root, device))
		}, NodeTimeout(patience))
		set := &v1alpha1.PoolSet{
			// An agent knows the root of a PoolSet of that name for good, and this one is new.
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-reflink-" + rand5()},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: root},
				NodeSelector: map[string]string{corev1.LabelHostname: node},
			},
		}
		pool := newPool(ctx, set, node)
		Expect(pool.Status.Copies).To(Equal(v1alpha1.CopiesReflink))
		class := newClass(ctx, map[string]string{"mode": "hostpath", "pool": set.Name, "requireQuota": "true"})
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "data", Class: class, Size: "32Mi"})
		Expect(err).NotTo(HaveOccurred())
		write := func(pod, text string) {
			GinkgoHelper()
			_, _, err := space.RunPod(ctx, workload.Pod{Name: pod, Node: node, Claims: []string{"data"}, Script: fmt.Sprintf(
				"echo %s >/data/data/file; cp /data/data/file /dev/termination-log", text)})
			Expect(err).NotTo(HaveOccurred())
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		write("first", "before")
		local := takeSnapshot(ctx, space, "monday", "data")
		Expect(local.Status.Hostpath).NotTo(BeNil())
		write("second", "after")

		By("restoring the snapshot, and cloning the claim")
		snapshotGroup := "snapshot.storage.k8s.io"
		for claim, source := range map[string]*corev1.TypedLocalObjectReference{
			"restored": {APIGroup: &snapshotGroup, Kind: "VolumeSnapshot", Name: "monday"},
			"cloned":   {Kind: "PersistentVolumeClaim", Name: "data"},
		} {
			_, err := space.CreateClaim(ctx, workload.Claim{Name: claim, Class: class, Size: "64Mi", Source: source})
			Expect(err).NotTo(HaveOccurred())
		}
		said, _, err := space.RunPod(ctx, workload.Pod{
			Name: "reader", Claims: []string{"restored", "cloned"}, Script: "cat /data/restored/file /data/cloned/file | tr '\\n' ' ' >/dev/termination-log",
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(said).To(ContainSubstring("before after"))

		By("refusing one of a volume that a pod can write to")
		_, err = space.CreatePod(ctx, workload.Pod{Name: "writes", Node: node, Claims: []string{"data"}})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "writes", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		askForSnapshot(ctx, space, "refused", "data")
		refused := snapshotObject("VolumeSnapshot", space.Namespace, "refused")
		Expect(space.Await(ctx, refused, func(object client.Object, _ bool) (bool, error) {
			said, _, err := unstructured.NestedString(object.(*unstructured.Unstructured).Object, "status", "error", "message")
			return strings.Contains(said, "stop the pods that write to it"), err
		})).To(Succeed())

		By("giving everything back")
		for _, snapshot := range []string{"refused", "monday"} {
			Expect(space.Delete(ctx, snapshotObject("VolumeSnapshot", space.Namespace, snapshot))).To(Succeed())
		}
		Expect(space.Await(ctx, local, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		for _, pod := range []string{"writes", "reader"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		for _, claim := range []string{"data", "restored", "cloned"} {
			volume := boundVolume(ctx, space, claim)
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		}
		removePool(ctx, set, pool)
	}, SpecTimeout(3*patience))
})
