// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func blockDevice(name, node string) *v1alpha1.BlockDevice {
	return &v1alpha1.BlockDevice{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.BlockDeviceSpec{NodeName: node},
	}
}

func localVolume(name, node string) *v1alpha1.LocalVolume {
	return &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: node, Mode: v1alpha1.ModeLVM, Pool: "fast", SizeBytes: 1 << 20,
			VolumeMode: v1alpha1.VolumeFilesystem, FSType: "ext4", Wipe: v1alpha1.WipeZero,
		},
	}
}

// wantRefused fails the test unless err says why.
func wantRefused(t *testing.T, err error, why string) {
	t.Helper()
	if err == nil {
		t.Fatalf("allowed, want a refusal with %q", why)
	}
	if !strings.Contains(err.Error(), why) {
		t.Fatalf("refused with %q, want %q", err, why)
	}
}

func TestLocalVolumeDeletion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		user       string
		annotation string
		refused    string
	}{
		{"by an administrator", "admin", "", "delete the PersistentVolumeClaim instead"},
		{"by the agent", nodeAgent, "", "delete the PersistentVolumeClaim instead"},
		{"by an administrator who insists", "admin", "true", ""},
		{"by an administrator who does not", "admin", "false", "delete the PersistentVolumeClaim instead"},
		{"by the provisioner", provisioner, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			volume := localVolume("lv-"+strings.ReplaceAll(test.name, " ", "-"), "node1")
			if test.annotation != "" {
				volume.Annotations = map[string]string{"berth.dev/allow-delete": test.annotation}
			}
			if err := server.admin.Create(t.Context(), volume); err != nil {
				t.Fatal(err)
			}
			err := as(t, test.user, "node1").Delete(t.Context(), volume)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The provisioner has nothing taken over, and goes on with what people have had taken over.
func TestLocalVolumeAdoption(t *testing.T) {
	t.Parallel()
	adopted := func(name string) *v1alpha1.LocalVolume {
		volume := localVolume(name, "node1")
		volume.Spec.Mode, volume.Spec.Wipe, volume.Spec.Pool = v1alpha1.ModeDevice, v1alpha1.WipeNone, ""
		volume.Spec.Adopt = &v1alpha1.Adoption{Device: "bd-1", FilesystemUUID: "19d5ef9d-d0b3-4524-9798-6617d1855452"}
		return volume
	}
	own := as(t, provisioner, "node1")
	wantRefused(t, own.Create(t.Context(), adopted("lv-stolen")), "spec.adopt is for people to ask")
	leftOver := localVolume("lv-stolen", "node1")
	adoptLeftOver(leftOver)
	wantRefused(t, own.Create(t.Context(), leftOver), "spec.adopt is for people to ask")
	volume := adopted("lv-handed-over")
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	volume.Annotations = map[string]string{"example.com/seen": "true"}
	if err := own.Update(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
}

// A deletion of a whole list names no object; the guard holds all the same.
func TestLocalVolumeDeletionOfAll(t *testing.T) {
	t.Parallel()
	volume := localVolume("lv-of-all", "node1")
	volume.Labels = map[string]string{"of": "all"}
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	err := server.admin.DeleteAllOf(t.Context(), &v1alpha1.LocalVolume{}, client.MatchingLabels{"of": "all"})
	wantRefused(t, err, "delete the PersistentVolumeClaim instead")
}

func localSnapshot(name, node string) *v1alpha1.LocalSnapshot {
	return &v1alpha1.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.LocalSnapshotSpec{
			NodeName: node, Pool: "fast", VolumeName: "pvc-1", VolumeUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11",
		},
	}
}

func TestLocalSnapshotDeletion(t *testing.T) {
	t.Parallel()
	s := localSnapshot("snapshot-1", "node1")
	if err := server.admin.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, server.admin.Delete(t.Context(), s), "delete the VolumeSnapshot instead")
	wantRefused(t, as(t, nodeAgent, "node1").Delete(t.Context(), s), "delete the VolumeSnapshot instead")
	if err := as(t, provisioner, "").Delete(t.Context(), s); err != nil {
		t.Errorf("by the provisioner: %v", err)
	}
}

func TestCRDDeletion(t *testing.T) {
	t.Parallel()
	for _, plural := range []string{"localvolumes", "localsnapshots", "blockdevices", "pools", "poolsets"} {
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
		crd.SetName(plural + ".berth.dev")
		wantRefused(t, server.admin.Delete(t.Context(), crd, client.DryRunAll), "annotate crd")
	}
}

func TestAgentWritesItsOwnNode(t *testing.T) {
	t.Parallel()
	const refused = "may not write an object of node"
	mine, theirs := blockDevice("bd-mine", "node1"), blockDevice("bd-theirs", "node2")
	if err := as(t, nodeAgent, "node1").Create(t.Context(), mine); err != nil {
		t.Errorf("create on its own node: %v", err)
	}
	wantRefused(t, as(t, nodeAgent, "node1").Create(t.Context(), theirs), refused)
	wantRefused(t, as(t, nodeAgent, "").Create(t.Context(), theirs), refused)
	if err := server.admin.Create(t.Context(), theirs); err != nil {
		t.Errorf("create by an administrator: %v", err)
	}
	wantRefused(t, as(t, nodeAgent, "node1").Delete(t.Context(), theirs), refused)

	volume := localVolume("lv-status", "node2")
	if err := server.admin.Create(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	s := localSnapshot("snapshot-status", "node2")
	if err := server.admin.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.Status.FSType = "xfs"
	wantRefused(t, as(t, nodeAgent, "node1").Status().Update(t.Context(), s), refused)
	volume.Status.Formatted = true
	wantRefused(t, as(t, nodeAgent, "node1").Status().Update(t.Context(), volume), refused)
	if err := as(t, nodeAgent, "node2").Status().Update(t.Context(), volume); err != nil {
		t.Errorf("update a status of its own node: %v", err)
	}
}

func metadataOf(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, BinaryData: map[string][]byte{"volumeGroup": []byte("x")}}
}

// An agent writes the copies of the metadata of its own node's pools, and no other ConfigMap.
func TestAgentWritesItsOwnMetadata(t *testing.T) {
	t.Parallel()
	agent := as(t, nodeAgent, "node1")
	own := metadataOf("lvm-metadata.node1.fast.0123456789")
	if err := agent.Create(t.Context(), own); err != nil {
		t.Fatalf("create its own: %v", err)
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"binaryData":{"volumeGroup":"eQ=="}}`))
	if err := agent.Patch(t.Context(), own, patch); err != nil {
		t.Errorf("patch its own: %v", err)
	}
	const refused = "may not write ConfigMap"
	wantRefused(t, as(t, nodeAgent, "node2").Patch(t.Context(), own.DeepCopy(), patch), refused)
	wantRefused(t, as(t, nodeAgent, "node2").Delete(t.Context(), own.DeepCopy()), refused)
	wantRefused(t, as(t, nodeAgent, "").Delete(t.Context(), own.DeepCopy()), refused)
	if err := agent.Delete(t.Context(), own); err != nil {
		t.Errorf("delete its own: %v", err)
	}
	for _, name := range []string{
		"lvm-metadata.node2.fast.0123456789", "lvm-metadata.node1", "lvm-metadata.node1.fast", "lvm-metadata.node10.fast.0123456789",
		// Of the node "node1.fast".
		"lvm-metadata.node1.fast.more.0123456789", "lvm-metadata.node1.fast.0123456789ab", "another",
	} {
		wantRefused(t, agent.Create(t.Context(), metadataOf(name)), refused)
	}

	filters := metadataOf("filters-of-a-test")
	if err := server.admin.Create(t.Context(), filters); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, agent.Patch(t.Context(), filters.DeepCopy(), patch), refused)
	wantRefused(t, agent.Delete(t.Context(), filters.DeepCopy()), refused)
	wantRefused(t, agent.DeleteAllOf(t.Context(), &corev1.ConfigMap{}, client.InNamespace(namespace)), "")
	elsewhere := metadataOf("lvm-metadata.node1.fast.0123456789")
	elsewhere.Namespace = "default"
	wantRefused(t, agent.Create(t.Context(), elsewhere), refused)
	if err := server.admin.Delete(t.Context(), filters); err != nil {
		t.Errorf("the filters are not there any more: %v", err)
	}
}
