// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PoolSet declares: on these nodes, from disks like these, make a pool of this
// layout. It is to Pool what a ReplicaSet is to Pod. StorageClasses name it in
// their parameter `pool`.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=berth
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.spec.kind`
// +kubebuilder:printcolumn:name="Layout",type=string,JSONPath=`.spec.layout`
// +kubebuilder:printcolumn:name="Growth",type=string,JSONPath=`.spec.growth`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",message="metadata.name becomes part of a volume group's name: lower-case letters, digits and '-', at most 63"
type PoolSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PoolSetSpec `json:"spec"`
}

// PoolKind is what a pool is made of.
// +kubebuilder:validation:Enum=lvm;hostpath
type PoolKind string

const (
	// PoolLVM is a volume group.
	PoolLVM PoolKind = "lvm"
	// PoolHostpath is a directory of the host.
	PoolHostpath PoolKind = "hostpath"
)

// PoolLayout is how a volume group lays its volumes over its disks.
// +kubebuilder:validation:Enum=linear
type PoolLayout string

// LayoutLinear fills one disk after the other.
const LayoutLinear PoolLayout = "linear"

// PoolGrowth says whether disks join a pool by themselves.
// +kubebuilder:validation:Enum=Auto;Manual
type PoolGrowth string

const (
	// GrowthAuto lets a disk that matches the selector join by itself.
	GrowthAuto PoolGrowth = "Auto"
	// GrowthManual makes the pool from the disks that match when it is made; later
	// ones stay out until they are named in deviceSelector.names.
	GrowthManual PoolGrowth = "Manual"
)

// PoolSetSpec is the wish.
//
// +kubebuilder:validation:XValidation:rule="self.kind == oldSelf.kind",message="spec.kind is immutable: make a second PoolSet"
// +kubebuilder:validation:XValidation:rule="self.kind != 'hostpath' || has(self.hostpath)",message="spec.hostpath.path is needed for kind hostpath"
// +kubebuilder:validation:XValidation:rule="self.kind != 'lvm' || !has(self.hostpath)",message="spec.hostpath is not allowed for kind lvm"
// +kubebuilder:validation:XValidation:rule="self.kind != 'lvm' || has(self.deviceSelector)",message="spec.deviceSelector is needed for kind lvm; an empty one ({}) takes every usable disk"
// +kubebuilder:validation:XValidation:rule="self.kind != 'hostpath' || !has(self.deviceSelector)",message="spec.deviceSelector is not allowed for kind hostpath"
type PoolSetSpec struct {
	// Kind of the pools: lvm or hostpath.
	// +kubebuilder:default=lvm
	Kind PoolKind `json:"kind"`

	// NodeSelector chooses the nodes by their labels; empty means every node.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// DeviceSelector chooses the disks of kind lvm. Only disks that are usable
	// (kubectl get blockdevices -o wide) are ever taken.
	// +optional
	DeviceSelector *DeviceSelector `json:"deviceSelector,omitempty"`

	// Layout of kind lvm.
	// +optional
	// +kubebuilder:default=linear
	Layout PoolLayout `json:"layout,omitempty"`

	// Growth of kind lvm.
	// +optional
	// +kubebuilder:default=Auto
	Growth PoolGrowth `json:"growth,omitempty"`

	// Hostpath is the root of kind hostpath.
	// +optional
	Hostpath *HostpathPool `json:"hostpath,omitempty"`

	// Reserve is never handed out: a percentage of the pool ("5%") or a quantity
	// ("10Gi").
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]{1,2}(\.[0-9]{1,2})?%|[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?)$`
	Reserve string `json:"reserve,omitempty"`
}

// HostpathPool is a directory of the host.
type HostpathPool struct {
	// Path of the root on the host. It is made if it is not there.
	// +kubebuilder:validation:Pattern=`^/[^/]+/.+$`
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.hostpath.path is immutable: volumes live there"
	// +kubebuilder:validation:XValidation:rule="!self.matches('(^|/)[.]{0,2}$|/[.]{0,2}/')",message="spec.hostpath.path must be clean: no '.', '..', '//' and no '/' at its end"
	Path string `json:"path"`
}

