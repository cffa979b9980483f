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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Disks of the test's own: the pool of the other specs stays as it is, and they are smaller
// than what claims of mode device ask for.
var _ = Describe("A pool with striped volumes", Label("pools"), func() {
	It("waits for its second disk, lays volumes over both, and gives them back", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[0]
		first := Disk{Serial: "E2E-STRIPE-A", SizeBytes: 512 << 20}
		second := Disk{Serial: "E2E-STRIPE-B", SizeBytes: 512 << 20}
		plug(ctx, node, first)
		awaitDisk(ctx, node, first.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-striped"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, Layout: v1alpha1.LayoutStriped,
				NodeSelector:   map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-STRIPE-*"}},
			},
		}
		Expect(suite.client.Create(ctx, set)).To(Succeed())
		pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + node}}
		DeferCleanup(func(ctx SpecContext) { removePool(ctx, set, pool) }, NodeTimeout(patience))

		By("having one disk")
		awaitPool(ctx, pool, metav1.ConditionFalse, v1alpha1.ReasonNoDisks, "layout striped needs 2 disks on a node, here are 1")
		alone := awaitDisk(ctx, node, first.Serial, "blank")
		Expect(alone.Spec.ClaimRef).To(BeNil(), "a disk that no group can be made of is left to others")

		By("getting the second")
		plug(ctx, node, second)
		awaitPool(ctx, pool, metav1.ConditionTrue, v1alpha1.ReasonPoolReady, "")
		Expect(pool.Status.Type).To(Equal(string(v1alpha1.LayoutStriped)))
		whole := pool.Status.Free.DeepCopy()

		By("making a volume")
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		striped := kind{name: "lvm in stripes", class: func(Classes) string { return class }, size: "128Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, striped.claim("data"))
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, striped.with(workload.Pod{Name: "writer", Node: node, Script: striped.writeScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "data")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		Expect(local.Status.LVM).NotTo(BeNil())
		stripes := func() []string {
			return strings.Fields(execOn(ctx, node, fmt.Sprintf("lvs --noheadings -o lv_layout,stripes %s/%s", local.Status.LVM.VGName, local.Status.LVM.LVName)))
		}
		Expect(stripes()).To(Equal([]string{"striped", "2"}))

		By("letting it grow")
		grow(ctx, local, 192<<20)
		Expect(stripes()).To(HaveEach(BeElementOf("striped", "2")))
		read, _, err := space.RunPod(ctx, striped.with(workload.Pod{Name: "reader", Node: node, Script: striped.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written))

		By("deleting it")
		for _, pod := range []string{"writer", "reader"} {
			Expect(space.DeletePod(ctx, pod)).To(Succeed())
		}
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
			g.Expect(pool.Status.Free.Cmp(whole)).To(Equal(0))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())

		By("giving its disks back")
		removePool(ctx, set, pool)
		for _, disk := range []Disk{first, second} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(2*patience))
})

// newPool makes a PoolSet and waits until its pool can be used. Both go with the spec.
func newPool(ctx context.Context, set *v1alpha1.PoolSet, node string) *v1alpha1.Pool {
	GinkgoHelper()
	Expect(suite.client.Create(ctx, set)).To(Succeed())
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + node}}
	DeferCleanup(func(ctx SpecContext) { removePool(ctx, set, pool) }, NodeTimeout(patience))
	awaitPool(ctx, pool, metav1.ConditionTrue, v1alpha1.ReasonPoolReady, "")
	return pool
}

// awaitPool waits until a pool's condition Ready says so.
func awaitPool(ctx context.Context, pool *v1alpha1.Pool, status metav1.ConditionStatus, reason, message string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
		ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady)
		g.Expect(ready).NotTo(BeNil())
		g.Expect(ready.Status).To(Equal(status), ready.Message)
		g.Expect(ready.Reason).To(Equal(reason), ready.Message)
		g.Expect(ready.Message).To(ContainSubstring(message))
		if status == metav1.ConditionTrue {
			g.Expect(pool.Status.Free).NotTo(BeNil())
		}
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}

// grow makes a volume larger as csi-resizer does, without a claim.
func grow(ctx context.Context, local *v1alpha1.LocalVolume, sizeBytes int64) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(local), local)).To(Succeed())
		local.Spec.SizeBytes = sizeBytes
		g.Expect(suite.client.Update(ctx, local)).To(Succeed())
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(local), local)).To(Succeed())
		g.Expect(local.Status.Capacity.Cmp(*resource.NewQuantity(sizeBytes, resource.BinarySI))).To(BeNumerically(">=", 0))
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}

// removePool deletes a PoolSet and its one Pool, and waits until both are gone.
func removePool(ctx context.Context, set *v1alpha1.PoolSet, pool *v1alpha1.Pool) {
	GinkgoHelper()
	for _, object := range []client.Object{set, pool} {
		Expect(client.IgnoreNotFound(suite.client.Delete(ctx, object))).To(Succeed())
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(apierrors.IsNotFound(suite.client.Get(ctx, client.ObjectKeyFromObject(object), object))).To(BeTrue(), "%T %s is there", object, object.GetName())
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
	}
}
