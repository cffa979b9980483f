// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A class of several pools", Label("spread"), func() {
	It("makes each volume in the pool with the most room", func(ctx SpecContext) {
		needs(CanPlugDisks)
		needs(CanExec)
		node := suite.nodes[len(suite.nodes)-1]
		// A filesystem that nobody else writes to, so that what is free in the two tells what
		// was promised in each.
		disk := Disk{Serial: "E2E-SPREAD", SizeBytes: 512 << 20}
		plug(ctx, node, disk)
		device := awaitDisk(ctx, node, disk.Serial, "blank").Status.Path
		const top = "/srv/e2e-spread"
		execOn(ctx, node, fmt.Sprintf("mkfs.ext4 -q -O project,quota %[1]s && mkdir -p %[2]s && mount -o prjquota %[1]s %[2]s", device, top))
		DeferCleanup(func(ctx SpecContext) {
			execOn(ctx, node, fmt.Sprintf("umount %[1]s && rmdir %[1]s && blkdiscard --zeroout --force %[2]s", top, device))
		}, NodeTimeout(patience))
		var sets []*v1alpha1.PoolSet
		var pools []*v1alpha1.Pool
		// An agent knows the root of a PoolSet of that name for good, and this one is new.
		names := []string{"e2e-spread-a-" + rand5(), "e2e-spread-b-" + rand5()}
		for _, name := range names {
			set := &v1alpha1.PoolSet{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: v1alpha1.PoolSetSpec{
					Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: top + "/" + name},
					NodeSelector: map[string]string{corev1.LabelHostname: node},
				},
			}
			sets, pools = append(sets, set), append(pools, newPool(ctx, set, node))
		}
		class := newClass(ctx, map[string]string{"mode": "hostpath", "pool": strings.Join(names, ", ")})
		space := newSpace(ctx)

		// The two are on one filesystem: the one with a volume has less left.
		var in []string
		for i := range 2 {
			claim := fmt.Sprintf("data-%d", i)
			_, err := space.CreateClaim(ctx, workload.Claim{Name: claim, Class: class, Size: "64Mi"})
			Expect(err).NotTo(HaveOccurred())
			_, _, err = space.RunPod(ctx, workload.Pod{Name: "writer-" + claim, Node: node, Claims: []string{claim}, Script: overfillScript(claim, 1)})
			Expect(err).NotTo(HaveOccurred())
			pv, err := space.AwaitBound(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
			in = append(in, volumeOf(ctx, pv).Spec.Pool)
			Expect(pv.Spec.CSI.VolumeAttributes).To(HaveKeyWithValue("pool", in[i]))
		}
		Expect(in).To(ConsistOf(names))

		By("giving everything back")
		for i := range 2 {
			claim := fmt.Sprintf("data-%d", i)
			pv, err := space.AwaitBound(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
			Expect(space.DeletePod(ctx, "writer-"+claim)).To(Succeed())
			Expect(space.DeleteClaim(ctx, claim)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, pv.Name)).To(Succeed())
		}
		for i := range sets {
			removePool(ctx, sets[i], pools[i])
		}
	}, SpecTimeout(2*patience))
})
