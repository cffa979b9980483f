// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// definitions reads deploy/crds.
func definitions(t *testing.T) []*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(deploy, "crds", "berth.dev_*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions (%v)", err)
	}
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		definition := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(content, definition); err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		all = append(all, definition)
	}
	return all
}

// unknown is a field that no program of today knows.
const unknown = "unknownToday"

// addUnknown puts the field into the schema of an object, below path.
func addUnknown(root *apiextensionsv1.JSONSchemaProps, path ...string) {
	if len(path) == 0 {
		root.Properties[unknown] = apiextensionsv1.JSONSchemaProps{Type: "string"}
		return
	}
	below := root.Properties[path[0]]
	addUnknown(&below, path[1:]...)
	root.Properties[path[0]] = below
}

// defineTomorrow has the apiserver know a field in spec and status of each kind, and beside
// the claim of a disk, as the definitions of a newer version do while older programs run.
// They stay for the rest of the suite, which does not use them.
func defineTomorrow(t *testing.T) {
	t.Helper()
	for _, tomorrow := range definitions(t) {
		today := &unstructured.Unstructured{}
		today.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
		today.SetName(tomorrow.Name)
		root := tomorrow.Spec.Versions[0].Schema.OpenAPIV3Schema
		for _, part := range []string{"spec", "status"} {
			if _, has := root.Properties[part]; has {
				addUnknown(root, part)
			}
		}
		if tomorrow.Spec.Names.Kind == "BlockDevice" {
			addUnknown(root, "spec", "claimRef")
		}
		patch := client.MergeFrom(today.DeepCopy())
		spec, err := asMap(tomorrow.Spec)
		if err != nil {
			t.Fatal(err)
		}
		today.Object["spec"] = spec
		if err := server.admin.Patch(t.Context(), today, patch); err != nil {
			t.Fatal(err)
		}
	}
	strict := client.WithFieldValidation(server.admin, "Strict")
	eventually(t, "the apiserver knows the new fields", func() bool {
		for _, object := range []client.Object{blockDevice("bd-tomorrow", "tomorrow"), localVolume("lv-tomorrow", "tomorrow")} {
			if err := strict.Create(t.Context(), withUnknown(t, object, "spec"), client.DryRunAll); err != nil {
				return false
			}
		}
		return true
	})
}

func asMap(of any) (map[string]any, error) {
	data, err := yaml.Marshal(of)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	return fields, yaml.Unmarshal(data, &fields)
}

// withUnknown is an object with the field that nobody knows, below path.
func withUnknown(t *testing.T, object client.Object, path ...string) *unstructured.Unstructured {
	t.Helper()
	fields, err := asMap(object)
	if err != nil {
		t.Fatal(err)
	}
	gvk, err := server.admin.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: fields}
	u.SetGroupVersionKind(gvk)
	if err := unstructured.SetNestedField(u.Object, "kept", append(slices.Clone(path), unknown)...); err != nil {
		t.Fatal(err)
	}
	return u
}

// setUnknown gives a Pool or LocalVolume that is there the field in spec and status.
func setUnknown(t *testing.T, object client.Object) {
	t.Helper()
	field := `{"` + unknown + `":"kept"}`
	if err := server.admin.Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(`{"spec":`+field+`}`))); err != nil {
		t.Fatal(err)
	}
	if err := server.admin.Status().Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(`{"status":`+field+`}`))); err != nil {
		t.Fatal(err)
	}
}

// keeps fails the test unless the field is there, below each path.
func keeps(t *testing.T, object client.Object, paths ...[]string) {
	t.Helper()
	gvk, err := server.admin.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(object), u); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		value, _, err := unstructured.NestedString(u.Object, append(slices.Clone(path), unknown)...)
		if err != nil || value != "kept" {
			t.Errorf("%s %s: what is not known was dropped from %v (%v): %v", gvk.Kind, u.GetName(), path, err, u.Object)
		}
	}
}

var (
	inSpec   = []string{"spec"}
	inStatus = []string{"status"}
	inClaim  = []string{"spec", "claimRef"}
)

// keepsWhatItDoesNotKnow makes an agent write a disk, a pool and a volume whose fields it
// does not know all of, in a pool of directories that stands.
func (a *agentProcess) keepsWhatItDoesNotKnow(lv *v1alpha1.LocalVolume, pool *v1alpha1.Pool) {
	a.t.Helper()
	disk := blockDevice("bd-of-tomorrow-"+a.node, a.node)
	disk.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: "Pool", Name: "tomorrow-" + a.node, UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
	of := withUnknown(a.t, disk, inSpec...)
	for _, path := range [][]string{inStatus, inClaim} {
		if err := unstructured.SetNestedField(of.Object, "kept", append(slices.Clone(path), unknown)...); err != nil {
			a.t.Fatal(err)
		}
	}
	if err := server.admin.Create(a.t.Context(), of); err != nil {
		a.t.Fatal(err)
	}
	setUnknown(a.t, pool)
	setUnknown(a.t, lv)
	more := a.newDirectory(lv.Name+"-more", lv.Spec.Pool)
	grow := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"sizeBytes":2097152}}`))
	if err := server.admin.Patch(a.t.Context(), lv, grow); err != nil {
		a.t.Fatal(err)
	}

	a.eventually("the disk is gone", func() bool { return exists(a.t, disk, disk.Name) && disk.Status.State == v1alpha1.DeviceInactive })
	keeps(a.t, disk, inSpec, inStatus, inClaim)
	a.eventually("the pool counts another volume", func() bool { return exists(a.t, pool, pool.Name) && pool.Status.VolumeCount > 1 })
	keeps(a.t, pool, inSpec, inStatus)
	a.eventually("the volume has grown", func() bool {
		return exists(a.t, lv, lv.Name) && lv.Status.Capacity != nil && lv.Status.Capacity.Cmp(resource.MustParse("2Mi")) >= 0
	})
	keeps(a.t, lv, inSpec, inStatus)
	if err := as(a.t, provisioner, "").Delete(a.t.Context(), more); err != nil {
		a.t.Fatal(err)
	}
	a.eventually("it is gone", func() bool { return !exists(a.t, more, more.Name) })
}

// Who writes an object whole writes it without what he does not know: nobody may.
func TestNobodyWritesAnObjectWhole(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"node-agent.yaml", "provisioner.yaml"} {
		writes := 0
		for _, role := range ofKind[rbacv1.ClusterRole](t, "rbac/"+file, "ClusterRole") {
			for _, rule := range role.Rules {
				if !slices.Contains(rule.APIGroups, v1alpha1.GroupVersion.Group) {
					continue
				}
				if slices.Contains(rule.Verbs, "update") {
					t.Errorf("%s allows to update %v: patch them, so that fields of newer versions stay", file, rule.Resources)
				}
				if slices.Contains(rule.Verbs, "patch") {
					writes++
				}
			}
		}
		if writes == 0 {
			t.Errorf("%s allows to patch nothing of Berth's", file)
		}
	}
}
