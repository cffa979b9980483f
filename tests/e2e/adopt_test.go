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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/tests/workload"
)

// A disk of static local volumes, or of OpenEBS' device volumes, becomes Berth's with
// what is on it.
var _ = Describe("A disk that holds a filesystem since before Berth", Label("disks"), func() {
	BeforeEach(func() { needs(CanPlugDisks); needs(CanExec) })

	DescribeTable("is handed over, used and given back without losing a byte", func(ctx SpecContext, fsType string) {
		uuid := map[string]string{
			"ext4": "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", "xfs": "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a12", "btrfs": "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a13",
		}[fsType]
		flags, sizeBytes := map[string]string{"ext4": "-F -U " + uuid, "xfs": "-f -m uuid=" + uuid, "btrfs": "-f -U " + uuid}[fsType], int64(320)<<20
		mountPoint := "/mnt/e2e-static-" + fsType
		node, disk := suite.nodes[len(suite.nodes)-1], Disk{Serial: "E2E-" + strings.ToUpper(fsType), SizeBytes: sizeBytes}
		plug(ctx, node, disk)
		device := awaitPlugged(ctx, node, disk.Serial)
		path := device.Status.Path
		// As a static provisioner has it: mounted where its pods find it.
		execOn(ctx, node, fmt.Sprintf("mkfs.%[1]s -q %[2]s %[3]s && mkdir -p %[4]s && mount %[3]s %[4]s && echo forty-two >%[4]s/ledger", fsType, flags, path, mountPoint))
		DeferCleanup(func(ctx SpecContext) {
			execOn(ctx, node, fmt.Sprintf("umount %[1]s 2>/dev/null; rmdir %[1]s", mountPoint))
		}, NodeTimeout(time.Minute))
		awaitDisk(ctx, node, disk.Serial, "mounted at "+mountPoint)

		By("handing it over while it is still mounted")
		local := adoption(ctx, device, fsType, uuid)
		awaitReady(ctx, local, metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable)
		Expect(execOn(ctx, node, "cat "+mountPoint+"/ledger")).To(ContainSubstring("forty-two"))
		execOn(ctx, node, "umount "+mountPoint)
		awaitReady(ctx, local, metav1.ConditionTrue, v1alpha1.ReasonCarved)
		Expect(local.Status.FilesystemUUID).To(Equal(uuid))
		Expect(local.Status.Capacity.Value()).To(Equal(sizeBytes))
		awaitDisk(ctx, node, disk.Serial, "held by LocalVolume "+local.Name)

		By("using it in a pod")
		space := newSpace(ctx)
		volume := volumeByHand(ctx, local, space.Namespace)
		message, ran, err := space.RunPod(ctx, workload.Pod{
			Name: "reader", Claims: []string{"data"}, Script: "set -e; cat /data/data/ledger >>/dev/termination-log; echo and one >>/data/data/ledger",
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(ran).To(Equal(node))
		Expect(message).To(ContainSubstring("forty-two"))

		By("giving it back")
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(suite.client.Delete(ctx, volume)).To(Succeed())
		deleteByHand(ctx, local)
		back := awaitDisk(ctx, node, disk.Serial, "given back by LocalVolume "+local.Name)
		Expect(back.Status.ClaimState).To(Equal(v1alpha1.ClaimStateReleased))
		Expect(execOn(ctx, node, fmt.Sprintf("mount %[1]s %[2]s && cat %[2]s/ledger && umount %[2]s", back.Status.Path, mountPoint))).
			To(And(ContainSubstring("forty-two"), ContainSubstring("and one")))

		By("cleaning it by hand")
		execOn(ctx, node, fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d conv=fsync 2>/dev/null", back.Status.Path, sizeBytes>>20))
		free := awaitDisk(ctx, node, disk.Serial, "blank")
		Expect(free.Status.ClaimState).To(Equal(v1alpha1.ClaimStateUnclaimed))
	},
		Entry("ext4", "ext4", SpecTimeout(2*patience)),
		Entry("xfs", "xfs", SpecTimeout(2*patience)),
		Entry("btrfs", "btrfs", SpecTimeout(2*patience)),
	)

	It("is not taken for another", func(ctx SpecContext) {
		node, disk := suite.nodes[len(suite.nodes)-1], Disk{Serial: "E2E-OTHER", SizeBytes: smallDisk}
		plug(ctx, node, disk)
		device := awaitPlugged(ctx, node, disk.Serial)
		execOn(ctx, node, "mkfs.ext4 -q -F "+device.Status.Path)
		awaitDisk(ctx, node, disk.Serial, "holds ext4")
		digest := "sha256sum " + device.Status.Path
		before := execOn(ctx, node, digest)
		local := adoption(ctx, device, "ext4", "00000000-1111-2222-3333-444444444444")
		awaitReady(ctx, local, metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable)
		deleteByHand(ctx, local)
		Expect(execOn(ctx, node, digest)).To(Equal(before))
		still := awaitDisk(ctx, node, disk.Serial, "holds ext4")
		Expect(still.Status.ClaimState).To(Equal(v1alpha1.ClaimStateUnclaimed))
	}, SpecTimeout(patience))
})

// awaitPlugged waits for a disk that may hold what an earlier run has left.
func awaitPlugged(ctx context.Context, node, serial string) (device *v1alpha1.BlockDevice) {
	GinkgoHelper()
	Eventually(func(ctx context.Context) v1alpha1.DeviceState {
		device = awaitDisk(ctx, node, serial, "")
		return device.Status.State
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Equal(v1alpha1.DeviceActive))
	return device
}

// adoption makes a LocalVolume of a disk.
func adoption(ctx context.Context, device *v1alpha1.BlockDevice, fsType, uuid string) *v1alpha1.LocalVolume {
	GinkgoHelper()
	local := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-adopted-" + rand5()},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: device.Spec.NodeName, Mode: v1alpha1.ModeDevice, VolumeMode: v1alpha1.VolumeFilesystem, FSType: fsType,
			SizeBytes: device.Status.SizeBytes, Wipe: v1alpha1.WipeNone,
			Adopt: &v1alpha1.Adoption{Device: device.Name, FilesystemUUID: uuid},
		},
	}
	Expect(suite.client.Create(ctx, local)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { deleteByHand(ctx, local) }, NodeTimeout(time.Minute))
	return local
}

// deleteByHand deletes a LocalVolume that no PersistentVolume needs any more, as the
// docs say, and waits until it is gone.
func deleteByHand(ctx context.Context, local *v1alpha1.LocalVolume) {
	GinkgoHelper()
	allowed := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"berth.dev/allow-delete":"true"}}}`))
	Expect(client.IgnoreNotFound(suite.client.Patch(ctx, local, allowed))).To(Succeed())
	Expect(client.IgnoreNotFound(suite.client.Delete(ctx, local))).To(Succeed())
	Eventually(func(ctx context.Context) bool {
		return apierrors.IsNotFound(suite.client.Get(ctx, client.ObjectKeyFromObject(local), local))
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(BeTrue(), "LocalVolume %s is gone", local.Name)
}

// volumeByHand makes the PersistentVolume of an adopted LocalVolume and the claim
// "data" that is bound to it.
func volumeByHand(ctx context.Context, local *v1alpha1.LocalVolume, namespace string) *corev1.PersistentVolume {
	GinkgoHelper()
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(local.Spec.SizeBytes, resource.BinarySI)}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: local.Name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: v1alpha1.DriverName, VolumeHandle: local.Name, FSType: local.Spec.FSType,
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: v1alpha1.TopologyKeyNode, Operator: corev1.NodeSelectorOpIn, Values: []string{local.Spec.NodeName},
				}},
			}}}},
		},
	}
	Expect(suite.client.Create(ctx, volume)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { _ = suite.client.Delete(ctx, volume) }, NodeTimeout(time.Minute))
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: new(""), VolumeName: volume.Name, AccessModes: modes,
			Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}
	Expect(suite.client.Create(ctx, claim)).To(Succeed())
	return volume
}
