// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// LocalSnapshot is one snapshot of a LocalVolume, in the pool of that volume. Its name is
// the CSI snapshot handle; its UID names the thing on the disk. It outlives its volume.
// The provisioner writes the spec, the node's agent the status.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lsnap,categories=berth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volumeName`
// +kubebuilder:printcolumn:name="Group",type=string,priority=1,JSONPath=`.spec.group.name`
// +kubebuilder:printcolumn:name="RestoreSize",type=string,JSONPath=`.status.restoreSize`
// +kubebuilder:printcolumn:name="FSType",type=string,JSONPath=`.status.fsType`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LocalSnapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec is immutable: a snapshot is taken once"
	Spec   LocalSnapshotSpec   `json:"spec"`
	Status LocalSnapshotStatus `json:"status,omitempty"`
}

// LocalSnapshotSpec is what the provisioner asks of the node.
type LocalSnapshotSpec struct {
	// NodeName is the node that holds the volume.
	// +kubebuilder:validation:MinLength=1
	NodeName string `json:"nodeName"`
	// Pool is the name of the PoolSet whose pool on the node holds the volume.
	// +kubebuilder:validation:MinLength=1
	Pool string `json:"pool"`
	// VolumeName and VolumeUID are the LocalVolume's.
	// +kubebuilder:validation:MinLength=1
	VolumeName string    `json:"volumeName"`
	VolumeUID  types.UID `json:"volumeUID"`
	// Group is set for a snapshot that is taken together with others of the same node and
	// pool, all at one instant. It is deleted with them.
	// +optional
	Group *SnapshotGroup `json:"group,omitempty"`
}

// SnapshotGroup is what the LocalSnapshots of a group have in common.
type SnapshotGroup struct {
	// Name is the CSI group snapshot handle.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Members is how many LocalSnapshots have this name of a group. None of them is taken
	// before the node has seen all.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	Members int32 `json:"members"`
}

// LocalSnapshotReady is the condition that says whether volumes can be made of the
// snapshot. Its reasons are those of LocalVolumeReady, ReasonTaken in the place of
// ReasonCarved.
const LocalSnapshotReady = "Ready"

// ReasonTaken: the snapshot stands.
const ReasonTaken = "Taken"

// LocalSnapshotValid is the condition that says whether a snapshot holds what it should: that of
// a thick volume has a room of its own for what is overwritten in its volume, and any can be gone
// from its pool (ReasonMissing). It is not set before there is something to say of it.
const LocalSnapshotValid = "Valid"

// Reasons of LocalSnapshotValid.
const (
	// ReasonHeld: it holds what it should, and has the room that it needs.
	ReasonHeld = "Held"
	// ReasonNoRoomToExtend: it holds what it should, and is lost when its room is full, for
	// which the pool has none left.
	ReasonNoRoomToExtend = "NoRoomToExtend"
	// ReasonOverflowed: its room was full, and it holds nothing any more.
	ReasonOverflowed = "Overflowed"
)

// LocalSnapshotStatus is what the agent made.
type LocalSnapshotStatus struct {
	// CreationTime is when the agent had taken it; the same for all of a group.
	// +optional
	CreationTime *metav1.Time `json:"creationTime,omitempty"`
	// RestoreSize is the least size of a volume that is made of it.
	// +optional
	RestoreSize *resource.Quantity `json:"restoreSize,omitempty"`
	// VolumeMode, FSType and FilesystemUUID are the volume's: what is in the snapshot.
	// +optional
	VolumeMode VolumeMode `json:"volumeMode,omitempty"`
	// +optional
	FSType string `json:"fsType,omitempty"`
	// +optional
	FilesystemUUID string `json:"filesystemUUID,omitempty"`
	// Encryption is the volume's: the snapshot opens with the passphrase that the volume had
	// when it was taken.
	// +optional
	Encryption *EncryptionStatus `json:"encryption,omitempty"`
	// MachineID is /etc/machine-id of the host that took it.
	// +optional
	MachineID string `json:"machineID,omitempty"`
	// +optional
	LVM *LVMRecord `json:"lvm,omitempty"`
	// Hostpath is where the snapshot of a volume of mode hostpath lies.
	// +optional
	Hostpath *HostpathRecord `json:"hostpath,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// LocalSnapshotList is a list of LocalSnapshots.
//
// +kubebuilder:object:root=true
type LocalSnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LocalSnapshot `json:"items"`
}
