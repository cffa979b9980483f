// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kubectl"
)

// importer is a person with the rights that the guide names, and no others.
func importer(t *testing.T) client.Client {
	t.Helper()
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "importer"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}},
			{APIGroups: []string{""}, Resources: []string{"nodes", "pods"}, Verbs: []string{"list"}},
			{APIGroups: []string{"storage.k8s.io"}, Resources: []string{"storageclasses"}, Verbs: []string{"list"}},
			{APIGroups: []string{"berth.dev"}, Resources: []string{"poolsets", "pools"}, Verbs: []string{"list"}},
			{APIGroups: []string{"berth.dev"}, Resources: []string{"localvolumes"}, Verbs: []string{"list", "get", "create", "patch"}},
			{APIGroups: []string{""}, Resources: []string{"persistentvolumes"}, Verbs: []string{"list", "get", "patch", "create"}},
			{APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"}, Verbs: []string{"list", "get", "create", "delete"}},
		},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "importer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "importer"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "importer"}},
	}
	for _, o := range []client.Object{role, binding} {
		if err := server.admin.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	config := rest.CopyConfig(server.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "importer"}
	c, err := client.New(config, client.Options{Scheme: server.scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func importing(ctx context.Context, api client.Client, args ...string) (code int, said string) {
	var out, errs strings.Builder
	code = kubectl.Run(ctx, append([]string{"import", "local-path"}, args...), kubectl.Streams{Out: &out, Err: &errs},
		func(kubectl.Options) (kubectl.Cluster, error) { return kubectl.Cluster{Client: api}, nil })
	return code, out.String() + errs.String()
}

// serveImport does what the node's agent and Kubernetes' controllers of claims would.
func serveImport(ctx context.Context, t *testing.T) {
	volume, claim := &v1alpha1.LocalVolume{}, &corev1.PersistentVolumeClaim{}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := server.admin.Get(ctx, client.ObjectKey{Name: "pvc-old-berth"}, volume); err == nil && len(volume.Status.Conditions) == 0 {
			volume.Status.Capacity = resource.NewQuantity(volume.Spec.SizeBytes, resource.BinarySI)
			meta.SetStatusCondition(&volume.Status.Conditions, metav1.Condition{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCarved, Message: "the volume stands"})
			if err := server.admin.Status().Update(ctx, volume); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
		if err := server.admin.Get(ctx, client.ObjectKey{Namespace: "default", Name: "imported"}, claim); err != nil {
			continue
		}
		if claim.DeletionTimestamp != nil && len(claim.Finalizers) > 0 {
			claim.Finalizers = nil
			if err := client.IgnoreNotFound(server.admin.Update(ctx, claim)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		} else if claim.DeletionTimestamp == nil && claim.Status.Phase != corev1.ClaimBound {
			claim.Status.Phase = corev1.ClaimBound
			if err := server.admin.Status().Update(ctx, claim); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}
}

// oldVolume makes a claim and its volume of local-path-provisioner, and what is needed to move
// it.
func oldVolume(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	create := func(o client.Object) {
		t.Helper()
		if err := server.admin.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "importing", Labels: map[string]string{corev1.LabelHostname: "importing"}}})
	agent := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "agent-importing", Labels: map[string]string{"app.kubernetes.io/name": "berth-node-agent"}},
		Spec:       corev1.PodSpec{NodeName: "importing", Containers: []corev1.Container{{Name: "agent", Image: "x"}}},
	}
	create(agent)
	agent.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if err := server.admin.Status().Update(ctx, agent); err != nil {
		t.Fatal(err)
	}
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}
	modes, class := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, "old-local-path"
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "imported", Labels: map[string]string{"app": "db"}},
		Spec:       corev1.PersistentVolumeClaimSpec{AccessModes: modes, StorageClassName: &class, VolumeName: "pvc-old", Resources: corev1.VolumeResourceRequirements{Requests: size}},
	}
	create(claim)
	claim.Status.Phase = corev1.ClaimBound
	if err := server.admin.Status().Update(ctx, claim); err != nil {
		t.Fatal(err)
	}
	create(&corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-old", Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "rancher.io/local-path"}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: modes, StorageClassName: class, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{Namespace: "default", Name: "imported", UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/opt/local-path-provisioner/pvc-old_default_imported"}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"importing"}}},
			}}}},
		},
	})
	create(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "rancher.io/local-path"})
	create(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "local-path-config"},
		Data:       map[string]string{"config.json": `{"nodePathMap":[{"node":"importing","paths":["/opt/local-path-provisioner"]}]}`},
	})
}

// A person with no more rights than the guide names moves a volume, past the API server's
// validation and defaults.
func TestImportLocalPath(t *testing.T) {
	t.Parallel()
	oldVolume(t)
	api := importer(t)
	ctx := t.Context()
	code, said := importing(ctx, api)
	if code != 0 || !strings.Contains(said, "name: opt-local-path-provisioner") {
		t.Fatalf("exit code %d: %s", code, said)
	}
	objects, err := decodeManifests(strings.NewReader(said))
	if err != nil || len(objects) != 2 {
		t.Fatalf("%d manifests, %v: %s", len(objects), err, said)
	}
	for _, o := range objects {
		if err := server.admin.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "opt-local-path-provisioner-importing"},
		Spec:       v1alpha1.PoolSpec{NodeName: "importing", PoolSetName: "opt-local-path-provisioner", Kind: v1alpha1.PoolHostpath},
	}
	if err := server.admin.Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	meta.SetStatusCondition(&pool.Status.Conditions, metav1.Condition{Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonPoolReady, Message: "volumes can be made"})
	if err := server.admin.Status().Update(ctx, pool); err != nil {
		t.Fatal(err)
	}

	if code, said := importing(ctx, api, "default/imported"); code != 0 || !strings.Contains(said, "Nothing was changed") {
		t.Fatalf("exit code %d: %s", code, said)
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveImport(serving, t)
	}()
	for range 2 {
		if code, said := importing(ctx, api, "default/imported", "--yes", "--timeout=30s"); code != 0 || !strings.Contains(said, "Moved") {
			t.Errorf("exit code %d: %s", code, said)
			break
		}
	}
	stop()
	<-served
	claim, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	if err := server.admin.Get(ctx, client.ObjectKey{Namespace: "default", Name: "imported"}, claim); err != nil || claim.Spec.VolumeName != "pvc-old-berth" || claim.Labels["app"] != "db" {
		t.Errorf("the claim is %+v, %v", claim, err)
	}
	if err := server.admin.Get(ctx, client.ObjectKey{Name: "pvc-old"}, pv); err != nil || pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		t.Errorf("the old volume is %+v, %v", pv, err)
	}
}
