// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// groupOfTomorrow has copies of the definitions, so that the suite's own stay as they are.
	groupOfTomorrow = "tomorrow.berth.dev"
	versionOfToday  = "v1alpha1"
	nextVersion     = "v1beta1"
)

// rehearsal is one kind that gets another version.
type rehearsal struct {
	t          *testing.T
	definition *apiextensionsv1.CustomResourceDefinition
	admin      client.Client // of definitions
	objects    dynamic.Interface
	before     *unstructured.Unstructured
}

// newRehearsal defines a copy of a kind, of which example is to be one.
func newRehearsal(t *testing.T, admin client.Client, objects dynamic.Interface, of *apiextensionsv1.CustomResourceDefinition, example client.Object) *rehearsal {
	t.Helper()
	d := of.DeepCopy()
	d.Name, d.Spec.Group = d.Spec.Names.Plural+"."+groupOfTomorrow, groupOfTomorrow
	if err := admin.Create(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Delete(context.Background(), d) })
	fields, err := asMap(example)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{Object: fields}
	object.SetAPIVersion(groupOfTomorrow + "/" + versionOfToday)
	object.SetKind(d.Spec.Names.Kind)
	return &rehearsal{t: t, definition: d, admin: admin, objects: objects, before: object}
}

// begin makes the object, as soon as the kind is served.
func (r *rehearsal) begin() {
	r.t.Helper()
	eventually(r.t, r.definition.Name+" is served", func() bool {
		_, err := r.in(versionOfToday).Create(r.t.Context(), r.before, metav1.CreateOptions{})
		return err == nil
	})
	if status, has := r.before.Object["status"]; has && r.definition.Spec.Versions[0].Subresources.Status != nil {
		r.patch(versionOfToday, map[string]any{"status": status}, "status")
	}
	r.before = r.read(versionOfToday)
}

func (r *rehearsal) in(version string) dynamic.ResourceInterface {
	return r.objects.Resource(schema.GroupVersionResource{Group: groupOfTomorrow, Version: version, Resource: r.definition.Spec.Names.Plural})
}

const exampleName = "example-of-today"

func (r *rehearsal) patch(version string, fields map[string]any, subresource ...string) {
	r.t.Helper()
	data, err := json.Marshal(fields)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.in(version).Patch(r.t.Context(), exampleName, types.MergePatchType, data, metav1.PatchOptions{}, subresource...); err != nil {
		r.t.Fatalf("patch %s in %s: %v", r.definition.Name, version, err)
	}
}

// change edits the definition. The apiserver takes it in a while later.
func (r *rehearsal) change(edit func(*apiextensionsv1.CustomResourceDefinition)) {
	r.t.Helper()
	base := r.definition.DeepCopy()
	edit(r.definition)
	if err := r.admin.Patch(r.t.Context(), r.definition, client.MergeFrom(base)); err != nil {
		r.t.Fatalf("change %s: %v", r.definition.Name, err)
	}
}

// awaitServed waits until a version is served, or is not any more.
func (r *rehearsal) awaitServed(version string, served bool) {
	r.t.Helper()
	eventually(r.t, r.definition.Name+" is changed", func() bool {
		_, err := r.in(version).Get(r.t.Context(), exampleName, metav1.GetOptions{})
		return (err == nil) == served
	})
}

func (r *rehearsal) read(version string) *unstructured.Unstructured {
	r.t.Helper()
	object, err := r.in(version).Get(r.t.Context(), exampleName, metav1.GetOptions{})
	if err != nil {
		r.t.Fatalf("read %s in %s: %v", r.definition.Name, version, err)
	}
	return object
}

// holds fails the test unless the object is in that version what it was in the first.
func (r *rehearsal) holds(version string) {
	r.t.Helper()
	now := r.read(version)
	if version != now.GroupVersionKind().Version {
		r.t.Errorf("%s was asked for in %s and came in %s", r.definition.Name, version, now.GetAPIVersion())
	}
	for _, part := range []string{"spec", "status"} {
		if !equality.Semantic.DeepEqual(now.Object[part], r.before.Object[part]) {
			r.t.Errorf("%s of %s in %s is %v, was %v", part, r.definition.Name, version, now.Object[part], r.before.Object[part])
		}
	}
}

// rehearsalClients are of an administrator: for definitions, and for objects of any version.
func rehearsalClients(t *testing.T) (definitions client.Client, objects dynamic.Interface) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	definitions, err := client.New(server.config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	if objects, err = dynamic.NewForConfig(server.config); err != nil {
		t.Fatal(err)
	}
	return definitions, objects
}

