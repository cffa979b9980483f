// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

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
// +kubebuilder:printcolumn:name="Disks",type=integer,priority=1,JSONPath=`.status.diskCount`
// +kubebuilder:printcolumn:name="Missing",type=integer,priority=1,JSONPath=`.status.missingDiskCount`
// +kubebuilder:printcolumn:name="Data%",type=integer,priority=1,JSONPath=`.status.thin.dataPercent`
// +kubebuilder:printcolumn:name="Meta%",type=integer,priority=1,JSONPath=`.status.thin.metadataPercent`
// +kubebuilder:printcolumn:name="Degraded",type=integer,priority=1,JSONPath=`.status.raid.degradedVolumes`
// +kubebuilder:printcolumn:name="Rebuilt%",type=integer,priority=1,JSONPath=`.status.raid.rebuiltPercent`
// +kubebuilder:printcolumn:name="Quota",type=string,priority=1,JSONPath=`.status.quota`
// +kubebuilder:printcolumn:name="Copies",type=string,priority=1,JSONPath=`.status.copies`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status,omitempty"`
}

// PoolSpec says whose pool it is and what it is made of.
//
// +kubebuilder:validation:XValidation:rule="self.kind == 'lvm' || !has(self.evacuate)",message="spec.evacuate is for kind lvm"
// +kubebuilder:validation:XValidation:rule="self.kind == 'hostpath' || !has(self.takeBack)",message="spec.takeBack is for kind hostpath"
type PoolSpec struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.nodeName is immutable"
	NodeName string `json:"nodeName"`
	// PoolSetName is the PoolSet it was made from.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.poolSetName is immutable"
	PoolSetName string `json:"poolSetName"`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.kind is immutable"
	Kind PoolKind `json:"kind"`
	// Evacuate names BlockDevices of the pool that shall leave it. What is on them is moved to
	// its other disks while volumes are used; then they leave the pool and are wiped. They do
	// not join it again as long as they are named. A name that is taken away ends that: what
	// was moved stays where it is, and the disk is used again. Of kind lvm, and not of a
	// volume group that was adopted.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	Evacuate []string `json:"evacuate,omitempty"`
	// TakeBack names deleted volumes of status.retained, by their entry or by the name of the
	// PersistentVolume. What is kept of them is moved to a directory of its own under the root
	// (status.takenBack) and is not removed any more, also when the name is taken away. Of
	// kind hostpath.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	TakeBack []string `json:"takeBack,omitempty"`
	// Purge names left-overs of status.leftOvers that are to be removed for good. Each is looked
	// at and put into quarantine first; it is removed when it is confirmed by the token that
	// status.purges shows then. A name that is taken away ends a quarantine, and nothing has
	// happened. A person writes it (`kubectl berth orphans purge`), never an agent.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=32
	Purge []PurgeRequest `json:"purge,omitempty"`
}

// PurgeRequest names a left-over that is to be removed.
//
// +kubebuilder:validation:XValidation:rule="self.kind != 'Directory'",message="only a Volume, a Snapshot or a Record can be purged"
// +kubebuilder:validation:XValidation:rule="self.kind == oldSelf.kind && self.identity == oldSelf.identity",message="a request to purge is for one thing: withdraw it, and ask for the other"
type PurgeRequest struct {
	// UID of status.leftOvers.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`
	UID string `json:"uid"`
	// Kind of status.leftOvers: Volume, Snapshot or Record.
	Kind LeftOverKind `json:"kind"`
	// Identity of status.leftOvers: what is there by then and has another one is not touched.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Identity string `json:"identity"`
	// Confirm is the token of status.purges. Without it, or with any other, nothing is removed.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Confirm string `json:"confirm,omitempty"`
}

// PoolState is one word for the pool's condition.
// +kubebuilder:validation:Enum=Pending;Healthy;Degraded;Failed
type PoolState string

