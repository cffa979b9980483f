// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/berth-dev/berth/internal/kubectl"
	"github.com/berth-dev/berth/tests/workload"
)

// runPlugin runs kubectl berth against the cluster.
func runPlugin(ctx context.Context, args ...string) (code int, said, complained string) {
	var out, errs strings.Builder
	code = kubectl.Run(ctx, args, kubectl.Streams{Out: &out, Err: &errs}, func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.NewCluster(suite.config, "default") })
	return code, out.String(), errs.String()
}

// askPlugin runs kubectl berth, which is to say something and to complain of nothing.
func askPlugin(ctx context.Context, args ...string) (code int, said string) {
	GinkgoHelper()
	code, said, complained := runPlugin(ctx, args...)
	Expect(complained).To(BeEmpty())
	return code, said
}

var _ = Describe("kubectl berth", Label("kubectl"), func() {
	It("shows what there is, and says why a claim waits", func(ctx SpecContext) {
		for command, parts := range map[string][]string{
			"status": {"Provisioner", "Agents", "Pools", "Disks"}, "disks": append([]string{"SERIAL", "USABLE"}, suite.nodes...), "pools": {"PROMISED", suite.description.LVMPool + "-" + suite.nodes[0]},
		} {
			_, said := askPlugin(ctx, command)
			for _, part := range parts {
				Expect(said).To(ContainSubstring(part), command)
			}
		}
		code, said, complained := runPlugin(ctx, "orphans", "list") // of whatever other specs leave behind
		Expect(code).To(BeNumerically("<", 2), complained)
		Expect(said).To(ContainSubstring("LACKS"))
		for _, node := range suite.nodes {
			_, said := askPlugin(ctx, "why", "node/"+node)
			Expect(said).To(ContainSubstring("registered with kubelet"))
		}

		space := newSpace(ctx)
		class := newClass(ctx, map[string]string{"mode": "lvm", "pool": suite.description.LVMPool, "wipee": "none"})
		_, err := space.CreateClaim(ctx, workload.Claim{Name: "misspelt", Class: class, Size: "32Mi"})
		Expect(err).NotTo(HaveOccurred())
		code, said = askPlugin(ctx, "--namespace", space.Namespace, "why", "pvc/misspelt")
		Expect(code).To(Equal(1))
		Expect(said).To(And(ContainSubstring("wipee"), ContainSubstring("wipe")))

		_, err = space.CreateClaim(ctx, workload.Claim{Name: "good", Class: suite.description.Classes.LVM, Size: "32Mi"})
		Expect(err).NotTo(HaveOccurred())
		code, said = askPlugin(ctx, "--namespace", space.Namespace, "why", "pvc/good")
		Expect(code).To(Equal(0))
		Expect(said).To(ContainSubstring("WaitForFirstConsumer"))
		_, node, err := space.RunPod(ctx, workload.Pod{Name: "user", Claims: []string{"good"}, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		code, said = askPlugin(ctx, "why", "pvc/"+space.Namespace+"/good")
		Expect(code).To(Equal(0), said)
		Expect(said).To(ContainSubstring("on node " + node))
	}, SpecTimeout(patience))

	It("collects a bundle without secrets", func(ctx SpecContext) {
		file := filepath.Join(GinkgoT().TempDir(), "bundle.tar.gz")
		code, said, complained := runPlugin(ctx, "support-bundle", "-o", file)
		Expect(code).To(BeNumerically("<", 2), said+complained)
		packed, err := os.Open(file)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(packed.Close)
		zip, err := gzip.NewReader(packed)
		Expect(err).NotTo(HaveOccurred())
		files := map[string]string{}
		for r := tar.NewReader(zip); ; {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			Expect(err).NotTo(HaveOccurred())
			content, err := io.ReadAll(r)
			Expect(err).NotTo(HaveOccurred())
			files[path.Base(header.Name)] = string(content)
		}
		for line := range strings.Lines(files["errors.txt"]) {
			Expect(line).To(HavePrefix("logs/"), "an agent that another spec has just started anew may have none yet")
		}
		Expect(files).To(HaveKeyWithValue("pools.yaml", ContainSubstring(suite.description.LVMPool+"-"+suite.nodes[0])))
		Expect(files).To(HaveKeyWithValue("pods.yaml", ContainSubstring("berth-node-agent")))
		var logs int
		for name, content := range files {
			if strings.HasSuffix(name, ".log") && content != "" {
				logs++
			}
			Expect(content).NotTo(ContainSubstring("kind: Secret\n"), name)
		}
		Expect(logs).NotTo(BeZero())
	}, SpecTimeout(patience))
})
