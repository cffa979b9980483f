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
// +kubebuilder:validation:Enum=linear;striped;mirror;raid5;raid6;raid10
type PoolLayout string

const (
	// LayoutLinear fills one disk after the other.
	LayoutLinear PoolLayout = "linear"
	// LayoutStriped spreads each volume over as many disks as have room for their share
	// of it, two at least: faster, and lost with any of them.
	LayoutStriped PoolLayout = "striped"
	// LayoutMirror keeps each volume twice, on two disks.
	LayoutMirror PoolLayout = "mirror"
	// LayoutRAID5 is striped with parity worth one disk: three disks at least.
	LayoutRAID5 PoolLayout = "raid5"
	// LayoutRAID6 is striped with parity worth two disks: five disks at least.
	LayoutRAID6 PoolLayout = "raid6"
	// LayoutRAID10 is striped over pairs of disks that hold the same: four disks at least.
	LayoutRAID10 PoolLayout = "raid10"
)

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
// +kubebuilder:validation:XValidation:rule="self.layout == oldSelf.layout",message="spec.layout is immutable: volumes lie so; make a second PoolSet"
// +kubebuilder:validation:XValidation:rule="self.kind == 'lvm' || self.layout == 'linear'",message="spec.layout is for kind lvm"
// +kubebuilder:validation:XValidation:rule="!has(self.rebuildAfter) || self.layout in ['mirror', 'raid5', 'raid6', 'raid10']",message="spec.rebuildAfter is for the layouts mirror, raid5, raid6 and raid10"
// +kubebuilder:validation:XValidation:rule="has(self.thin) == has(oldSelf.thin)",message="spec.thin cannot be added or taken away: volumes lie so; make a second PoolSet"
// +kubebuilder:validation:XValidation:rule="!has(self.thin) || self.kind == 'lvm'",message="spec.thin is for kind lvm"
// +kubebuilder:validation:XValidation:rule="!has(self.snapshots) || self.kind == 'lvm' && self.layout in ['linear', 'striped'] && !has(self.thin)",message="spec.snapshots is for kind lvm and the layouts linear and striped, without spec.thin: snapshots of a thin pool take their room from that"
// +kubebuilder:validation:XValidation:rule="self.kind != 'hostpath' || has(self.hostpath)",message="spec.hostpath.path is needed for kind hostpath"
// +kubebuilder:validation:XValidation:rule="self.kind != 'lvm' || !has(self.hostpath)",message="spec.hostpath is not allowed for kind lvm"
// +kubebuilder:validation:XValidation:rule="self.kind != 'lvm' || has(self.deviceSelector) || has(self.adopt)",message="spec.deviceSelector is needed for kind lvm; an empty one ({}) takes every usable disk"
// +kubebuilder:validation:XValidation:rule="!has(self.deviceSelector) || !has(self.adopt)",message="spec.deviceSelector is not allowed beside spec.adopt: no disk is ever added to a volume group that was adopted"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || self.kind == 'lvm' && self.layout in ['linear', 'striped']",message="spec.adopt is for kind lvm and the layouts linear and striped"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || has(self.adopt.thinPoolName) == has(self.thin)",message="spec.thin and spec.adopt.thinPoolName go together: in a volume group that was adopted no thin pool is made, and spec.thin ({} is enough) says how one that is there may be used"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || !has(self.thin) || self.thin.initialPercent == 100 && self.thin.autoextend.thresholdPercent == 80 && self.thin.autoextend.percent == 20 && self.thin.whenFull == 'Wait'",message="spec.thin.initialPercent, autoextend and whenFull are not allowed beside spec.adopt: a thin pool that was adopted is never extended or changed"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || !has(self.thin) || self.layout == 'linear'",message="spec.layout is for volumes that Berth lays over disks: those of a thin pool that was adopted lie where that lies"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt)",message="spec.adopt cannot be added or taken away; make a second PoolSet"
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

	// Adopt takes a volume group as it is, in place of one that is made of the disks of
	// deviceSelector, or a thin pool in it. Berth makes and deletes its own volumes there, and
	// changes nothing else: neither its disks nor its name nor its thin pools nor volumes of
	// others. It is there after the PoolSet is gone.
	// +optional
	Adopt *AdoptedGroup `json:"adopt,omitempty"`

	// Layout of the volumes of kind lvm, or of the thin pool that they lie in. striped and mirror need two disks of a node at
	// least, raid5 three, raid10 four, raid6 five; with fewer the node has no pool, and its
	// Pool says why.
	// +optional
	// +kubebuilder:default=linear
	Layout PoolLayout `json:"layout,omitempty"`

	// RebuildAfter is how long a disk of a redundant layout may be missing before what was
	// on it is built anew on other disks of the pool; 5m if it is not set. A disk that comes
	// back in time is taken back.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="spec.rebuildAfter is a duration from 0s to 720h"
	RebuildAfter *metav1.Duration `json:"rebuildAfter,omitempty"`

	// Thin lets the volumes of kind lvm share one thin pool: they take room when they are
	// written to. Without it each volume has its room for itself.
	// +optional
	Thin *ThinPool `json:"thin,omitempty"`

	// Snapshots is how much room the snapshots of thick volumes get for what is overwritten in
	// their volumes.
	// +optional
	Snapshots *SnapshotRoom `json:"snapshots,omitempty"`

	// Growth of kind lvm.
	// +optional
	// +kubebuilder:default=Auto
	Growth PoolGrowth `json:"growth,omitempty"`

	// Hostpath is the root of kind hostpath.
	// +optional
	Hostpath *HostpathPool `json:"hostpath,omitempty"`

	// Reserve is never handed out: a percentage of the pool ("5%") or a quantity
	// ("10Gi"). Only what keeps a thin pool's metadata or a snapshot from running full may
	// use it.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]{1,2}(\.[0-9]{1,2})?%|[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?)$`
	Reserve string `json:"reserve,omitempty"`
}

