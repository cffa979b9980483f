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
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kubectl"
	"github.com/berth-dev/berth/tests/workload"
)

// The objects are those that local-path-provisioner makes.
var _ = Describe("A volume of local-path-provisioner", Label("import"), func() {
	It("is moved without copying, not under a pod, and kept when it is deleted", func(ctx SpecContext) {
		needs(CanExec)
		node, top := suite.nodes[0], "/opt/e2e-local-path"
		DeferCleanup(func(ctx SpecContext) { execOn(ctx, node, "rm -rf "+top) }, NodeTimeout(time.Minute))
		execOn(ctx, node, "rm -rf "+top)
		set := &v1alpha1.PoolSet{
			ObjectMeta: metav1.ObjectMeta{Name: "e2e-import"},
			Spec: v1alpha1.PoolSetSpec{
				Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: top + "/berth"}, NodeSelector: map[string]string{corev1.LabelHostname: node},
			},
		}
		pool := newPool(ctx, set, node)
		class := newClass(ctx, map[string]string{"mode": "hostpath", "pool": set.Name})
		space := newSpace(ctx)
		old := localPathVolume(ctx, space.Namespace, node, top)
		run := func(args ...string) (code int, said string) {
			var out, errs strings.Builder
			args = append([]string{"import", "local-path", space.Namespace + "/data", "--provisioner=e2e.rancher.io/local-path", "--storage-class=" + class, "--timeout=1m"}, args...)
			code = kubectl.Run(ctx, args, kubectl.Streams{Out: &out, Err: &errs}, func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.NewCluster(suite.config, "default") })
			return code, out.String() + errs.String()
		}

		By("refusing it under a pod")
		_, err := space.CreatePod(ctx, workload.Pod{Name: "writer", Claims: []string{"data"}, Script: "echo forty-two >/data/data/ledger; trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"})
		Expect(err).NotTo(HaveOccurred())
		_, err = space.AwaitPod(ctx, "writer", corev1.PodRunning)
		Expect(err).NotTo(HaveOccurred())
		code, said := run("--yes")
		Expect(code).To(Equal(1), said)
		Expect(said).To(ContainSubstring("pods use claim"))
		local := &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: old.Name + "-berth"},
			Spec: v1alpha1.LocalVolumeSpec{
				NodeName: node, Mode: v1alpha1.ModeHostpath, Pool: set.Name, VolumeMode: v1alpha1.VolumeFilesystem, SizeBytes: 64 << 20, Wipe: v1alpha1.WipeNone,
				Adopt: &v1alpha1.Adoption{Directory: old.Spec.HostPath.Path},
			},
		}
		Expect(suite.client.Create(ctx, local)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { deleteByHand(ctx, local) }, NodeTimeout(time.Minute))
		awaitReady(ctx, local, metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable)
		Expect(meta.FindStatusCondition(local.Status.Conditions, v1alpha1.LocalVolumeReady).Message).To(ContainSubstring("has it mounted at /data/data"))
		Expect(execOn(ctx, node, "cat "+old.Spec.HostPath.Path+"/ledger")).To(ContainSubstring("forty-two"))

		By("moving it")
		before := execOn(ctx, node, "stat -c %i "+old.Spec.HostPath.Path)
		Expect(space.DeletePod(ctx, "writer")).To(Succeed())
		code, said = run("--yes")
		Expect(code).To(Equal(0), said)
		Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(local), local)).To(Succeed())
		at := fmt.Sprintf("%s/berth/volumes/%s", top, local.UID)
		Expect(execOn(ctx, node, "stat -c %i "+at)).To(Equal(before))
		message, ran, err := space.RunPod(ctx, workload.Pod{Name: "reader", Claims: []string{"data"}, Script: "cat /data/data/ledger >/dev/termination-log; echo and one >>/data/data/ledger"})
		Expect(err).NotTo(HaveOccurred())
		Expect(ran).To(Equal(node))
		Expect(message).To(ContainSubstring("forty-two"))

		By("deleting it")
		Expect(space.DeletePod(ctx, "reader")).To(Succeed())
		Expect(space.DeleteClaim(ctx, "data")).To(Succeed())
		Expect(space.AwaitVolumeGone(ctx, local.Name)).To(Succeed())
		Expect(execOn(ctx, node, "cat "+top+"/berth/taken-back/*/ledger")).To(And(ContainSubstring("forty-two"), ContainSubstring("and one")))
		removePool(ctx, set, pool)
	}, SpecTimeout(2*patience))
})

// localPathVolume makes a directory of a node, a PersistentVolume like local-path-provisioner's,
// and the claim "data" that is bound to it.
func localPathVolume(ctx context.Context, namespace, node, top string) *corev1.PersistentVolume {
	GinkgoHelper()
	class, size := "e2e-no-such-class", corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}
	modes, kind := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, corev1.HostPathDirectoryOrCreate
	name := "pvc-" + namespace
	directory := fmt.Sprintf("%s/%s_%s_data", top, name, namespace)
	execOn(ctx, node, "mkdir -m 0777 -p "+directory)
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
			"pv.kubernetes.io/provisioned-by": "e2e.rancher.io/local-path", "local.path.provisioner/selected-node": node,
		}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, StorageClassName: class,
			ClaimRef:               &corev1.ObjectReference{Namespace: namespace, Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: directory, Type: &kind}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
	}
	Expect(suite.client.Create(ctx, volume)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { _ = suite.client.Delete(ctx, volume) }, NodeTimeout(time.Minute))
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, VolumeName: volume.Name, AccessModes: modes, Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}
	Expect(suite.client.Create(ctx, claim)).To(Succeed())
	return volume
}
