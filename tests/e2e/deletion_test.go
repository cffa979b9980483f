// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

const secret = "the-previous-owner-wrote-this"

var _ = Describe("Deletion", Label("deletion"), func() {
	for _, kind := range kinds {
		if !kind.block {
			continue
		}
		// Serial: the second claim is to get what the first one had.
		It("leaves nothing that the next owner of "+kind.name+" could read", Serial, func(ctx SpecContext) {
			skipWithoutClass(kind)
			space := newSpace(ctx)
			node := suite.nodes[0]
			_, err := space.CreateClaim(ctx, kind.claim("first"))
			Expect(err).NotTo(HaveOccurred())
			// A line of exactly 32 bytes, over and over, through 8 MiB.
			_, _, err = space.RunPod(ctx, kind.with(workload.Pod{Name: "owner", Node: node, Script: fmt.Sprintf(
				`set -e; l="%s.."; b=; i=0; while [ $i -lt 128 ]; do b="$b$l
"; i=$((i+1)); done; i=0; while [ $i -lt 256 ]; do echo "$b"; i=$((i+1)); done >/tmp/lines
dd if=/tmp/lines of=%s bs=65536 conv=fsync 2>/dev/null`, secret, kind.place("first"))}, "first"))
			Expect(err).NotTo(HaveOccurred())
			volume, err := space.AwaitBound(ctx, "first")
			Expect(err).NotTo(HaveOccurred())
			Expect(space.DeleteClaim(ctx, "first")).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
			expectNothingLeft(ctx)

			_, err = space.CreateClaim(ctx, kind.claim("second"))
			Expect(err).NotTo(HaveOccurred())
			found, _, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "heir", Node: node, Script: fmt.Sprintf(
				`dd if=%s bs=65536 count=512 2>/dev/null | grep -c %s >/dev/termination-log; true`, kind.place("second"), secret)}, "second"))
			Expect(err).NotTo(HaveOccurred())
			Expect(strings.TrimSpace(found)).To(Equal("0"), "lines of the first owner that the second one finds")
		}, SpecTimeout(2*patience))
	}

	It("keeps everything when the class says Retain", func(ctx SpecContext) {
		class := suite.description.Classes.LVMRetain
		if class == "" {
			Skip("the cluster has no StorageClass with reclaimPolicy Retain")
		}
		space := newSpace(ctx)
		kind := kinds[0]
		claim := kind.claim("kept")
		claim.Class = class
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		digest, node, err := space.RunPod(ctx, kind.with(workload.Pod{Name: "writer", Script: kind.writeScript("kept")}, "kept"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "kept")
		Expect(err).NotTo(HaveOccurred())
		Expect(space.DeleteClaim(ctx, "kept")).To(Succeed())
		Expect(space.Await(ctx, volume, func(object client.Object, gone bool) (bool, error) {
			if gone {
				return false, fmt.Errorf("PersistentVolume %s is gone", volume.Name)
			}
			return object.(*corev1.PersistentVolume).Status.Phase == corev1.VolumeReleased, nil
		})).To(Succeed())
		Expect(volumeOf(ctx, volume).DeletionTimestamp).To(BeNil())

		By("giving the volume to a new claim, which reads the old bytes")
		patch := client.MergeFrom(volume.DeepCopy())
		volume.Spec.ClaimRef = nil
		Expect(suite.client.Patch(ctx, volume, patch)).To(Succeed())
		heir := claim.Object(space.Namespace)
		heir.Name = "heir"
		heir.Spec.VolumeName = volume.Name
		Expect(suite.client.Create(ctx, heir)).To(Succeed())
		read, where, err := space.RunPod(ctx, workload.Pod{Name: "reader", Claims: []string{"heir"}, Script: kind.readScript("heir")})
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(digest))
		Expect(where).To(Equal(node))

		By("taking it away for good, by the policy Delete")
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(volume), volume)).To(Succeed())
		patch = client.MergeFrom(volume.DeepCopy())
		volume.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		Expect(suite.client.Patch(ctx, volume, patch)).To(Succeed())
		local := volumeOf(ctx, volume)
		Expect(space.DeleteClaim(ctx, "heir")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))

	It("of a LocalVolume by hand is refused while a claim uses it", func(ctx SpecContext) {
		space := newSpace(ctx)
		_, err := space.CreateClaim(ctx, kinds[5].claim("mine"))
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, workload.Pod{Name: "once", Claims: []string{"mine"}, Script: "true"})
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "mine")
		Expect(err).NotTo(HaveOccurred())
		local := &v1alpha1.LocalVolume{}
		local.Name = volume.Spec.CSI.VolumeHandle
		err = suite.client.Delete(ctx, local)
		Expect(err).To(HaveOccurred())
		Expect(err.Error()).To(ContainSubstring("PersistentVolumeClaim"), "the refusal says what to delete instead")
	}, SpecTimeout(patience))
})