// AdoptedGroup names a volume group twice: both must be true. So it does with a thin pool.
//
// +kubebuilder:validation:XValidation:rule="has(self.thinPoolName) == has(self.thinPoolUUID)",message="spec.adopt.thinPoolName and spec.adopt.thinPoolUUID go together: both must be true"
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.adopt is immutable: volumes live there; make a second PoolSet"
type AdoptedGroup struct {
	// VGName is its name.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$`
	// +kubebuilder:validation:MaxLength=127
	VGName string `json:"vgName"`
	// VGUUID is its UUID, as "vgs -o name,uuid" shows it. It is on one node only.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{6}(-[a-zA-Z0-9]{4}){5}-[a-zA-Z0-9]{6}$`
	VGUUID string `json:"vgUUID"`
	// ThinPoolName is the name of a thin pool in it, in which the volumes shall lie; spec.thin
	// says how far it may be used.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$`
	// +kubebuilder:validation:MaxLength=127
	ThinPoolName string `json:"thinPoolName,omitempty"`
	// ThinPoolUUID is its UUID, as "lvs -o name,uuid" shows it.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9]{6}(-[a-zA-Z0-9]{4}){5}-[a-zA-Z0-9]{6}$`
	ThinPoolUUID string `json:"thinPoolUUID,omitempty"`
}

// WhenFull is what happens to writes that find no room in a thin pool.
// +kubebuilder:validation:Enum=Wait;Fail
type WhenFull string

const (
	// WhenFullWait lets them wait for room: for a minute by the kernel's default (parameter
	// no_space_timeout of the module dm_thin_pool), then they fail.
	WhenFullWait WhenFull = "Wait"
	// WhenFullFail lets them fail at once.
	WhenFullFail WhenFull = "Fail"
)

// ThinPool is how the volumes of a pool share its room.
type ThinPool struct {
	// OverprovisionRatio is how many bytes may be promised to volumes for each byte that
	// there is: 1 promises nothing that is not there.
	// +optional
	// +kubebuilder:default="1"
	// +kubebuilder:validation:Pattern=`^[1-9][0-9]{0,2}(\.[0-9]{1,2})?$`
	OverprovisionRatio string `json:"overprovisionRatio,omitempty"`

	// InitialPercent of the volume group is what the thin pool's data take when it is made;
	// the rest is taken as autoextend says. 100 takes it at once, and with it what disks
	// bring that join later: then nothing has to happen in time.
	// +optional
	// +kubebuilder:default=100
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	InitialPercent int32 `json:"initialPercent,omitempty"`

	// Autoextend is when the thin pool gets more of its volume group.
	// +optional
	// +kubebuilder:default={}
	Autoextend Autoextend `json:"autoextend,omitempty"`

	// HighWaterPercent of all the data that the thin pool can get in use is when no volume
	// is made or grown any more, in a pool that has promised more than there is.
	// +optional
	// +kubebuilder:default=95
	// +kubebuilder:validation:Minimum=50
	// +kubebuilder:validation:Maximum=100
	HighWaterPercent int32 `json:"highWaterPercent,omitempty"`

	// WhenFull is what happens to writes that find no room.
	// +optional
	// +kubebuilder:default=Wait
	WhenFull WhenFull `json:"whenFull,omitempty"`
}

// Autoextend is when a thin pool grows, and by how much.
type Autoextend struct {
	// ThresholdPercent of the data in use.
	// +optional
	// +kubebuilder:default=80
	// +kubebuilder:validation:Minimum=50
	// +kubebuilder:validation:Maximum=99
	ThresholdPercent int32 `json:"thresholdPercent,omitempty"`
	// Percent of its size that it grows by.
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent,omitempty"`
}

// SnapshotRoom is how much room a snapshot of a thick volume has for the former content of
// what is written to its volume. One whose room is full has lost what it held. With as much
// room as its volume, and a little more, it cannot be full, and it never gets more than that.
type SnapshotRoom struct {
	// InitialPercent of the volume is what a snapshot gets when it is taken.
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	InitialPercent int32 `json:"initialPercent,omitempty"`
	// ThresholdPercent of it in use is when it gets more.
	// +optional
	// +kubebuilder:default=70
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=95
	ThresholdPercent int32 `json:"thresholdPercent,omitempty"`
	// ExtendPercent of the volume is what it gets then.
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	ExtendPercent int32 `json:"extendPercent,omitempty"`
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
	// CryptoErase true takes only disks that can delete the key they encrypt everything
	// with (status.cryptoErase), false the others only.
	// +optional
	CryptoErase *bool `json:"cryptoErase,omitempty"`
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
