// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kubectl"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A left-over", Label("purge", "long"), func() {
	// Serial: other specs look for what no object stands for.
	It("is purged in two phases", Serial, func(ctx SpecContext) {
		class := suite.description.Classes.LVMRetain
		if class == "" {
			Skip("the cluster has no StorageClass with reclaimPolicy Retain")
		}
		space := newSpace(ctx)
		claim := kinds[0].claim("left")
		claim.Class = class
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		_, _, err = space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "writer", Script: kinds[0].writeScript("left")}, "left"))
		Expect(err).NotTo(HaveOccurred())
		volume, err := space.AwaitBound(ctx, "left")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, volume)
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "left")).To(Succeed())

		pool := &v1alpha1.Pool{}
		key := client.ObjectKey{Name: local.Spec.Pool + "-" + local.Spec.NodeName}
		ask := func(ctx context.Context, requests []v1alpha1.PurgeRequest) {
			GinkgoHelper()
			Expect(suite.client.Get(ctx, key, pool)).To(Succeed())
			patch := client.MergeFrom(pool.DeepCopy())
			pool.Spec.Purge = requests
			Expect(suite.client.Patch(ctx, pool, patch)).To(Succeed())
		}
		state := func(ctx context.Context) (v1alpha1.PurgeState, error) {
			err := suite.client.Get(ctx, key, pool)
			for _, s := range pool.Status.Purges {
				if s.UID == string(local.UID) {
					return s.State, err
				}
			}
			return "", err
		}
		request := v1alpha1.PurgeRequest{UID: string(local.UID), Kind: v1alpha1.LeftOverVolume, Identity: local.Status.LVM.VGUUID + "/" + local.Status.LVM.LVUUID}

		By("refusing what has objects")
		ask(ctx, []v1alpha1.PurgeRequest{request})
		DeferCleanup(func(ctx SpecContext) { ask(ctx, nil) }, NodeTimeout(time.Minute))
		Eventually(state).WithContext(ctx).WithTimeout(time.Minute).Should(Equal(v1alpha1.PurgeRefused))
		ask(ctx, nil)

		By("taking its objects away by force")
		none := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		Expect(suite.client.Patch(ctx, volume, none)).To(Succeed())
		Expect(suite.client.Delete(ctx, volume)).To(Succeed())
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null,"annotations":{"berth.dev/allow-delete":"true"}}}`))
		Expect(suite.client.Patch(ctx, local, patch)).To(Succeed())
		Expect(suite.client.Delete(ctx, local)).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
		expectHeld(ctx, local)

		By("putting it into quarantine")
		ask(ctx, []v1alpha1.PurgeRequest{request})
		Eventually(state).WithContext(ctx).WithTimeout(2 * time.Minute).Should(Equal(v1alpha1.PurgeQuarantined))
		token := pool.Status.Purges[0].Token
		Expect(token).NotTo(BeEmpty())
		Expect(pool.Status.Purges[0].Holds).To(ContainSubstring(local.Name))
		expectHeld(ctx, local)

		By("confirming it")
		var out, errs strings.Builder
		code := kubectl.Run(ctx, []string{"orphans", "purge", local.Spec.NodeName + "/" + local.Spec.Pool + "/" + string(local.UID), "--confirm=" + token, "--yes"},
			kubectl.Streams{Out: &out, Err: &errs}, func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.NewCluster(suite.config, "default") })
		Expect(code).To(Equal(0), out.String()+errs.String())
		Eventually(state).WithContext(ctx).WithTimeout(time.Minute).Should(Equal(v1alpha1.PurgePurged))
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))
})
