// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A claim", Label("data-path"), func() {
	for _, kind := range kinds {
		Context("of "+kind.name, func() {
			It("is bound when its pod comes, keeps its bytes for the next pod, and stays on its node", func(ctx SpecContext) {
				skipWithoutClass(kind)
				space := newSpace(ctx)
				_, err := space.CreateClaim(ctx, kind.claim("data"))
				Expect(err).NotTo(HaveOccurred())

				written, node, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "writer", Script: kind.writeScript("data")}, "data"))
				Expect(err).NotTo(HaveOccurred())
				Expect(written).NotTo(BeEmpty())

				volume, err := space.AwaitBound(ctx, "data")
				Expect(err).NotTo(HaveOccurred())
				expectPinned(volume, node)

				read, again, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "reader", Script: kind.readScript("data")}, "data"))
				Expect(err).NotTo(HaveOccurred())
				Expect(read).To(Equal(written), "the bytes that the next pod reads")
				Expect(again).To(Equal(node))

				if len(suite.nodes) > 1 {
					expectUnschedulableElsewhere(ctx, space, kind, node)
				}

				local := volumeOf(ctx, volume)
				expectHeld(ctx, local)
				Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
				Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
				expectGone(ctx, local)
			}, SpecTimeout(patience))
		})
	}

	It("waits for a consumer before anything is made", func(ctx SpecContext) {
		space := newSpace(ctx)
		claim, err := space.CreateClaim(ctx, kinds[0].claim("waiting"))
		Expect(err).NotTo(HaveOccurred())
		Consistently(func(g Gomega, ctx context.Context) {
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(claim), claim)).To(Succeed())
			g.Expect(claim.Status.Phase).To(Equal(corev1.ClaimPending))
			volumes := &v1alpha1.LocalVolumeList{}
			g.Expect(suite.client.List(ctx, volumes)).To(Succeed())
			for _, volume := range volumes.Items {
				g.Expect(volume.Spec.ClaimRef == nil || volume.Spec.ClaimRef.UID != claim.UID).To(BeTrue())
			}
		}).WithContext(ctx).WithTimeout(3 * time.Second).Should(Succeed())
	}, SpecTimeout(patience))

	It("is writable for a pod that is not root, by its fsGroup", func(ctx SpecContext) {
		space := newSpace(ctx)
		kind := kinds[0]
		_, err := space.CreateClaim(ctx, kind.claim("shared"))
		Expect(err).NotTo(HaveOccurred())
		message, _, err := space.RunPod(ctx, kind.with(workload.Pod{
			Name: "group", FSGroup: 4242,
			Script: "stat -c %g " + workload.MountDirectory + "/shared >/dev/termination-log",
		}, "shared"))
		Expect(err).NotTo(HaveOccurred())
		Expect(message).To(HavePrefix("4242"))
	}, SpecTimeout(patience))

	It("grows while its pod runs", func(ctx SpecContext) {
		space := newSpace(ctx)
		// Together: kubelet grows a filesystem when it looks at the pod again, which is
		// once a minute.
		sizes := map[string]resource.Quantity{}
		for i, kind := range kinds[:3] {
			if kind.class(suite.description.Classes) == "" {
				continue
			}
			name := fmt.Sprintf("grow-%d", i)
			sizes[name] = resource.MustParse(kind.size)
			_, err := space.CreateClaim(ctx, kind.claim(name))
			Expect(err).NotTo(HaveOccurred())
			_, err = space.CreatePod(ctx, kind.with(workload.Pod{Name: name}, name))
			Expect(err).NotTo(HaveOccurred())
		}
		if len(sizes) == 0 {
			Skip("the cluster has no StorageClass of mode lvm")
		}
		for name, size := range sizes {
			_, err := space.AwaitPod(ctx, name, corev1.PodRunning)
			Expect(err).NotTo(HaveOccurred())
			claim := &corev1.PersistentVolumeClaim{}
			Expect(suite.client.Get(ctx, client.ObjectKey{Namespace: space.Namespace, Name: name}, claim)).To(Succeed())
			size.Add(size)
			sizes[name] = size
			patch := client.MergeFrom(claim.DeepCopy())
			claim.Spec.Resources.Requests[corev1.ResourceStorage] = size
			Expect(suite.client.Patch(ctx, claim, patch)).To(Succeed())
		}
		for name, size := range sizes {
			claim := &corev1.PersistentVolumeClaim{}
			claim.Namespace, claim.Name = space.Namespace, name
			Expect(space.Await(ctx, claim, func(object client.Object, _ bool) (bool, error) {
				capacity := object.(*corev1.PersistentVolumeClaim).Status.Capacity[corev1.ResourceStorage]
				return capacity.Cmp(size) >= 0, nil
			})).To(Succeed(), "the claim %s to report %s", name, size.String())
		}
	}, SpecTimeout(2*patience))
})

func skipWithoutClass(kind kind) {
	GinkgoHelper()
	if kind.class(suite.description.Classes) == "" {
		Skip("the cluster has no StorageClass for " + kind.name)
	}
}

func expectPinned(volume *corev1.PersistentVolume, node string) {
	GinkgoHelper()
	Expect(volume.Spec.CSI).NotTo(BeNil())
	Expect(volume.Spec.CSI.Driver).To(Equal(v1alpha1.DriverName))
	Expect(volume.Spec.NodeAffinity).NotTo(BeNil())
	terms := volume.Spec.NodeAffinity.Required.NodeSelectorTerms
	Expect(terms).To(HaveLen(1))
	Expect(terms[0].MatchExpressions).To(ConsistOf(corev1.NodeSelectorRequirement{
		Key: v1alpha1.TopologyKeyNode, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
	}))
}

// expectUnschedulableElsewhere asks for a pod on another node and sees the
// scheduler refuse.
func expectUnschedulableElsewhere(ctx context.Context, space *workload.Space, kind kind, node string) {
	GinkgoHelper()
	other := otherNode(node)
	pod, err := space.CreatePod(ctx, kind.with(workload.Pod{Name: "elsewhere", Node: other}, "data"))
	Expect(err).NotTo(HaveOccurred())
	Expect(space.Await(ctx, pod, func(object client.Object, _ bool) (bool, error) {
		for _, condition := range object.(*corev1.Pod).Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
				return true, nil
			}
		}
		return false, nil
	})).To(Succeed(), "the scheduler to refuse %s on %s", pod.Name, other)
	Expect(space.DeletePod(ctx, pod.Name)).To(Succeed())
}

func otherNode(node string) string {
	for _, name := range suite.nodes {
		if name != node {
			return name
		}
	}
	return node
}
