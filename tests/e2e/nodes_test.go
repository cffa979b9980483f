// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/tests/workload"
)

// Serial: a node is out of use meanwhile.
var _ = Describe("A node", Label("nodes", "long"), Serial, func() {
	It("that is drained, deleted from Kubernetes and comes back keeps the data of its volumes, and says who waits for it", func(ctx SpecContext) {
		needs(CanExec, CanRestartKubelet)
		node := suite.nodes[len(suite.nodes)-1]
		lvm, hostpath := kinds[0], kinds[5]
		skipWithoutClass(lvm)
		skipWithoutClass(hostpath)
		space := newSpace(ctx)
		for _, claim := range []workload.Claim{lvm.claim("data"), hostpath.claim("unwanted")} {
			_, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
		}
		written, _, err := space.RunPod(ctx, workload.Pod{Name: "writer", Node: node, Claims: []string{"data", "unwanted"}, Script: lvm.writeScript("data")})
		Expect(err).NotTo(HaveOccurred())
		data, unwanted := boundVolume(ctx, space, "data"), boundVolume(ctx, space, "unwanted")
		local, other := volumeOf(ctx, data), volumeOf(ctx, unwanted)

		By("draining it")
		cordon(ctx, node, true)
		DeferCleanup(func(ctx SpecContext) { cordon(ctx, node, false) }, NodeTimeout(patience))
		pod, err := space.CreatePod(ctx, lvm.with(workload.Pod{Name: "reader", Script: lvm.readScript("data")}, "data"))
		Expect(err).NotTo(HaveOccurred())
		Expect(space.Await(ctx, pod, func(object client.Object, _ bool) (bool, error) {
			return slices.ContainsFunc(object.(*corev1.Pod).Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "unschedulable")
			}), nil
		})).To(Succeed())
		_, said := askPlugin(ctx, "why", "node/"+node)
		Expect(said).To(And(ContainSubstring("It is cordoned"), ContainSubstring(space.Namespace+"/data (pod reader)")))

		By("deleting it from Kubernetes, and a claim whose volume is on it")
		Expect(space.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			if err := suite.client.Get(ctx, client.ObjectKey{Name: node}, &corev1.Node{}); err != nil {
				execOn(ctx, node, "systemctl restart kubelet")
			}
			awaitNode(ctx, node, true)
			awaitAgent(ctx, node)
		}, NodeTimeout(2*patience))
		By("waiting until Kubernetes has taken its pods away, the agent among them")
		Eventually(func(ctx context.Context) (string, error) {
			return suite.hosts.Exec(ctx, node, "pidof node-agent || echo none")
		}).WithContext(ctx).WithTimeout(patience).WithPolling(2 * time.Second).Should(Equal("none\n"))
		Expect(space.DeleteClaim(ctx, "unwanted")).To(Succeed())
		expectTold(ctx, space, unwanted, []string{"node " + node + " is gone from the cluster"})
		Expect(volumeOf(ctx, data).UID).To(Equal(local.UID))
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(other), other)).To(Succeed(), "a volume of a node that is gone is not given up")
		_, said, _ = runPlugin(ctx, "why", "pvc/"+space.Namespace+"/data")
		Expect(said).To(ContainSubstring("There is no node " + node))

		By("having it back")
		execOn(ctx, node, "systemctl restart kubelet")
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
		ended, err := space.AwaitPod(ctx, "reader", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(Equal(written))
		Expect(space.AwaitVolumeGone(ctx, unwanted.Name)).To(Succeed())
		expectGone(ctx, other)
	}, SpecTimeout(4*patience))
})

// cordon closes a node to new pods, or opens it again.
func cordon(ctx context.Context, name string, closed bool) {
	GinkgoHelper()
	node := &corev1.Node{}
	Expect(suite.client.Get(ctx, client.ObjectKey{Name: name}, node)).To(Succeed())
	patch := client.MergeFrom(node.DeepCopy())
	node.Spec.Unschedulable = closed
	Expect(suite.client.Patch(ctx, node, patch)).To(Succeed())
}
