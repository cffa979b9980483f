// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func pool(set, node string) *v1alpha1.Pool {
	return &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: set + "-" + node},
		Spec:       v1alpha1.PoolSpec{NodeName: node, PoolSetName: set, Kind: v1alpha1.PoolLVM},
	}
}

func storageCapacity(name, node string) *storagev1.CSIStorageCapacity {
	return &storagev1.CSIStorageCapacity{
		ObjectMeta:       metav1.ObjectMeta{Namespace: namespace, Name: name},
		NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.TopologyKeyNode: node}},
		StorageClassName: "fast", Capacity: resource.NewQuantity(1<<30, resource.BinarySI),
	}
}

func eventOf(name, instance string) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, EventTime: metav1.NowMicro(),
		ReportingController: "berth-node-agent", ReportingInstance: "berth-node-agent-" + instance,
		Action: "KeepVolume", Reason: "Carved", Type: "Normal",
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: "data"},
	}
}

// nodesObjects are one object of each kind that belongs to a node, as an administrator
// sees it.
func nodesObjects(node string) map[string]client.Object {
	return map[string]client.Object{
		"BlockDevice":        blockDevice("bd-stolen-"+node, node),
		"Pool":               pool("stolen", node),
		"LocalVolume":        localVolume("lv-stolen-"+node, node),
		"LocalSnapshot":      localSnapshot("snapshot-stolen-"+node, node),
		"CSIStorageCapacity": storageCapacity("stolen-"+node, node),
		"ConfigMap":          metadataOf("lvm-metadata." + node + ".fast.0123456789"),
		"Event":              eventOf("stolen-"+node, agentPod(node)),
	}
}

// refused fails the test unless the apiserver has refused the request: by the rights of
// the account, by a policy, or because of the object itself.
func refused(t *testing.T, what string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		t.Errorf("%s: %v, want a refusal", what, err)
	}
}

// A token that was taken from the agent of one node changes nothing of another: no kind,
// no verb, no subresource, no finalizer, neither one by one nor all at once.
func TestStolenTokenTouchesNoOtherNode(t *testing.T) {
	t.Parallel()
	thief := agentOf(t, "node-thief")
	victims := nodesObjects("node-victim")
	for kind, object := range victims {
		refused(t, "create "+kind, thief.Create(t.Context(), object.DeepCopyObject().(client.Object), client.DryRunAll))
	}
	for _, object := range victims {
		object.SetFinalizers([]string{"berth.dev/of-a-test"})
		if err := server.admin.Create(t.Context(), object); err != nil {
			t.Fatalf("create %s: %v", object.GetName(), err)
		}
		t.Cleanup(func() {
			none := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null,"annotations":{"berth.dev/allow-delete":"true"}}}`))
			_ = server.admin.Patch(context.Background(), object, none)
			_ = server.admin.Delete(context.Background(), object)
		})
	}
	// A real change each, so that no write is left out as one that changes nothing.
	patches := map[string]string{
		"label":           `{"metadata":{"labels":{"stolen":"true"}}}`,
		"finalizers":      `{"metadata":{"finalizers":null}}`,
		"owner":           `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"node-thief","uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}]}}`,
		"node":            `{"spec":{"nodeName":"node-thief"},"nodeTopology":{"matchLabels":{"topology.berth.dev/node":"node-thief"}},"reportingInstance":"berth-node-agent-node-thief","metadata":{"labels":{"stolen":"true"}}}`,
		"allow-delete":    `{"metadata":{"annotations":{"berth.dev/allow-delete":"true"}}}`,
		"status and spec": `{"spec":{"sizeBytes":2097152,"reserved":"no","evacuate":["/dev/sda"]},"status":{"fsType":"xfs","formatted":true,"state":"Active"},"capacity":"1Ti","binaryData":{"volumeGroup":"eQ=="},"note":"stolen","metadata":{"labels":{"stolen":"true"}}}`,
	}
	status := client.RawPatch(types.MergePatchType, []byte(`{"status":{"formatted":true,"state":"Failed","fsType":"xfs"}}`))
	for kind, object := range victims {
		for _, name := range slices.Sorted(maps.Keys(patches)) {
			patch := client.RawPatch(types.MergePatchType, []byte(patches[name]))
			refused(t, "patch "+name+" of "+kind, thief.Patch(t.Context(), object.DeepCopyObject().(client.Object), patch))
		}
		for _, subresource := range []string{"status", "finalizers", "scale"} {
			err := thief.SubResource(subresource).Patch(t.Context(), object.DeepCopyObject().(client.Object), status)
			if !apierrors.IsNotFound(err) { // there is no such subresource
				refused(t, "patch "+subresource+" of "+kind, err)
			}
		}
		updated := object.DeepCopyObject().(client.Object)
		updated.SetLabels(map[string]string{"stolen": "true"})
		refused(t, "update "+kind, thief.Update(t.Context(), updated))
		refused(t, "delete "+kind, thief.Delete(t.Context(), object.DeepCopyObject().(client.Object)))
		all := thief.DeleteAllOf(t.Context(), object.DeepCopyObject().(client.Object), client.InNamespace(object.GetNamespace()))
		refused(t, "delete all of "+kind, all)

		now := object.DeepCopyObject().(client.Object)
		if err := server.admin.Get(t.Context(), client.ObjectKeyFromObject(object), now); err != nil {
			t.Fatal(err)
		}
		if now.GetResourceVersion() != object.GetResourceVersion() || now.GetDeletionTimestamp() != nil {
			t.Errorf("%s %s was changed", kind, object.GetName())
		}
	}
}

