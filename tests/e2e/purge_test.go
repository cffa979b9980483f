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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kubectl"
	"github.com/berth-dev/berth/tests/workload"
)

var _ = Describe("A left-over", Label("purge", "long"), func() {
	// Serial: other specs look for what no object stands for.
	It("is adopted, and purged in two phases", Serial, func(ctx SpecContext) {
		class := suite.description.Classes.LVMRetain
		if class == "" {
			Skip("the cluster has no StorageClass with reclaimPolicy Retain")
		}
		space := newSpace(ctx)
		claim := kinds[0].claim("left")
		claim.Class = class
		_, err := space.CreateClaim(ctx, claim)
		Expect(err).NotTo(HaveOccurred())
		written, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "writer", Script: kinds[0].writeScript("left")}, "left"))
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
		takeAway := func() {
			GinkgoHelper()
			none := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
			Expect(suite.client.Patch(ctx, volume, none)).To(Succeed())
			Expect(suite.client.Delete(ctx, volume)).To(Succeed())
			patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null,"annotations":{"berth.dev/allow-delete":"true"}}}`))
			Expect(suite.client.Patch(ctx, local, patch)).To(Succeed())
			Expect(suite.client.Delete(ctx, local)).To(Succeed())
			Expect(space.AwaitVolumeGone(ctx, volume.Name)).To(Succeed())
			expectHeld(ctx, local)
		}
		takeAway()
		plugin := func(args ...string) {
			GinkgoHelper()
			var out, errs strings.Builder
			code := kubectl.Run(ctx, append([]string{"orphans"}, args...),
				kubectl.Streams{Out: &out, Err: &errs}, func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.NewCluster(suite.config, "default") })
			Expect(code).To(Equal(0), out.String()+errs.String())
		}

		By("adopting it")
		// As the plugin does when the agent has told of it, which takes minutes.
		former := local
		local = &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "adopted-" + string(former.UID)},
			Spec: v1alpha1.LocalVolumeSpec{
				NodeName: former.Spec.NodeName, Mode: former.Spec.Mode, Pool: former.Spec.Pool, VolumeMode: former.Spec.VolumeMode, FSType: former.Spec.FSType, SizeBytes: former.Spec.SizeBytes,
				Adopt: &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: string(former.UID), Identity: request.Identity}},
			},
		}
		Expect(suite.client.Create(ctx, local)).To(Succeed())
		plugin("adopt", former.Spec.NodeName+"/"+former.Spec.Pool+"/"+string(former.UID), "--claim="+space.Namespace+"/back", "--wait=1m", "--yes")
		size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(former.Spec.SizeBytes, resource.BinarySI)}
		Expect(suite.client.Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: space.Namespace, Name: "back"},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: new(""), VolumeName: local.Name, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: size},
			},
		})).To(Succeed())
		read, _, err := space.RunPod(ctx, kinds[0].with(workload.Pod{Name: "reader", Script: kinds[0].readScript("back")}, "back"))
		Expect(err).NotTo(HaveOccurred())
		Expect(read).To(Equal(written), "what is in the volume")
		volume, err = space.AwaitBound(ctx, "back")
		Expect(err).NotTo(HaveOccurred())
		local = volumeOf(ctx, volume)
		Expect(local.Status.LVM.LVUUID).To(Equal(former.Status.LVM.LVUUID))
		expectGone(ctx, former)
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "back")).To(Succeed())
		takeAway()
		request.UID = string(local.UID)

		By("putting it into quarantine")
		ask(ctx, []v1alpha1.PurgeRequest{request})
		Eventually(state).WithContext(ctx).WithTimeout(2 * time.Minute).Should(Equal(v1alpha1.PurgeQuarantined))
		token := pool.Status.Purges[0].Token
		Expect(token).NotTo(BeEmpty())
		Expect(pool.Status.Purges[0].Holds).To(ContainSubstring(local.Name))
		expectHeld(ctx, local)

		By("confirming it")
		plugin("purge", local.Spec.NodeName+"/"+local.Spec.Pool+"/"+string(local.UID), "--confirm="+token, "--yes")
		Eventually(state).WithContext(ctx).WithTimeout(time.Minute).Should(Equal(v1alpha1.PurgePurged))
		expectGone(ctx, local)
	}, SpecTimeout(2*patience))
})
