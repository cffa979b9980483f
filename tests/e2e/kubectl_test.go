// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/internal/kubectl"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("kubectl berth", Label("kubectl"), func() {
	// ask runs the plugin against the cluster.
	ask := func(ctx context.Context, args ...string) (code int, said string) {
		GinkgoHelper()
		var out, errs strings.Builder
		code = kubectl.Run(ctx, args, kubectl.Streams{Out: &out, Err: &errs}, func(kubectl.Options) (client.Client, string, error) { return suite.client, "default", nil })
		Expect(errs.String()).To(BeEmpty())
		return code, out.String()
	}

	It("shows what there is, and says why a claim waits", func(ctx SpecContext) {
		for command, parts := range map[string][]string{
			"status": {"Provisioner", "Agents", "Pools", "Disks"}, "disks": append([]string{"SERIAL", "USABLE"}, suite.nodes...), "pools": {"PROMISED", suite.description.LVMPool + "-" + suite.nodes[0]},
		} {
			_, said := ask(ctx, command)
			for _, part := range parts {
				Expect(said).To(ContainSubstring(part), command)
			}
		}
		for _, node := range suite.nodes {
			_, said := ask(ctx, "why", "node/"+node)
			Expect(said).To(ContainSubstring("registered with kubelet"))
		}

		space := newSpace(ctx)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": suite.description.LVMPool, "wipee": "none"})
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "misspelt", Class: class, Size: "32Mi"})
		Expect(err).NotTo(HaveOccurred())
		code, said := ask(ctx, "--namespace", space.Namespace, "why", "pvc/misspelt")
		Expect(code).To(Equal(1))
		Expect(said).To(And(ContainSubstring("wipee"), ContainSubstring("wipe")))

		_, err = space.CreateClaim(ctx, workload.Claim{Name: "good", Class: suite.description.Classes.LVM, Size: "32Mi"})
		Expect(err).NotTo(HaveOccurred())
		code, said = ask(ctx, "--namespace", space.Namespace, "why", "pvc/good")
		Expect(code).To(Equal(0))
		Expect(said).To(ContainSubstring("WaitForFirstConsumer"))
		_, node, err := space.RunPod(ctx, workload.Pod{Name: "user", Claims: []string{"good"}, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		code, said = ask(ctx, "why", "pvc/"+space.Namespace+"/good")
		Expect(code).To(Equal(0), said)
		Expect(said).To(ContainSubstring("on node " + node))
	}, SpecTimeout(patience))
})
