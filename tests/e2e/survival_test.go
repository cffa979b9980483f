// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

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
		written string
	)

	// pod uses all the claims.
	pod := func(name, script string) workload.Pod {
		p := workload.Pod{Name: name, Script: script}
		for i, kind := range used {
			p = kind.with(p, claimName(i))
		}
		return p
	}

	BeforeAll(func(ctx SpecContext) {
		space = newSpace(ctx)
		node = suite.nodes[len(suite.nodes)-1]
		for _, kind := range kinds {
			if kind.class(suite.description.Classes) != "" {
				used = append(used, kind)
			}
		}
		for i, kind := range used {
			_, err := space.CreateClaim(ctx, kind.claim(claimName(i)))
			Expect(err).NotTo(HaveOccurred())
		}
		writer := pod("writer", forEach(used, kind.writeScript))
		writer.Node = node
		var err error
		written, _, err = space.RunPod(ctx, writer)
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(written)).To(HaveLen(2*len(used)), "a digest of each claim: %s", written)
	}, NodeTimeout(2*patience))

	read := func(ctx context.Context) {
		GinkgoHelper()
		found, _, err := space.RunPod(ctx, pod("reader-"+rand5(), forEach(used, kind.readScript)))
		Expect(err).NotTo(HaveOccurred())
		Expect(found).To(Equal(written))
	}

	It("survive a kill of the agent, while a pod holds them", func(ctx SpecContext) {
		needs(CanExec)
		_, err := space.CreatePod(ctx, pod("holder", "sleep 20\n"+forEach(used, kind.readScript)))
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "holder", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		killAgent(ctx, node)
		ended, err := space.AwaitPod(ctx, "holder", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(Equal(written))
		Expect(space.DeletePod(ctx, "holder")).To(Succeed())
		awaitAgent(ctx, node)
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

// forEach joins what each kind does with its claim into one script.
func forEach(used []kind, script func(kind, string) string) string {
	var b strings.Builder
	for i, kind := range used {
		b.WriteString(script(kind, claimName(i)))
	}
	return b.String()
}

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