// examples has an object of each kind.
func examples() map[string]client.Object {
	disk := blockDevice(exampleName, "tomorrow")
	disk.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: "Pool", Name: "fast-tomorrow", UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}
	disk.Status = v1alpha1.BlockDeviceStatus{Path: "/dev/vdb", SizeBytes: 1 << 30, ClaimState: v1alpha1.ClaimStateClaimed, State: v1alpha1.DeviceActive}
	volume := localVolume(exampleName, "tomorrow")
	volume.Status.MachineID, volume.Status.Formatted = "0123456789abcdef0123456789abcdef", true
	volume.Status.LVM = &v1alpha1.LVMRecord{VGName: "berth-fast", VGUUID: "g", LVName: "v", LVUUID: "u"}
	set := &v1alpha1.PoolSet{Spec: v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolLVM, DeviceSelector: &v1alpha1.DeviceSelector{Serials: []string{"FAST-*"}}}}
	set.Name = exampleName
	pool := &v1alpha1.Pool{Spec: v1alpha1.PoolSpec{NodeName: "tomorrow", PoolSetName: "fast", Kind: v1alpha1.PoolLVM, Evacuate: []string{"bd-1"}}}
	pool.Name = exampleName
	pool.Status = v1alpha1.PoolStatus{State: v1alpha1.PoolHealthy, Type: "linear", VolumeCount: 3}
	return map[string]client.Object{
		"BlockDevice": disk, "LocalVolume": volume, "LocalSnapshot": localSnapshot(exampleName, "tomorrow"), "PoolSet": set, "Pool": pool,
	}
}

// Another version of the API needs no webhook as long as it has the same fields
// (docs/adr/0028-another-version-has-the-same-fields.md): the kinds of today get one, it
// becomes the one that is stored, everything is stored anew, and the first is given up.
func TestAnotherVersionOfTheAPI(t *testing.T) {
	t.Parallel()
	admin, objects := rehearsalClients(t)
	var all []*rehearsal
	for _, d := range definitions(t) {
		if len(d.Spec.Versions) != 1 || d.Spec.Versions[0].Name != versionOfToday || d.Spec.Conversion != nil {
			t.Fatalf("%s has the versions %v: this rehearsal is for one, with the next to come", d.Name, d.Spec.Versions)
		}
		example, has := examples()[d.Spec.Names.Kind]
		if !has {
			t.Fatalf("there is no example of a %s", d.Spec.Names.Kind)
		}
		all = append(all, newRehearsal(t, admin, objects, d, example))
	}
	for _, r := range all {
		r.begin()
	}
	for _, r := range all {
		r.change(func(d *apiextensionsv1.CustomResourceDefinition) {
			next := *d.Spec.Versions[0].DeepCopy()
			next.Name = nextVersion
			d.Spec.Versions[0].Storage = false
			d.Spec.Versions = append(d.Spec.Versions, next)
		})
	}
	for _, r := range all {
		r.awaitServed(nextVersion, true)
		r.holds(nextVersion)
		r.holds(versionOfToday)
		// Any write stores it anew; programs of either version may make it.
		r.patch(versionOfToday, map[string]any{"metadata": map[string]any{"labels": map[string]any{"stored": "anew"}}})
		r.holds(nextVersion)
		if err := admin.Get(t.Context(), client.ObjectKeyFromObject(r.definition), r.definition); err != nil {
			t.Fatal(err)
		}
		if stored := r.definition.Status.StoredVersions; !slices.Equal(stored, []string{versionOfToday, nextVersion}) {
			t.Errorf("%s is stored in %v", r.definition.Name, stored)
		}
		base := r.definition.DeepCopy()
		r.definition.Status.StoredVersions = []string{nextVersion}
		if err := admin.Status().Patch(t.Context(), r.definition, client.MergeFrom(base)); err != nil {
			t.Fatal(err)
		}
		r.change(func(d *apiextensionsv1.CustomResourceDefinition) { d.Spec.Versions = d.Spec.Versions[1:] })
	}
	for _, r := range all {
		r.awaitServed(versionOfToday, false)
		r.holds(nextVersion)
	}
}

// Why both versions need the same fields: what only one of them has is lost when somebody
// writes by the other, also when he patches something else.
func TestAFieldOfOneVersionIsLostByTheOther(t *testing.T) {
	t.Parallel()
	admin, objects := rehearsalClients(t)
	all := definitions(t)
	d := all[slices.IndexFunc(all, func(d *apiextensionsv1.CustomResourceDefinition) bool { return d.Spec.Names.Kind == "Pool" })].DeepCopy()
	d.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{Plural: "partialpools", Singular: "partialpool", Kind: "PartialPool", ListKind: "PartialPoolList"}
	// Kubernetes 1.37 refuses versions of different schemas that select by the same fields.
	d.Spec.Versions[0].SelectableFields = nil
	r := newRehearsal(t, admin, objects, d, examples()["Pool"])
	r.begin()
	r.change(func(d *apiextensionsv1.CustomResourceDefinition) {
		next := *d.Spec.Versions[0].DeepCopy()
		next.Name = nextVersion
		addUnknown(next.Schema.OpenAPIV3Schema, "spec")
		d.Spec.Versions[0].Storage = false
		d.Spec.Versions = append(d.Spec.Versions, next)
	})
	r.awaitServed(nextVersion, true)
	r.patch(nextVersion, map[string]any{"spec": map[string]any{unknown: "kept"}})
	value := func() string {
		text, _, err := unstructured.NestedString(r.read(nextVersion).Object, "spec", unknown)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if value() != "kept" {
		t.Fatalf("the field of %s was not stored", nextVersion)
	}
	r.patch(versionOfToday, map[string]any{"metadata": map[string]any{"labels": map[string]any{"of": "another"}}})
	if got := value(); got != "" {
		t.Errorf("%s kept %q of a field that it does not have: the rule of ADR 28 may be loosened", versionOfToday, got)
	}
}