// What is nobody's node's is no agent's either.
func TestStolenTokenTouchesNothingElse(t *testing.T) {
	t.Parallel()
	thief := agentOf(t, "node-thief")
	set := &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: "stolen-set"}, Spec: v1alpha1.PoolSetSpec{Kind: v1alpha1.PoolHostpath, Hostpath: &v1alpha1.HostpathPool{Path: "/srv/stolen"}}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "stolen"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}}}
	everywhere := storageCapacity("stolen-everywhere", "node-thief")
	everywhere.NodeTopology.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "topology.berth.dev/node", Operator: metav1.LabelSelectorOpExists}}
	nowhere := storageCapacity("stolen-nowhere", "node-thief")
	nowhere.NodeTopology = nil
	more := storageCapacity("stolen-more", "node-thief")
	more.NodeTopology.MatchLabels["kubernetes.io/os"] = "linux"
	foreign := eventOf("stolen-controller", "node-thief")
	foreign.ReportingController = "kubelet"
	about := eventOf("stolen-about", agentPod("node-thief"))
	about.Regarding.Kind = "Secret"
	another := eventOf("stolen-instance", agentPod("node-victim"))
	squatted := pool("fast", "node-thief")
	squatted.Name = "fast-node-victim"
	reserved := blockDevice("bd-stolen-reserved", "node-thief")
	reserved.Spec.Reserved = "mine"
	for what, object := range map[string]client.Object{
		"a PoolSet": set, "a Pod": pod, "a Secret": &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "stolen"}},
		"a capacity of all nodes": everywhere, "a capacity of no node": nowhere, "a capacity of other nodes": more,
		"an event of another component": foreign, "an event about what is not Berth's": about, "an event of another agent": another,
		"a Pool of another's name": squatted, "a reserved disk": reserved,
		"a volume of its own": localVolume("lv-stolen-own", "node-thief"), "a snapshot of its own": localSnapshot("snapshot-stolen-own", "node-thief"),
	} {
		refused(t, "create "+what, thief.Create(t.Context(), object, client.DryRunAll))
	}
	for what, list := range map[string]client.ObjectList{
		"Secrets": &corev1.SecretList{}, "Pods": &corev1.PodList{}, "claims": &corev1.PersistentVolumeClaimList{},
		"all ConfigMaps": &corev1.ConfigMapList{}, "Events": &eventsv1.EventList{},
	} {
		refused(t, "list "+what, thief.List(t.Context(), list))
	}
}

