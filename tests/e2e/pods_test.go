// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// What pods may do with claims beside mounting one of them.
var _ = Describe("A pod", Label("pods"), func() {
	It("has many volumes, one of its own, one that no other pod gets, parts of one, and one that it cannot write", func(ctx SpecContext) {
		lvm, block, hostpath := kinds[0], kinds[2], kinds[5]
		for _, kind := range []kind{lvm, block, hostpath} {
			skipWithoutClass(kind)
		}
		space := newSpace(ctx)
		single := lvm.claim("single")
		single.AccessMode = corev1.ReadWriteOncePod
		for _, claim := range []workload.Claim{lvm.claim("parts"), block.claim("raw"), hostpath.claim("directory"), single} {
			_, err := space.CreateClaim(ctx, claim)
			Expect(err).NotTo(HaveOccurred())
		}

		By("writing to all of them from one pod")
		pod := workload.Pod{Name: "many", Claims: []string{"parts", "directory", "single"}, Devices: []string{"raw"}, Script: fmt.Sprintf(`set -e
echo part >/part/file
[ "$(cat %[1]s/parts/one/file)" = part ]
if echo no 2>/dev/null >/readonly/file; then echo "a volume that is mounted to be read was written"; exit 1; fi
[ "$(cat /readonly/one/file)" = part ]
echo own >/ephemeral/file
echo kept >%[1]s/single/file
echo directory >%[1]s/directory/file
dd if=/dev/urandom of=%[2]s/raw bs=65536 count=1 conv=fsync 2>/dev/null
sync
trap 'exit 0' TERM INT
sleep 3600 & wait $!
`, workload.MountDirectory, workload.DeviceDirectory)}.Object(space.Namespace, space.Image)
		container := &pod.Spec.Containers[0]
		container.VolumeMounts = append(container.VolumeMounts,
			corev1.VolumeMount{Name: "parts", MountPath: "/part", SubPath: "one"},
			corev1.VolumeMount{Name: "parts", MountPath: "/readonly", ReadOnly: true},
			corev1.VolumeMount{Name: "own", MountPath: "/ephemeral"})
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "own", VolumeSource: corev1.VolumeSource{
			Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: lvm.claim("").Object("").Spec}},
		}})
		// The script has written all when it sleeps, which the probe waits for.
		container.ReadinessProbe = &corev1.Probe{PeriodSeconds: 2, ProbeHandler: corev1.ProbeHandler{
			Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "pidof sleep"}},
		}}
		Expect(suite.client.Create(ctx, pod)).To(Succeed())
		Expect(space.Await(ctx, pod, func(object client.Object, _ bool) (bool, error) {
			seen := object.(*corev1.Pod)
			if seen.Status.Phase == corev1.PodFailed {
				return false, fmt.Errorf("the pod failed: %s", workload.TerminationMessage(seen))
			}
			return podReady(seen), nil
		})).To(Succeed())

		By("keeping the claim of one pod from another pod")
		second, err := space.CreatePod(ctx, lvm.with(workload.Pod{Name: "second", Script: "cat " + workload.MountDirectory + "/single/file >/dev/termination-log"}, "single"))
		Expect(err).NotTo(HaveOccurred())
		Expect(space.Await(ctx, second, func(object client.Object, _ bool) (bool, error) {
			return slices.ContainsFunc(object.(*corev1.Pod).Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "ReadWriteOncePod")
			}), nil
		})).To(Succeed(), "the second pod of a claim for one pod to wait, and to say why")

		By("taking the pod's own volume away with it")
		own, err := space.AwaitBound(ctx, "many-own")
		Expect(err).NotTo(HaveOccurred())
		local := volumeOf(ctx, own)
		Expect(space.DeletePod(ctx, "many")).To(Succeed())
		expectGone(ctx, local)
		ended, err := space.AwaitPod(ctx, "second", corev1.PodSucceeded)
		Expect(err).NotTo(HaveOccurred())
		Expect(workload.TerminationMessage(ended)).To(HavePrefix("kept"))
	}, SpecTimeout(2*patience))

	It("of a StatefulSet finds its volume again after the set was scaled down, and the volumes go with the set where it says so", func(ctx SpecContext) {
		lvm := kinds[0]
		skipWithoutClass(lvm)
		space := newSpace(ctx)
		template := lvm.claim("data").Object("")
		labels := map[string]string{"app": "set"}
		pod := workload.Pod{Script: "echo $HOSTNAME >>" + workload.MountDirectory + "/data/starts; sync; trap 'exit 0' TERM INT; sleep 3600 & wait $!"}.Object("", space.Image)
		pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: workload.MountDirectory + "/data"}}
		pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 2, ProbeHandler: corev1.ProbeHandler{
			Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "pidof sleep"}},
		}}
		set := &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Name: "set", Namespace: space.Namespace},
			Spec: appsv1.StatefulSetSpec{
				Replicas: ptr.To[int32](2), ServiceName: "set", PodManagementPolicy: appsv1.ParallelPodManagement,
				Selector:             &metav1.LabelSelector{MatchLabels: labels},
				Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
				VolumeClaimTemplates: []corev1.PersistentVolumeClaim{*template},
				PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
					WhenScaled: appsv1.RetainPersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
				},
			},
		}
		Expect(suite.client.Create(ctx, set)).To(Succeed())
		awaitReplicas(ctx, set, 2)
		var locals []*v1alpha1.LocalVolume
		for i := range 2 {
			volume, err := space.AwaitBound(ctx, fmt.Sprintf("data-set-%d", i))
			Expect(err).NotTo(HaveOccurred())
			locals = append(locals, volumeOf(ctx, volume))
		}

		By("scaling down and up again")
		scale(ctx, set, 1)
		awaitReplicas(ctx, set, 1)
		second := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "set-1", Namespace: space.Namespace}}
		Expect(space.Await(ctx, second, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
		kept := volumeOf(ctx, boundVolume(ctx, space, "data-set-1"))
		Expect(kept.UID).To(Equal(locals[1].UID))
		scale(ctx, set, 2)
		awaitReplicas(ctx, set, 2)
		Expect(volumeOf(ctx, boundVolume(ctx, space, "data-set-1")).UID).To(Equal(locals[1].UID))
		again, err := space.AwaitPod(ctx, "set-1", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		if suite.description.Has(CanExec) {
			Expect(execOn(ctx, again.Spec.NodeName, fmt.Sprintf("cat /var/lib/kubelet/pods/%s/volumes/*/*/mount/starts", again.UID))).To(Equal("set-1\nset-1\n"), "what the volume of set-1 holds")
		}

		By("deleting the set, whose claims go with it")
		Expect(space.Delete(ctx, set)).To(Succeed())
		for i, local := range locals {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("data-set-%d", i), Namespace: space.Namespace}}
			Expect(space.Await(ctx, claim, func(_ client.Object, gone bool) (bool, error) { return gone, nil })).To(Succeed())
			expectGone(ctx, local)
		}
	}, SpecTimeout(2*patience))
})

// scale sets how many pods a set shall have.
func scale(ctx context.Context, set *appsv1.StatefulSet, replicas int32) {
	GinkgoHelper()
	patch := client.MergeFrom(set.DeepCopy())
	set.Spec.Replicas = &replicas
	Expect(suite.client.Patch(ctx, set, patch)).To(Succeed())
}

// awaitReplicas waits until a set has as many pods as it is to have, all of them ready.
func awaitReplicas(ctx context.Context, set *appsv1.StatefulSet, replicas int32) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		err := suite.client.Get(ctx, client.ObjectKeyFromObject(set), set)
		g.Expect(apierrors.IsNotFound(err)).To(BeFalse())
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(set.Status.ObservedGeneration).To(Equal(set.Generation))
		g.Expect(set.Status.Replicas).To(Equal(replicas))
		g.Expect(set.Status.ReadyReplicas).To(Equal(replicas))
	}).WithContext(ctx).WithTimeout(patience).WithPolling(time.Second).Should(Succeed())
}