// DeviceSelector chooses disks by what they are. Every field that is set must
// match; a list matches if one of its entries does. An empty selector matches
// every usable disk.
type DeviceSelector struct {
	// Names of BlockDevices.
	// +optional
	// +listType=set
	Names []string `json:"names,omitempty"`
	// Serials, as globs (path.Match), for example "FAST-*".
	// +optional
	// +listType=set
	Serials []string `json:"serials,omitempty"`
	// Models, as globs.
	// +optional
	// +listType=set
	Models []string `json:"models,omitempty"`
	// Paths, as globs on the udev links and the present kernel name, for example
	// "/dev/disk/by-path/pci-0000:00:1f*". Kernel names change at a reboot: prefer
	// links.
	// +optional
	// +listType=set
	Paths []string `json:"paths,omitempty"`
	// Transports: nvme, virtio, sata, sas, …
	// +optional
	// +listType=set
	Transports []string `json:"transports,omitempty"`
	// Rotational true takes spinning disks only, false the others only.
	// +optional
	Rotational *bool `json:"rotational,omitempty"`
	// MinSize of a disk.
	// +optional
	MinSize *resource.Quantity `json:"minSize,omitempty"`
	// MaxSize of a disk.
	// +optional
	MaxSize *resource.Quantity `json:"maxSize,omitempty"`
	// AllowWeakIdentity admits disks that nothing but their place tells apart.
	// +optional
	AllowWeakIdentity bool `json:"allowWeakIdentity,omitempty"`
}

// PoolSetList is a list of PoolSets.
//
// +kubebuilder:object:root=true
type PoolSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PoolSet `json:"items"`
}

// Pool is one node's volume group or hostpath root, made from a PoolSet. Its name
// is <PoolSet>-<node>. The node's agent writes it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=berth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Allocated",type=string,JSONPath=`.status.allocated`
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.free`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="ReadOnly",type=boolean,JSONPath=`.status.readOnly`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.status.type`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Volumes",type=integer,priority=1,JSONPath=`.status.volumeCount`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status,omitempty"`
}

// PoolSpec says whose pool it is and what it is made of.
type PoolSpec struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.nodeName is immutable"
	NodeName string `json:"nodeName"`
	// PoolSetName is the PoolSet it was made from.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.poolSetName is immutable"
	PoolSetName string `json:"poolSetName"`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.kind is immutable"
	Kind PoolKind `json:"kind"`
}

// PoolState is one word for the pool's condition.
// +kubebuilder:validation:Enum=Pending;Healthy;Degraded;Failed
type PoolState string

const (
	// PoolPending waits for disks.
	PoolPending PoolState = "Pending"
	// PoolHealthy can be used.
	PoolHealthy PoolState = "Healthy"
	// PoolDegraded misses a disk; volumes that do not need it go on.
	PoolDegraded PoolState = "Degraded"
	// PoolFailed cannot be used; the condition Ready says why.
	PoolFailed PoolState = "Failed"
)

// PoolReady is the condition that says whether volumes can be carved from the
// pool.
const PoolReady = "Ready"

// Reasons of the condition Ready of a Pool.
const (
	ReasonPoolReady       = "PoolReady"       // volumes can be carved
	ReasonNoDisks         = "NoDisks"         // no usable disk matches the selector
	ReasonForeignVG       = "ForeignVG"       // a volume group of that name is not ours
	ReasonVGMissing       = "VGMissing"       // our volume group was proven absent
	ReasonVGPartial       = "VGPartial"       // a disk of the volume group is missing
	ReasonRootUnavailable = "RootUnavailable" // the root is not what it was
	ReasonPoolError       = "Error"           // see the message
)

// PoolStatus is what the agent made and last saw.
type PoolStatus struct {
	// +optional
	State PoolState `json:"state,omitempty"`
	// Capacity is what volumes may use, the reserve taken off.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// Allocated to volumes.
	// +optional
	Allocated *resource.Quantity `json:"allocated,omitempty"`
	// Free for the next volume, from the same function that admits it.
	// +optional
	Free *resource.Quantity `json:"free,omitempty"`
	// +optional
	// +kubebuilder:default=false
	ReadOnly bool `json:"readOnly"`
	// Type is the layout, or hostpath.
	// +optional
	Type string `json:"type,omitempty"`
	// +optional
	VolumeCount int32 `json:"volumeCount,omitempty"`
	// VGName and VGUUID name the volume group of kind lvm.
	// +optional
	VGName string `json:"vgName,omitempty"`
	// +optional
	VGUUID string `json:"vgUUID,omitempty"`
	// Path and RootID name the root of kind hostpath.
	// +optional
	Path string `json:"path,omitempty"`
	// +optional
	RootID string `json:"rootID,omitempty"`
	// BlockDevices that the pool holds.
	// +optional
	// +listType=set
	BlockDevices []string `json:"blockDevices,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PoolList is a list of Pools.
//
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pool `json:"items"`
}
