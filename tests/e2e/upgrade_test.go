// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/tests/workload"
)

// Serial: all agents are replaced.
var _ = Describe("Berth", Label("upgrade", "long"), Serial, func() {
	It("is replaced while pods write, who notice nothing, and makes volumes meanwhile", func(ctx SpecContext) {
		node := nodeWithFio(ctx)
		used := []kind{kinds[0], kinds[2], kinds[5]}
		space := newSpace(ctx)
		writer := fioPod("writer", node)
		jobs := ""
		for i, kind := range used {
			skipWithoutClass(kind)
			name := claimName(i)
			_, err := space.CreateClaim(ctx, kind.claim(name))
			Expect(err).NotTo(HaveOccurred())
			writer = kind.with(writer, name)
			jobs += fmt.Sprintf(" --name=%s --filename=%s", name, kind.place(name))
		}
		// A minute and a half of writes that are read back and compared; one that takes ten
		// seconds ends it.
		writer.Script = `set -e
out=$(/usr/bin/fio --rw=randwrite --bs=4k --size=8M --ioengine=psync --direct=1 --rate_iops=40 --verify=crc32c --verify_backlog=64 --verify_fatal=1 \
  --loops=1000 --time_based --runtime=90 --max_latency=10s --output-format=terse` + jobs + ` 2>&1) || { echo "$out" | tail -c 2000 >/dev/termination-log; exit 1; }
echo verified >/dev/termination-log
`
		_, err := space.CreatePod(ctx, writer)
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, writer.Name, corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())

		for round := range 2 {
			By(fmt.Sprintf("replacing agents and provisioner, for the %d. time", round+1))
			agents := &appsv1.DaemonSet{}
			agents.Namespace, agents.Name = suite.description.Namespace, "berth-node-agent"
			provisioner := &appsv1.Deployment{}
			provisioner.Namespace, provisioner.Name = suite.description.Namespace, "berth-provisioner"
			stamp := time.Now().UTC().Format(time.RFC3339Nano)
			replacePods(ctx, agents, stamp)
			replacePods(ctx, provisioner, stamp)
			for i, node := range suite.nodes {
				claim := fmt.Sprintf("meanwhile-%d-%d", round, i)
				_, err := space.CreateClaim(ctx, used[0].claim(claim))
				Expect(err).NotTo(HaveOccurred())
				_, _, err = space.RunPod(ctx, used[0].with(workload.Pod{Name: claim, Node: node, Script: "true"}, claim))
				Expect(err).NotTo(HaveOccurred())
			}
			Eventually(func(g Gomega, ctx context.Context) {
				g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(agents), agents)).To(Succeed())
				g.Expect(agents.Status.ObservedGeneration).To(Equal(agents.Generation))
				g.Expect(agents.Status.UpdatedNumberScheduled).To(Equal(agents.Status.DesiredNumberScheduled))
				g.Expect(agents.Status.NumberReady).To(Equal(agents.Status.DesiredNumberScheduled))
				g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(provisioner), provisioner)).To(Succeed())
				g.Expect(provisioner.Status.ObservedGeneration).To(Equal(provisioner.Generation))
				g.Expect(provisioner.Status.UpdatedReplicas).To(Equal(provisioner.Status.Replicas))
				g.Expect(provisioner.Status.AvailableReplicas).To(Equal(*provisioner.Spec.Replicas))
			}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
		}
		ended, err := space.AwaitPod(ctx, writer.Name, corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(HavePrefix("verified"))
	}, SpecTimeout(3*patience))
})

// replacePods has all pods of a DaemonSet or a Deployment replaced, as kubectl rollout restart
// does.
func replacePods(ctx context.Context, object client.Object, stamp string) {
	GinkgoHelper()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, stamp)
	Expect(suite.client.Patch(ctx, object, client.RawPatch("application/merge-patch+json", []byte(patch)))).To(Succeed())
}
