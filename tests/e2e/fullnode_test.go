// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A node that is full", Label("capacity"), Serial, func() {
	// fill takes all but a little of a node's pool with one claim.
	fill := func(ctx context.Context, space *workload.Space, node string) {
		GinkgoHelper()
		pool := &v1alpha1.Pool{}
		// What earlier specs took is wiped and given back in the background, and the
		// numbers in the status follow some seconds later.
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKey{Name: suite.description.LVMPool + "-" + node}, pool)).To(Succeed())
			g.Expect(pool.Status.Free.Value()).To(BeNumerically(">", pool.Status.Capacity.Value()/2), "free bytes of %s", pool.Name)
			volumes := &v1alpha1.LocalVolumeList{}
			g.Expect(suite.client.List(ctx, volumes)).To(Succeed())
			counted := 0
			for _, volume := range volumes.Items {
				if volume.Spec.NodeName == node && volume.Spec.Pool == suite.description.LVMPool {
					g.Expect(volume.DeletionTimestamp).To(BeNil(), "LocalVolume %s is being deleted", volume.Name)
					counted++
				}
			}
			g.Expect(pool.Status.VolumeCount).To(BeEquivalentTo(counted), "volumes that %s counts", pool.Name)
		}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
		leave := resource.MustParse("256Mi")
		size := pool.Status.Free.DeepCopy()
		size.Sub(leave)
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "filler", Class: suite.description.Classes.LVM, Size: fmt.Sprint(size.Value()), Block: true})
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, workload.Pod{Name: "filler", Devices: []string{"filler"}, Node: node, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
	}

	BeforeEach(func() {
		if len(suite.nodes) < 2 {
			Skip("it takes two nodes to go elsewhere")
		}
		skipWithoutClass(kinds[0])
	})

	It("is passed over by the scheduler", func(ctx SpecContext) {
		space := newSpace(ctx)
		node := suite.nodes[0]
		fill(ctx, space, node)
		Eventually(func(g Gomega, ctx context.Context) {
			g.Expect(largestPublished(ctx, g, suite.description.Classes.LVM, node)).To(BeNumerically("<", 512<<20))
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(500 * time.Millisecond).Should(Succeed())
		claim := kinds[0].claim("wanted")
		claim.Size = "512Mi"
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		_, where, err := space.RunPod(ctx, workload.Pod{Name: "wanting", Claims: []string{"wanted"}, PreferredNode: node, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		Expect(where).NotTo(Equal(node))
	}, SpecTimeout(2*patience))

	It("sends a claim away that was placed on it by stale capacity, and keeps nothing of it", func(ctx SpecContext) {
		space := newSpace(ctx)
		node := suite.nodes[0]
		fill(ctx, space, node)
		claim := kinds[0].claim("misplaced")
		claim.Size = "512Mi"
		// What the scheduler would have written had it seen an old capacity.
		claim.Annotations = map[string]string{pinned: node}
		object, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		Expect(space.Await(ctx, object, func(seen client.Object, _ bool) (bool, error) {
			_, still := seen.GetAnnotations()[pinned]
			return !still, nil
		})).To(Succeed(), "the claim to be given back to the scheduler")
		_, where, err := space.RunPod(ctx, workload.Pod{Name: "misplaced", Claims: []string{"misplaced"}, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		Expect(where).NotTo(Equal(node))
		expectNothingLeft(ctx)
	}, SpecTimeout(2*patience))
})
