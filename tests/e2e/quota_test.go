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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// overfillScript writes so many MiB, says whether that went well, and how large df takes the
// volume for.
func overfillScript(claim string, mib int) string {
	return fmt.Sprintf(`if dd if=/dev/zero of=%[1]s/%[2]s/file bs=1048576 count=%[3]d conv=fsync 2>/dev/null; then echo fits; else echo fails; fi >/dev/termination-log
df -P -m %[1]s/%[2]s | tail -1 | awk '{print $2}' >>/dev/termination-log`, workload.MountDirectory, claim, mib)
}

// A filesystem of the test's own: the pool of the other specs stays as it is.
var _ = Describe("Directories with quotas", Label("quota"), func() {
	for _, filesystem := range []string{"xfs", "ext4", "btrfs"} {
		// A btrfs costs as much time as the others and is left to the long runs.
		It("end at their size, and grow, on "+filesystem, map[string]Labels{"btrfs": {"long"}}[filesystem], func(ctx SpecContext) {
			needs(CanPlugDisks)
			needs(CanExec)
			node := suite.nodes[len(suite.nodes)-1]
			disk := Disk{Serial: "E2E-QUOTA-" + strings.ToUpper(filesystem), SizeBytes: 512 << 20}
			plug(ctx, node, disk)
			path, root := awaitDisk(ctx, node, disk.Serial, "blank").Status.Path, "/srv/e2e-quota-"+filesystem
			features := map[string]string{"ext4": "-O project,quota", "btrfs": "-O quota"}[filesystem]
			options, shown := "prjquota", func(size string) string { return size }
			if filesystem == "btrfs" { // df shows the filesystem
				options, shown = "defaults", func(string) string { return "512" }
			}
			execOn(ctx, node, fmt.Sprintf("mkfs.%[1]s -q %[2]s %[3]s && mkdir -p %[4]s && mount -o %[5]s %[3]s %[4]s", filesystem, features, path, root, options))
			DeferCleanup(func(ctx SpecContext) {
				execOn(ctx, node, fmt.Sprintf("umount %[1]s && rmdir %[1]s && blkdiscard --zeroout --force %[2]s", root, path))
			}, NodeTimeout(patience))
			set := &v1alpha1.PoolSet{
				ObjectMeta: metav1.ObjectMeta{Name: "e2e-quota-" + filesystem},
				Spec: v1alpha1.PoolSetSpec{
					Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: root},
					NodeSelector: map[string]string{corev1.LabelHostname: node},
				},
			}
			pool := newPool(ctx, set, node)
			Expect(pool.Status.Quota).To(Equal(v1alpha1.QuotaEnforced))
			class := newClass(ctx, map[string]string{"mode": "hostpath", "pool": set.Name, "requireQuota": "true", "retainFor": "1h"})
			space := newSpace(ctx)
			for _, claim := range []string{"small", "neighbour"} {
				_, err := space.CreateClaim(ctx, workload.Claim{Name: claim, Class: class, Size: "32Mi"})
				Expect(err).NotTo(HaveOccurred())
			}

			By("writing more than fits")
			run := func(ctx context.Context, pod, claim string, mib int) []string {
				GinkgoHelper()
				said, _, err := space.RunPod(ctx, workload.Pod{Name: pod, Node: node, Claims: []string{claim}, Script: overfillScript(claim, mib)})
				Expect(err).NotTo(HaveOccurred())
				return strings.Fields(said)
			}
			Expect(run(ctx, "over", "small", 40)).To(Equal([]string{"fails", shown("32")}))
			Expect(run(ctx, "beside", "neighbour", 24)).To(Equal([]string{"fits", shown("32")}))

			By("growing it")
			volume, err := space.AwaitBound(ctx, "small")
			Expect(err).NotTo(HaveOccurred())
			grow(ctx, volumeOf(ctx, volume), 64<<20)
			Expect(run(ctx, "grown", "small", 40)).To(Equal([]string{"fits", shown("64")}))

			By("giving everything back")
			neighbour, err := space.AwaitBound(ctx, "neighbour")
			Expect(err).NotTo(HaveOccurred())
			for _, pod := range []string{"over", "beside", "grown"} {
				Expect(space.DeletePod(ctx, pod)).To(Succeed())
			}
			for claim, name := range map[string]string{"small": volume.Name, "neighbour": neighbour.Name} {
				Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
				Expect(space.AwaitVolumeGone(ctx, name)).To(Succeed())
			}
			Eventually(func(ctx context.Context) (string, error) {
				return suite.hosts.Exec(ctx, node, "ls -A "+root+"/.trash")
			}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(BeEmpty())

			By("taking one back that was deleted")
			Eventually(func(g Gomega, ctx context.Context) {
				g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
				g.Expect(pool.Status.RetainedCount).To(BeEquivalentTo(2))
				g.Expect(pool.Status.Allocated.Value()).To(BeEquivalentTo(96 << 20))
			}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
			wanted := pool.DeepCopy()
			wanted.Spec.TakeBack = []string{volume.Name}
			Expect(suite.client.Patch(ctx, wanted, client.MergeFrom(pool))).To(Succeed())
			Eventually(func(g Gomega, ctx context.Context) {
				g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(pool), pool)).To(Succeed())
				g.Expect(pool.Status.TakenBack).To(HaveLen(1))
				g.Expect(pool.Status.TakenBack[0].Path).To(HavePrefix(root + "/taken-back/"))
			}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
			Expect(execOn(ctx, node, "stat -c %s "+pool.Status.TakenBack[0].Path+"/file")).To(ContainSubstring(fmt.Sprint(40 << 20)))
			removePool(ctx, set, pool)
		}, SpecTimeout(2*patience))
	}
})