const (
	// PoolPending waits for disks.
	PoolPending PoolState = "Pending"
	// PoolHealthy can be used.
	PoolHealthy PoolState = "Healthy"
	// PoolDegraded misses a disk, or has volumes that do; volumes that do not need it go on.
	PoolDegraded PoolState = "Degraded"
	// PoolFailed cannot be used; the condition Ready says why.
	PoolFailed PoolState = "Failed"
)

// PoolQuota is whether the filesystem of a root keeps volumes to their sizes.
// +kubebuilder:validation:Enum=Enforced;None
type PoolQuota string

const (
	// QuotaEnforced: a volume cannot hold more than its size.
	QuotaEnforced PoolQuota = "Enforced"
	// QuotaNone: sizes are promised and counted; the condition Ready says what is missing.
	QuotaNone PoolQuota = "None"
)

// PoolCopies is how the volumes of a root are snapshotted, restored and cloned.
// +kubebuilder:validation:Enum=Subvolume;Reflink;None
type PoolCopies string

const (
	// CopiesSubvolume: at one instant, while pods write; but volumes that are no subvolumes as
	// by CopiesReflink.
	CopiesSubvolume PoolCopies = "Subvolume"
	// CopiesReflink: file by file, while no pod can write to the volume; the files share their
	// blocks.
	CopiesReflink PoolCopies = "Reflink"
	// CopiesNone: not at all; the condition Ready says what is missing.
	CopiesNone PoolCopies = "None"
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
	ReasonNotRedundant    = "NotRedundant"    // volumes can be carved, and some that are there have lost their redundancy
	ReasonThinPoolFull    = "ThinPoolFull"    // the thin pool is full, or so full that nothing is admitted
	ReasonThinPoolMissing = "ThinPoolMissing" // the thin pool that was adopted is not there, or is another one
	ReasonThinPoolBehind  = "ThinPoolBehind"  // the metadata of the volume group and of the thin pool are of different transactions
	ReasonRootUnavailable = "RootUnavailable" // the root is not what it was
	ReasonNoPoolSet       = "NoPoolSet"       // no PoolSet selects the node any more
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
	// Type is the layout, or thin, or thin- and a layout other than linear, or hostpath.
	// +optional
	Type string `json:"type,omitempty"`
	// +optional
	// +kubebuilder:default=0
	VolumeCount int32 `json:"volumeCount"`
	// DiskCount is how many disks the volume group has, those that are missing too.
	// +optional
	// +kubebuilder:default=0
	DiskCount int32 `json:"diskCount"`
	// MissingDiskCount is how many of them the node does not show.
	// +optional
	MissingDiskCount int32 `json:"missingDiskCount,omitempty"`
	// Thin is how full the thin pool is.
	// +optional
	Thin *ThinPoolStatus `json:"thin,omitempty"`
	// Raid is how redundant the volumes of a redundant layout are, or the thin pool that they
	// lie in.
	// +optional
	Raid *RaidStatus `json:"raid,omitempty"`
	// Quota says, for kind hostpath, whether the sizes of new volumes are enforced.
	// +optional
	Quota PoolQuota `json:"quota,omitempty"`
	// Copies says, for kind hostpath, how volumes are snapshotted, restored and cloned. It is
	// tried when the agent begins.
	// +optional
	Copies PoolCopies `json:"copies,omitempty"`
	// Evacuations are the disks of spec.evacuate: how far they are, as long as they are part of
	// the pool.
	// +optional
	// +listType=map
	// +listMapKey=name
	Evacuations []DiskEvacuation `json:"evacuations,omitempty"`
	// RetainedCount is how many deleted volumes of kind hostpath are kept, those that were
	// taken back and are still there too. Their sizes are allocated.
	// +optional
	RetainedCount int32 `json:"retainedCount,omitempty"`
	// Retained are those of them that were deleted last, 64 at most.
	// +optional
	// +listType=map
	// +listMapKey=entry
	// +kubebuilder:validation:MaxItems=64
	Retained []RetainedVolume `json:"retained,omitempty"`
	// TakenBack says what came of spec.takeBack.
	// +optional
	// +listType=map
	// +listMapKey=name
	TakenBack []TakenBackVolume `json:"takenBack,omitempty"`
	// MachineID is /etc/machine-id of the host that has the pool. A host of another one under
	// the node's name does not take it for its own.
	// +optional
	MachineID string `json:"machineID,omitempty"`
	// Adopted is true for a volume group that Berth has not made.
	// +optional
	Adopted bool `json:"adopted,omitempty"`
	// VGName and VGUUID name the volume group of kind lvm.
	// +optional
	VGName string `json:"vgName,omitempty"`
	// +optional
	VGUUID string `json:"vgUUID,omitempty"`
	// ThinPoolName and ThinPoolUUID name a thin pool that Berth has not made.
	// +optional
	ThinPoolName string `json:"thinPoolName,omitempty"`
	// +optional
	ThinPoolUUID string `json:"thinPoolUUID,omitempty"`
	// Path and RootID name the root of kind hostpath.
	// +optional
	Path string `json:"path,omitempty"`
	// +optional
	RootID string `json:"rootID,omitempty"`
	// LeftOvers are what the node has in this pool and no object stands for, as it was when the
	// agent last looked the pool through: when it starts, and at least once an hour. They are
	// kept, and not touched unless spec.purge names them. The first 32; leftOverCount says how many there are.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	LeftOvers []LeftOver `json:"leftOvers,omitempty"`
	// +optional
	LeftOverCount int32 `json:"leftOverCount,omitempty"`
	// Purges say what has come of spec.purge.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=32
	Purges []PurgeStatus `json:"purges,omitempty"`
	// BlockDevices that the pool holds.
	// +optional
	// +listType=set
	BlockDevices []string `json:"blockDevices,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// LeftOverKind says what is left over.
// +kubebuilder:validation:Enum=Volume;Snapshot;Record;Directory
type LeftOverKind string

const (
	// LeftOverVolume is storage without a LocalVolume.
	LeftOverVolume LeftOverKind = "Volume"
	// LeftOverSnapshot is a snapshot without a LocalSnapshot.
	LeftOverSnapshot LeftOverKind = "Snapshot"
	// LeftOverRecord is an entry of the node's ledger with neither a LocalVolume nor storage.
	LeftOverRecord LeftOverKind = "Record"
	// LeftOverDirectory lies among the directories of volumes, and Berth has no record of it.
	LeftOverDirectory LeftOverKind = "Directory"
)

// LeftOver is something on a node that no object stands for.
type LeftOver struct {
	Kind LeftOverKind `json:"kind"`
	// UID of the object that it was made for; it names the thing on the disk. Not set for what
	// Berth has no record of.
	// +optional
	UID types.UID `json:"uid,omitempty"`
	// Name of that object, where the node's ledger or the thing itself has it.
	// +optional
	Name string `json:"name,omitempty"`
	// Location is the volume group and logical volume, or the directory.
	// +optional
	Location string `json:"location,omitempty"`
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// Identity names the thing itself in full: the UUIDs of volume group and logical volume, or
	// the root, the directory, and which directory it is. Empty for what cannot be purged.
	// +optional
	Identity string `json:"identity,omitempty"`
	// Claim is the namespace and the name of the claim that it was made for, with a slash
	// between them, where the place itself knows it.
	// +optional
	Claim string `json:"claim,omitempty"`
	// Of is the volume that a snapshot was taken of, by its name and its UID, as far as the node
	// knows them.
	// +optional
	Of string `json:"of,omitempty"`
	// InUse says where it is mounted, if it is.
	// +optional
	InUse string `json:"inUse,omitempty"`
}

// PurgeState is how far the removal of a left-over has come.
// +kubebuilder:validation:Enum=Refused;Waiting;Quarantined;Purging;Purged
type PurgeState string

const (
	// PurgeRefused: it is not removed; message says why. It is looked at again as long as it is
	// asked for, and then needs a new token.
	PurgeRefused PurgeState = "Refused"
	// PurgeWaiting: it could not be looked at, or not to the end; it is tried again.
	PurgeWaiting PurgeState = "Waiting"
	// PurgeQuarantined: it may be removed when it is confirmed. Pods do not get it meanwhile.
	PurgeQuarantined PurgeState = "Quarantined"
	// PurgePurging: its removal has begun, and its data are lost.
	PurgePurging PurgeState = "Purging"
	// PurgePurged: it was removed as volumes are deleted.
	PurgePurged PurgeState = "Purged"
)

// PurgeStatus is what has come of a PurgeRequest.
type PurgeStatus struct {
	// UID of the request.
	UID   string     `json:"uid"`
	State PurgeState `json:"state"`
	// Since is when the quarantine began.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Token confirms the removal of what is in quarantine, in spec.purge[].confirm. It is good
	// for this quarantine only.
	// +optional
	Token string `json:"token,omitempty"`
	// Holds says in words what is lost with it.
	// +optional
	Holds string `json:"holds,omitempty"`
	// Message says why it is in that state.
	// +optional
	Message string `json:"message,omitempty"`
}

// DiskEvacuation is how far a disk has been emptied.
type DiskEvacuation struct {
	// Name of the BlockDevice.
	Name string `json:"name"`
	// Remaining is how much of volumes is still on it; what is copied of what is being moved
	// does not count. Not set when that is not known.
	// +optional
	Remaining *resource.Quantity `json:"remaining,omitempty"`
	// Message says what is going on, or why nothing is.
	// +optional
	Message string `json:"message,omitempty"`
}

// RetainedVolume is what is kept of a deleted volume.
type RetainedVolume struct {
	// Entry names it, also among several of one name.
	Entry string `json:"entry"`
	// Volume is the name that the LocalVolume and the PersistentVolume had.
	Volume string `json:"volume"`
	// Claim is the namespace and the name of the claim, with a slash between them.
	// +optional
	Claim string `json:"claim,omitempty"`
	// Capacity it had, and still takes from the pool.
	Capacity resource.Quantity `json:"capacity"`
	// Deleted is when its deletion was done.
	Deleted metav1.Time `json:"deleted"`
	// KeptUntil is when it is removed at the earliest; later by as long as the node's agent
	// did not run. Not set for what was taken back.
	// +optional
	KeptUntil *metav1.Time `json:"keptUntil,omitempty"`
	// Path is where it is on the node.
	Path string `json:"path"`
}

// TakenBackVolume is what came of a name in spec.takeBack.
type TakenBackVolume struct {
	Name string `json:"name"`
	// Path is where its files are on the node.
	// +optional
	Path string `json:"path,omitempty"`
	// Message says why there is no path.
	// +optional
	Message string `json:"message,omitempty"`
}

// ThinPoolStatus is how full a thin pool is, rounded up. It is looked at when something
// happens to the pool, and once a minute.
type ThinPoolStatus struct {
	// DataPercent of Data is in use, MetadataPercent of Metadata.
	DataPercent     int32 `json:"dataPercent"`
	MetadataPercent int32 `json:"metadataPercent"`
	// Data and Metadata are how large it is now.
	Data     resource.Quantity `json:"data"`
	Metadata resource.Quantity `json:"metadata"`
}

// RaidStatus is how redundant the volumes of a pool are. A thin pool counts as two, its data and
// its metadata.
type RaidStatus struct {
	// DegradedVolumes lack a disk, or have not caught up with one.
	DegradedVolumes int32 `json:"degradedVolumes"`
	// RebuildingVolumes are those of them that are being written anew.
	RebuildingVolumes int32 `json:"rebuildingVolumes"`
	// RebuiltPercent is how far the one is that has come the least far; 100 when none is
	// being rebuilt.
	RebuiltPercent int32 `json:"rebuiltPercent"`
}

// PoolList is a list of Pools.
//
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pool `json:"items"`
}
