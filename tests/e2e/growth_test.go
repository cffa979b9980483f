// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"iter"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// Disks of the test's own, smaller than what claims of mode device ask for.
var _ = Describe("A disk that joins a pool", Label("pools"), func() {
	It("brings its room to a pod that waits for it, and takes none away meanwhile", func(ctx SpecContext) {
		needs(CanPlugDisks)
		node := suite.nodes[0]
		first := Disk{Serial: "E2E-JOIN-A", SizeBytes: 512 << 20}
		second := Disk{Serial: "E2E-JOIN-B", SizeBytes: 512 << 20}
		plug(ctx, node, first)
		awaitDisk(ctx, node, first.Serial, "blank")
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-join"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolLVM, NodeSelector: map[string]string{corev1.LabelHostname: node},
				DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"E2E-JOIN-*"}},
			},
		}
		pool := newPool(ctx, set, node)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": set.Name})
		small := kind{name: "lvm that fits", class: func(Classes) string { return class }, size: "128Mi"}
		large := kind{name: "lvm that waits", class: func(Classes) string { return class }, size: "700Mi"}
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, small.claim("small"))
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, small.with(workload.Pod{Name: "writer", Script: small.writeScript("small")}, "small"))
		Expect(err).NotTo(HaveOccurred())
		_, err = space.CreateClaim(ctx, large.claim("large"))
		Expect(err).NotTo(HaveOccurred())
		waiting, err := space.CreatePod(ctx, large.with(workload.Pod{Name: "waiting", Script: large.writeScript("large")}, "large"))
		Expect(err).NotTo(HaveOccurred())
		Eventually(func(g Gomega, ctx context.Context) {
			told, err := space.Events(ctx, waiting.UID)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(told).To(ContainElement(ContainSubstring("did not have enough free storage")))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
		before := largestPublished(ctx, Default, class, node)
		Expect(before).To(BeNumerically(">", 0))
		watcher, err := suite.client.Watch(ctx, &storagev1.CSIStorageCapacityList{})
		Expect(err).NotTo(HaveOccurred())
		defer watcher.Stop()

		By("plugging the disk in")
		plug(ctx, node, second)
		_, err = space.AwaitPod(ctx, "waiting", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		grown := false
		for event := range told(ctx, watcher) {
			capacity, ok := event.Object.(*storagev1.CSIStorageCapacity)
			if !ok || capacity.StorageClassName != class || grown {
				continue
			}
			Expect(event.Type).NotTo(Equal(watch.Deleted), "what is published of the room was taken away")
			Expect(capacity.Capacity.Value()).To(BeNumerically(">=", before), "the room before the disk has joined")
			grown = capacity.Capacity.Value() >= 700<<20
		}
		Expect(grown).To(BeTrue(), "the room of both disks was published")

		By("giving the disks back")
		for _, name := range []string{"writer", "waiting"} {
			Expect(space.DeletePod(ctx, name)).To(Succeed())
		}
		for _, name := range []string{"small", "large"} {
			volume, err := space.AwaitBound(ctx, name)
			Expect(err).NotTo(HaveOccurred())
			Expect(space.DeleteClaim(ctx, name)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		}
		removePool(ctx, set, pool)
		for _, disk := range []Disk{first, second} {
			awaitDisk(ctx, node, disk.Serial, "blank")
		}
	}, SpecTimeout(2*patience))
})

// told is what a watch has to say, until it was silent for a while: what has happened is told by
// then.
func told(ctx context.Context, watcher watch.Interface) iter.Seq[watch.Event] {
	const silence = 3 * time.Second
	return func(yield func(watch.Event) bool) {
		GinkgoHelper()
		for {
			select {
			case event, open := <-watcher.ResultChan():
				Expect(open).To(BeTrue(), "the watch goes on")
				if !yield(event) {
					return
				}
			case <-time.After(silence):
				return
			case <-ctx.Done():
				Fail("the watch is not silent")
			}
		}
	}
}
