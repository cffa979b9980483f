// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// The data survive what happens to nodes. One volume of every kind on one node
// goes through it together: power losses are dear on emulated machines.
var _ = Describe("Data", Label("survival"), Serial, Ordered, func() {
	var (
		space   *workload.Space
		node    string
		used    []kind
		digests = map[string]string{}
	)

	BeforeAll(func(ctx SpecContext) {
		space = newSpace(ctx)
		node = suite.nodes[len(suite.nodes)-1]
		for _, kind := range kinds {
			if kind.class(suite.description.Classes) != "" {
				used = append(used, kind)
			}
		}
		for i, kind := range used {
			name := claimName(i)
			_, err := space.CreateClaim(ctx, kind.claim(name))
			Expect(err).NotTo(HaveOccurred())
			digest, _, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "writer-" + name, Node: node, Script: kind.writeScript(name)}, name))
			Expect(err).NotTo(HaveOccurred(), kind.name)
			digests[name] = digest
		}
	}, NodeTimeout(2*patience))

	read := func(ctx context.Context) {
		GinkgoHelper()
		for i, kind := range used {
			name := claimName(i)
			digest, _, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "reader-" + name + "-" + rand5(), Script: kind.readScript(name)}, name))
			Expect(err).NotTo(HaveOccurred(), kind.name)
			Expect(digest).To(Equal(digests[name]), kind.name)
		}
	}

	It("survive a kill of the agent, while a pod holds them", func(ctx SpecContext) {
		needs(CanExec)
		killAgent(ctx, node)
		awaitAgent(ctx, node)
		read(ctx)
	}, SpecTimeout(2*patience))

	It("survive a restart of the kubelet", func(ctx SpecContext) {
		needs(CanRestartKubelet)
		execOn(ctx, node, "systemctl restart kubelet")
		awaitNode(ctx, node, true)
		read(ctx)
	}, SpecTimeout(2*patience))

	It("survive a power loss after which every disk has another kernel name", func(ctx SpecContext) {
		needs(CanPowerOff)
		before := paths(ctx, node)
		Expect(suite.hosts.PowerOff(ctx, node)).To(Succeed())
		Expect(suite.hosts.PowerOn(ctx, node, true)).To(Succeed())
		awaitNode(ctx, node, true)
		awaitAgent(ctx, node)
		Eventually(func(g Gomega, ctx context.Context) {
			changed := 0
			for name, path := range paths(ctx, node) {
				if before[name] != "" && before[name] != path {
					changed++
				}
			}
			g.Expect(changed).To(BeNumerically(">", 0), "disks with another kernel name than before")
		}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
		read(ctx)
	}, SpecTimeout(3*patience))
})

func claimName(i int) string { return "kept-" + string(rune('a'+i)) }

// paths returns the kernel names of a node's disks by the names of their
// BlockDevices.
func paths(ctx context.Context, node string) map[string]string {
	GinkgoHelper()
	devices := &v1alpha1.BlockDeviceList{}
	Expect(suite.client.List(ctx, devices)).To(Succeed())
	found := map[string]string{}
	for _, device := range devices.Items {
		if device.Spec.NodeName == node && device.Status.State == v1alpha1.DeviceActive {
			found[device.Name] = device.Status.Path
		}
	}
	return found
}
