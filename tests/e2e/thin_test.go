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

// Disks of the test's own, smaller than what claims of whole disks ask for in the specs beside: the
// pool of the other specs stays as it is.
var _ = Describe("A thin pool", Label("pools", "thin"), func() {
	It("grows before it is full, says when it is, loses nothing, and goes on with another disk", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		first := Disk{Serial: "E2E-THIN-A", SizeBytes: 384 << 20}
		second := Disk{Serial: "E2E-THIN-B", SizeBytes: 384 << 20}
		plug(ctx, node, first)
		awaitDisk(ctx, node, first.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-thin"},
			Spec: v1alpha1.PoolSetSpec{
				Kind:           v1alpha1.PoolLVM,
				NodeSelector:   map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-THIN-*"}},
				Thin:           &v1alpha1.ThinPool{OverprovisionRatio: "3", InitialPercent: 50},
			},
		}
		pool := newPool(ctx, set, node)
		Expect(pool.Status.Type).To(Equal("thin"))
		Expect(pool.Status.Thin).NotTo(BeNil())
		initial := pool.Status.Thin.Data.Value()
		Expect(pool.Status.Capacity.Value()).To(BeNumerically(">=", 3*2*initial-3*(8<<20)), "three times what is there is promised")

		By("making a volume with a filesystem")
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		small := kind{name: "thin with ext4", class: func(Classes) string { return class }, size: "96Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, small.claim("small"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, small.with(workload.Pod{Name: "writer", Node: node, Script: small.writeScript("small")}, "small"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "small")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		Expect(local.Status.LVM).NotTo(BeNil())
		layout := execOn(ctx, node, fmt.Sprintf("lvs --noheadings -o lv_layout,pool_lv %s/%s", local.Status.LVM.VGName, local.Status.LVM.LVName))
		Expect(strings.Fields(layout)).To(Equal([]string{"thin,sparse", "thin"}))
		grow(ctx, local, 128<<20)

		By("writing more than it took at first")
		big := kind{name: "thin as a block device", class: func(Classes) string { return class }, size: "512Mi", block: true}
		_, err = space.CreateClaim(ctx, big.claim("big"))
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, big.with(workload.Pod{Name: "filler", Node: node, Script: fillScript("big", 0, int(initial>>20)+64)}, "big"))
		Expect(err).NotTo(HaveOccurred())
		awaitThin(ctx, pool, func(g Gomega, thin *v1alpha1.ThinPoolStatus) {
			g.Expect(thin.Data.Value()).To(BeNumerically(">", initial+(64<<20)))
		})

		By("filling it")
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(set), set)).To(Succeed())
		set.Spec.Thin.WhenFull = v1alpha1.WhenFullFail
		Expect(suite.client.Update(ctx, set)).To(Succeed())
		Eventually(func(ctx context.Context) (string, error) {
			out, err := suite.hosts.Exec(ctx, node, "lvs --noheadings -o lv_when_full "+local.Status.LVM.VGName+"/thin")
			return strings.TrimSpace(out), err
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Equal("error"))
		said, _, err := space.RunPod(ctx, big.with(workload.Pod{
			Name: "flooder", Node: node, Script: "if (" + fillScript("big", 0, 500) + ") ; then echo fits; else echo fails; fi >/dev/termination-log",
		}, "big"))
		Expect(err).NotTo(HaveOccurred())
		Expect(said).To(ContainSubstring("fails"))
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonThinPoolFull, "full")
		Expect(pool.Status.State).To(Equal(v1alpha1.PoolDegraded))
		Expect(pool.Status.Thin.DataPercent).To(BeEquivalentTo(100))
		read, _, err := space.RunPod(ctx, small.with(workload.Pod{Name: "reader", Node: node, Script: small.readScript("small")}, "small"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written), "the other volume of the full pool")

		By("adding a disk")
		plug(ctx, node, second)
		awaitPool(ctx, pool, metav1.ConditionTrue, v1alpha1.ReasonPoolReady, "")
		_, _, err = space.RunPod(ctx, big.with(workload.Pod{Name: "again", Node: node, Script: fillScript("big", 450, 32)}, "big"))
		Expect(err).NotTo(HaveOccurred())

		By("giving room back")
		before := pool.Status.Thin.DataPercent
		Expect(space.DeleteClaim(ctx, "big")).To(Succeed())
		awaitThin(ctx, pool, func(g Gomega, thin *v1alpha1.ThinPoolStatus) {
			g.Expect(thin.DataPercent).To(BeNumerically("<", before/2))
		})
		Expect(space.DeleteClaim(ctx, "small")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		removePool(ctx, set, pool)
		for _, disk := range []Disk{first, second} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(3*patience))
})

// fillScript writes to a block device, from so many MiB on and so many, and fails if that
// does.
func fillScript(claim string, fromMiB, mib int) string {
	return fmt.Sprintf("dd if=/dev/zero of=%s/%s bs=1048576 seek=%d count=%d conv=notrunc,fsync", workload.DeviceDirectory, claim, fromMiB, mib)
}

// awaitThin waits until the status of a thin pool is as it should be.
func awaitThin(ctx context.Context, pool *v1alpha1.Pool, holds func(Gomega, *v1alpha1.ThinPoolStatus)) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		g.Expect(pool.Status.Thin).NotTo(BeNil())
		holds(g, pool.Status.Thin)
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
}
