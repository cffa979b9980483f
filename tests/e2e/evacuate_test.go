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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Disks of the test's own, smaller than what claims of mode device ask for.
var _ = Describe("A disk of a pool", Label("pools", "evacuate"), func() {
	It("is emptied while its volumes are written to, and leaves the pool", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[len(suite.nodes)-1]
		first := Disk{Serial: "E2E-EVACUATE-A", SizeBytes: 512 << 20}
		second := Disk{Serial: "E2E-EVACUATE-B", SizeBytes: 512 << 20}
		plug(ctx, node, first)
		awaitDisk(ctx, node, first.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-evacuate"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, NodeSelector: map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-EVACUATE-*"}},
			},
		}
		pool := newPool(ctx, set, node)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		moved := kind{name: "lvm that is moved", class: func(Classes) string { return class }, size: "200Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, moved.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, moved.with(workload.Pod{Name: "writer", Node: node, Script: moved.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		_, err = space.CreatePod(ctx, moved.with(workload.Pod{Name: "busy", Node: node, Script: busyScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "busy", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		device := awaitDisk(ctx, node, first.Serial, "")

		By("asking for it without another disk")
		evacuate(ctx, pool, device.Name)
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.Evacuations).To(HaveLen(1))
			g.Expect(pool.Status.Evacuations[0].Message).To(ContainSubstring("no other disk of the pool has room"))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())

		By("adding another disk")
		plug(ctx, node, second)
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.DiskCount).To(BeEquivalentTo(1), "%+v", pool.Status)
			g.Expect(pool.Status.BlockDevices).NotTo(ContainElement(device.Name))
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
		lies := strings.TrimSpace(execOn(ctx, node, fmt.Sprintf("lvs --noheadings -o devices %s/%s", local.Status.LVM.VGName, local.Status.LVM.LVName)))
		Expect(lies).To(HavePrefix(awaitDisk(ctx, node, second.Serial, "").Status.Path + "("))
		busy := &corev1.Pod{}
		Expect(suite.client.Get(ctx, client.ObjectKey{Namespace: space.Namespace, Name: "busy"}, busy)).To(Succeed())
		Expect(busy.Status.Phase).To(Equal(corev1.PodRunning), "it has not missed a write")

		By("finding the disk wiped, and out of the pool as long as it is named")
		clean := awaitDisk(ctx, node, first.Serial, "blank")
		execOn(ctx, node, fmt.Sprintf("cmp --bytes=%d %s /dev/zero", first.SizeBytes, clean.Status.Path))
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		Expect(pool.Status.DiskCount).To(BeEquivalentTo(1))
		evacuate(ctx, pool)
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.DiskCount).To(BeEquivalentTo(2), "%+v", pool.Status)
			g.Expect(pool.Status.Evacuations).To(BeEmpty())
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())

		By("reading what was written, and giving everything back")
		Expect(space.DeletePod(ctx, "busy")).To(Succeed())
		grow(ctx, local, 256<<20)
		read, _, err := space.RunPod(ctx, moved.with(workload.Pod{Name: "reader", Node: node, Script: moved.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))
		for _, pod := range []string{"writer", "reader"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		removePool(ctx, set, pool)
		for _, disk := range []Disk{first, second} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(3*patience))
})

// evacuate changes spec.evacuate of a pool.
func evacuate(ctx context.Context, pool *v1alpha1.Pool, names ...string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		pool.Spec.Evacuate = names
		g.Expect(suite.client.Update(ctx, pool)).To(Succeed())
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
}