// An agent writes what is its own, and of that not what an operator or the provisioner says.
func TestAgentWritesItsOwnPart(t *testing.T) {
	t.Parallel()
	const node = "node-own"
	agent := agentOf(t, node)
	own := nodesObjects(node)
	for kind, object := range own {
		by := agent
		if kind == "LocalVolume" || kind == "LocalSnapshot" {
			by = server.admin
		}
		if err := by.Create(t.Context(), object); err != nil {
			t.Fatalf("create %s: %v", kind, err)
		}
	}
	finalizers := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":["berth.dev/agent"]}}`))
	for _, kind := range []string{"Pool", "LocalVolume", "LocalSnapshot"} {
		if err := agent.Patch(t.Context(), own[kind], finalizers); err != nil {
			t.Errorf("patch the finalizers of its %s: %v", kind, err)
		}
		none := client.RawPatch(types.MergePatchType, []byte(`{"status":{"conditions":[]},"metadata":{"finalizers":null}}`))
		if err := agent.Status().Patch(t.Context(), own[kind], none); err != nil {
			t.Errorf("patch the status of its %s: %v", kind, err)
		}
	}
	for spec, kind := range map[string]string{
		`{"spec":{"evacuate":["bd-1"]}}`: "Pool", `{"spec":{"sizeBytes":4194304}}`: "LocalVolume",
		`{"spec":{"purge":[{"uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11","kind":"Volume","identity":"x"}]}}`: "Pool",
	} {
		patch := client.RawPatch(types.MergePatchType, []byte(spec))
		wantRefused(t, agent.Patch(t.Context(), own[kind], patch), "may not change the spec of "+strings.ToLower(kind)+"s")
	}
	asking := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "asking-" + node},
		Spec: v1alpha1.PoolSpec{NodeName: node, PoolSetName: "asking", Kind: v1alpha1.PoolLVM, Purge: []v1alpha1.PurgeRequest{
			{UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", Kind: v1alpha1.LeftOverVolume, Identity: "x"},
		}},
	}
	wantRefused(t, agent.Create(t.Context(), asking), "may not ask to purge")
	disk := own["BlockDevice"]
	write := func(by client.Client, spec string) error {
		return by.Patch(t.Context(), disk, client.RawPatch(types.MergePatchType, []byte(`{"spec":`+spec+`}`)))
	}
	if err := write(agent, `{"claimRef":{"kind":"Pool","name":"stolen-`+node+`","uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11"}}`); err != nil {
		t.Errorf("claim its disk: %v", err)
	}
	const request = `[{"uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11","kind":"Volume","identity":"x"}]`
	wantRefused(t, write(agent, `{"purge":`+request+`}`), "what is asked to be purged")
	wantRefused(t, write(agent, `{"purge":`+request+`,"claimRef":null}`), "what is asked to be purged")
	if err := write(server.admin, `{"purge":`+request+`}`); err != nil {
		t.Fatalf("ask to purge a disk as an administrator: %v", err)
	}
	told := client.RawPatch(types.MergePatchType, []byte(`{"status":{"purges":[{"uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11","state":"Quarantined","token":"t"}]}}`))
	if err := agent.Patch(t.Context(), disk, told); err != nil {
		t.Errorf("say what has come of the purge of its disk: %v", err)
	}
	wantRefused(t, write(agent, `{"purge":[{"uid":"6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11","kind":"Volume","identity":"x","confirm":"t"}]}`), "what is asked to be purged")
	wantRefused(t, write(agent, `{"purge":null}`), "what is asked to be purged")
	askingDisk := blockDevice("bd-asking-"+node, node)
	askingDisk.Spec.Purge = []v1alpha1.PurgeRequest{{UID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", Kind: v1alpha1.LeftOverVolume, Identity: "x"}}
	wantRefused(t, agent.Create(t.Context(), askingDisk), "may not ask to purge")
	wantRefused(t, write(agent, `{"reserved":"mine"}`), "spec.reserved")
	if err := write(server.admin, `{"reserved":"the operator's"}`); err != nil {
		t.Fatalf("reserve a disk as an administrator: %v", err)
	}
	if err := write(agent, `{"claimRef":null}`); err != nil {
		t.Errorf("give a disk back that was reserved meanwhile: %v", err)
	}
	wantRefused(t, write(agent, `{"reserved":null}`), "spec.reserved")
	for _, kind := range []string{"BlockDevice", "Pool", "LocalVolume", "LocalSnapshot"} {
		whole := own[kind].DeepCopyObject().(client.Object)
		whole.SetLabels(map[string]string{"written": "whole"})
		refused(t, "write the whole of its "+kind, agent.Update(t.Context(), whole))
	}

	room := client.RawPatch(types.MergePatchType, []byte(`{"capacity":"2Gi"}`))
	if err := agent.Patch(t.Context(), own["CSIStorageCapacity"], room); err != nil {
		t.Errorf("patch its capacity: %v", err)
	}
	series := client.RawPatch(types.MergePatchType, []byte(`{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}`))
	if err := agent.Patch(t.Context(), own["Event"], series); err != nil {
		t.Errorf("count an event of its own: %v", err)
	}
	for _, kind := range []string{"CSIStorageCapacity", "ConfigMap"} {
		if err := agent.Delete(t.Context(), own[kind]); err != nil {
			t.Errorf("delete its %s: %v", kind, err)
		}
	}
	for _, kind := range []string{"BlockDevice", "Pool", "LocalVolume", "LocalSnapshot"} {
		refused(t, "delete its "+kind, agent.Delete(t.Context(), own[kind]))
	}
}
