// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
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

		left := leftOver{local}
		By("refusing what has objects")
		left.ask(ctx, left.request())
		DeferCleanup(func(ctx SpecContext) { left.ask(ctx) }, NodeTimeout(time.Minute))
		left.await(ctx, v1alpha1.PurgeRefused)
		left.ask(ctx)

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
		left.ask(ctx, left.request())
		purge := left.await(ctx, v1alpha1.PurgeQuarantined)
		Expect(purge.Holds).To(ContainSubstring(local.Name))
		expectHeld(ctx, local)

		By("confirming it")
		left.confirm(ctx, purge.Token)
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))
})

// leftOver is a logical volume whose objects are gone, named by the LocalVolume that it had.
type leftOver struct{ local *v1alpha1.LocalVolume }

func (l leftOver) request() v1alpha1.PurgeRequest {
	return v1alpha1.PurgeRequest{
		UID: string(l.local.UID), Kind: v1alpha1.LeftOverVolume, Identity: l.local.Status.LVM.VGUUID + "/" + l.local.Status.LVM.LVUUID,
	}
}

// pool is the Pool that has it.
func (l leftOver) pool(ctx context.Context) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{}
	return pool, suite.client.Get(ctx, client.ObjectKey{Name: l.local.Spec.Pool + "-" + l.local.Spec.NodeName}, pool)
}

// ask has the pool's purges be these.
func (l leftOver) ask(ctx context.Context, requests ...v1alpha1.PurgeRequest) {
	GinkgoHelper()
	pool, err := l.pool(ctx)
	Expect(err).NotTo(HaveOccurred())
	patch := client.MergeFrom(pool.DeepCopy())
	pool.Spec.Purge = requests
	Expect(suite.client.Patch(ctx, pool, patch)).To(Succeed())
}

// await waits until its purge has come to a state.
func (l leftOver) await(ctx context.Context, want v1alpha1.PurgeState) v1alpha1.PurgeStatus {
	GinkgoHelper()
	var found v1alpha1.PurgeStatus
	Eventually(func(g Gomega, ctx context.Context) {
		pool, err := l.pool(ctx)
		g.Expect(err).NotTo(HaveOccurred())
		at := slices.IndexFunc(pool.Status.Purges, func(s v1alpha1.PurgeStatus) bool { return s.UID == string(l.local.UID) })
		g.Expect(at).To(BeNumerically(">=", 0), "the purge of %s", l.local.UID)
		found = pool.Status.Purges[at]
		g.Expect(found.State).To(Equal(want), found.Message)
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(time.Second).Should(Succeed())
	return found
}

// confirm ends its quarantine, as a user does.
func (l leftOver) confirm(ctx context.Context, token string) {
	GinkgoHelper()
	Expect(token).NotTo(BeEmpty())
	code, said, complained := runPlugin(ctx, "orphans", "purge", l.local.Spec.NodeName+"/"+l.local.Spec.Pool+"/"+string(l.local.UID), "--confirm="+token, "--yes")
	Expect(code).To(Equal(0), said+complained)
	l.await(ctx, v1alpha1.PurgePurged)
}
