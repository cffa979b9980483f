// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// LocalVolume is one volume on one node. Its name is the name of its
// PersistentVolume and its CSI volume handle; its UID names the thing on the
// disk. The provisioner writes the spec, the node's agent the status.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=lvol,categories=berth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`
// +kubebuilder:printcolumn:name="FSType",type=string,JSONPath=`.spec.fsType`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Health",type=string,JSONPath=`.status.conditions[?(@.type=="Healthy")].reason`
// +kubebuilder:printcolumn:name="Claim",type=string,priority=1,JSONPath=`.spec.claimRef.name`
// +kubebuilder:printcolumn:name="Namespace",type=string,priority=1,JSONPath=`.spec.claimRef.namespace`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type LocalVolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   LocalVolumeSpec   `json:"spec"`
	Status LocalVolumeStatus `json:"status,omitempty"`
}

// Mode is the kind of storage a volume is carved from.
// +kubebuilder:validation:Enum=hostpath;device;lvm
type Mode string

const (
	// ModeHostpath is a directory under the root of a hostpath pool.
	ModeHostpath Mode = "hostpath"
	// ModeDevice is a whole disk.
	ModeDevice Mode = "device"
	// ModeLVM is a logical volume of a pool's volume group.
	ModeLVM Mode = "lvm"
)

// VolumeMode says how a pod sees the volume.
// +kubebuilder:validation:Enum=Filesystem;Block
type VolumeMode string

const (
	// VolumeFilesystem is mounted into the pod.
	VolumeFilesystem VolumeMode = "Filesystem"
	// VolumeBlock is a raw block device in the pod.
	VolumeBlock VolumeMode = "Block"
)

// WipePolicy says what happens to the bytes of a deleted volume before its space
// is handed out again.
// +kubebuilder:validation:Enum=zero;discard;cryptoErase;signatures;none
type WipePolicy string

const (
	// WipeZero overwrites everything with zeroes, by the device's own
	// write-zeroes where it has it. The default.
	WipeZero WipePolicy = "zero"
	// WipeDiscard discards everything, and zeroes head and tail.
	WipeDiscard WipePolicy = "discard"
	// WipeCryptoErase makes an NVMe disk delete the key that it encrypts everything
	// with, and zeroes head and tail. Only in mode device, on disks with
	// status.cryptoErase.
	WipeCryptoErase WipePolicy = "cryptoErase"
	// WipeSignatures zeroes head and tail only; old data may be readable by the
	// next owner.
	WipeSignatures WipePolicy = "signatures"
	// WipeNone leaves the bytes; a device stays Released until an operator has
	// cleaned it.
	WipeNone WipePolicy = "none"
)

// Encryption is how the content of a volume is encrypted.
// +kubebuilder:validation:Enum=luks2
type Encryption string

// EncryptionLUKS2 is LUKS2, with the passphrase that the node gets when a pod uses the
// volume.
const EncryptionLUKS2 Encryption = "luks2"

// LocalVolumeSpec is what the provisioner asks of the node. All but sizeBytes and limits is
// immutable, and a volume only grows.
//
// +kubebuilder:validation:XValidation:rule="(self.mode == 'device') != (has(self.pool) && size(self.pool) > 0)",message="spec.pool is needed in the modes lvm and hostpath, and not allowed in mode device"
// +kubebuilder:validation:XValidation:rule="self.mode != 'hostpath' || self.volumeMode == 'Filesystem'",message="mode hostpath has no block volumes: use mode lvm or device"
// +kubebuilder:validation:XValidation:rule="has(self.pool) == has(oldSelf.pool) && (!has(self.pool) || self.pool == oldSelf.pool)",message="spec.pool is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.fsType) == has(oldSelf.fsType)",message="spec.fsType is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.mkfsOptions) == has(oldSelf.mkfsOptions) && (!has(self.mkfsOptions) || self.mkfsOptions == oldSelf.mkfsOptions)",message="spec.mkfsOptions is immutable: the filesystem is made once"
// +kubebuilder:validation:XValidation:rule="has(self.adopt) == has(oldSelf.adopt) && (!has(self.adopt) || self.adopt == oldSelf.adopt)",message="spec.adopt is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)",message="spec.source is immutable: the volume began as its copy"
// +kubebuilder:validation:XValidation:rule="!has(self.source) || self.mode != 'device'",message="spec.source is for the modes lvm and hostpath"
// +kubebuilder:validation:XValidation:rule="!has(self.limits) || self.mode != 'hostpath'",message="spec.limits needs a block device of the volume's own: use mode lvm or device"
// +kubebuilder:validation:XValidation:rule="!has(self.source) || !has(self.mkfsOptions)",message="spec.source brings its filesystem along: mkfsOptions is not allowed beside it"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || has(self.adopt.leftOver) || self.mode == 'hostpath' || (self.mode == 'device' && self.volumeMode == 'Filesystem' && has(self.fsType) && size(self.fsType) > 0)",message="spec.adopt is for a directory, in mode hostpath, or for a whole disk with a filesystem: mode device, volumeMode Filesystem and spec.fsType are needed"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || has(self.adopt.leftOver) || (has(self.adopt.directory) == (self.mode == 'hostpath'))",message="spec.adopt.directory is for mode hostpath, spec.adopt.device and spec.adopt.filesystemUUID are for mode device"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || !has(self.adopt.leftOver) || self.mode == 'hostpath' || ((self.volumeMode == 'Filesystem') == (has(self.fsType) && size(self.fsType) > 0))",message="spec.adopt.leftOver is taken as it is: spec.fsType must be that of its filesystem, or volumeMode Block"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || !has(self.adopt.leftOver) || !has(self.source)",message="spec.adopt.leftOver is no copy: spec.source is not allowed beside it"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || self.mode != 'hostpath' || (!has(self.directory) && !has(self.retainFor))",message="a directory that is adopted lies at the UID of its volume, and is kept when that is deleted, or as long as it was to be: directory and retainFor are not allowed beside spec.adopt"
// +kubebuilder:validation:XValidation:rule="self.wipe != 'cryptoErase' || (self.mode == 'device' && has(self.deviceSelector) && has(self.deviceSelector.cryptoErase) && self.deviceSelector.cryptoErase)",message="spec.wipe: cryptoErase is for mode device, and needs deviceSelector.cryptoErase: true so that only a disk that can do it is taken"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || has(self.adopt.leftOver) || self.wipe == 'none'",message="spec.adopt needs wipe: none: what was handed over with its data is given back with them"
// +kubebuilder:validation:XValidation:rule="!has(self.adopt) || (!has(self.mkfsOptions) && !has(self.deviceSelector))",message="spec.adopt names the disk and nothing is formatted: mkfsOptions and deviceSelector are not allowed beside it"
// +kubebuilder:validation:XValidation:rule="!has(self.requireQuota) || !self.requireQuota || self.mode == 'hostpath'",message="spec.requireQuota is for mode hostpath: other volumes end where their device does"
// +kubebuilder:validation:XValidation:rule="has(self.requireQuota) == has(oldSelf.requireQuota) && (!has(self.requireQuota) || self.requireQuota == oldSelf.requireQuota)",message="spec.requireQuota is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.directory) || self.mode == 'hostpath'",message="spec.directory is for mode hostpath: other volumes are no directories"
// +kubebuilder:validation:XValidation:rule="has(self.directory) == has(oldSelf.directory) && (!has(self.directory) || self.directory == oldSelf.directory)",message="spec.directory is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.retainFor) || self.mode == 'hostpath'",message="spec.retainFor is for mode hostpath: in other modes a deleted volume is wiped"
// +kubebuilder:validation:XValidation:rule="has(self.retainFor) == has(oldSelf.retainFor) && (!has(self.retainFor) || self.retainFor == oldSelf.retainFor)",message="spec.retainFor is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.encryption) == has(oldSelf.encryption) && (!has(self.encryption) || self.encryption == oldSelf.encryption)",message="spec.encryption is immutable: a volume is encrypted from its beginning or never"
// +kubebuilder:validation:XValidation:rule="!has(self.encryption) || self.mode != 'hostpath'",message="spec.encryption needs a block device of the volume's own: use mode lvm or device"
// +kubebuilder:validation:XValidation:rule="!has(self.encryption) || !has(self.adopt)",message="spec.adopt hands a disk over as it is: encryption is not allowed beside it"
// +kubebuilder:validation:XValidation:rule="!has(self.mkfsOptions) || size(self.mkfsOptions) == 0 || (has(self.fsType) && size(self.fsType) > 0)",message="spec.mkfsOptions needs spec.fsType"
type LocalVolumeSpec struct {
	// NodeName is the node that holds the volume.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.nodeName is immutable"
	NodeName string `json:"nodeName"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.mode is immutable"
	Mode Mode `json:"mode"`

	// Pool is the name of the PoolSet whose pool on this node is used, in the
	// modes lvm and hostpath.
	// +optional
	Pool string `json:"pool,omitempty"`

	// SizeBytes is the size asked for. A volume only grows: less than before takes back what was
	// asked for and not made yet, down to status.capacity (policy berth-localvolume-size).
	// +kubebuilder:validation:Minimum=1
	SizeBytes int64 `json:"sizeBytes"`

	// +kubebuilder:default=Filesystem
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.volumeMode is immutable"
	VolumeMode VolumeMode `json:"volumeMode"`

	// FSType is the filesystem made on the volume; empty for block volumes and in
	// mode hostpath.
	// +optional
	// +kubebuilder:validation:Enum="";ext4;xfs;btrfs
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.fsType is immutable"
	FSType string `json:"fsType,omitempty"`

	// MkfsOptions are the words that mkfs is given besides Berth's own, in pairs of a
	// flag and its value. The node takes only those of an allow-list.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=256
	MkfsOptions []string `json:"mkfsOptions,omitempty"`

	// Encryption of the volume's content, in the modes lvm and device. sizeBytes is what
	// there is for the user: the storage is larger by the header.
	// +optional
	Encryption Encryption `json:"encryption,omitempty"`

	// RequireQuota, in mode hostpath, makes the volume only where its size is enforced by the
	// filesystem (status.quota of the Pool is Enforced).
	// +optional
	RequireQuota bool `json:"requireQuota,omitempty"`

	// Directory, in mode hostpath, is where the volume lies below the directory "named" of its
	// pool's root: names with slashes between them. Not set, it lies at its UID.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*){0,7}$`
	Directory string `json:"directory,omitempty"`

	// RetainFor, in mode hostpath, keeps what the volume holds for that long after it was
	// deleted (status.retained of the Pool). Its size stays allocated meanwhile.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('87600h')",message="spec.retainFor is a duration from 1s to 87600h"
	RetainFor *metav1.Duration `json:"retainFor,omitempty"`

	// Wipe says what happens to the bytes when the volume is deleted.
	// +kubebuilder:default=zero
	Wipe WipePolicy `json:"wipe,omitempty"`

	// DeviceSelector narrows the disks of mode device.
	// +optional
	DeviceSelector *DeviceSelector `json:"deviceSelector,omitempty"`

	// Adopt hands a disk over with the filesystem that is on it already, or a directory
	// with what is in it. An operator sets it; the provisioner never does.
	// +optional
	Adopt *Adoption `json:"adopt,omitempty"`

	// Source is what the volume begins as a copy of, on the same node and in the same pool.
	// +optional
	Source *VolumeSource `json:"source,omitempty"`

	// Limits bound what each pod can do with the volume. They can be changed at any time.
	// +optional
	Limits *VolumeLimits `json:"limits,omitempty"`

	// ClaimRef is the PersistentVolumeClaim the volume was made for.
	// +optional
	ClaimRef *ClaimReference `json:"claimRef,omitempty"`
}

// Adoption names a disk that holds a filesystem, twice over: by what the disk is and
// by what is on it. Nothing is formatted and nothing is wiped, now or later. Or it names a
// directory, which is moved to where the pool has its volumes, and kept when the volume is
// deleted. Or it names a left-over of the pool, or a whole disk that is left over, which becomes a
// volume of Berth again, and is deleted as any.
//
// +kubebuilder:validation:XValidation:rule="[has(self.directory), has(self.leftOver), has(self.device) || has(self.filesystemUUID)].filter(x, x).size() == 1",message="spec.adopt names either a disk, by device and filesystemUUID, or a directory, or a left-over"
// +kubebuilder:validation:XValidation:rule="has(self.device) == has(self.filesystemUUID)",message="spec.adopt.device and spec.adopt.filesystemUUID go together: both must be true"
type Adoption struct {
	// Device is the name of the disk's BlockDevice on spec.nodeName.
	// +optional
	// +kubebuilder:validation:MinLength=1
	Device string `json:"device,omitempty"`

	// FilesystemUUID is the UUID of the filesystem, as blkid and
	// BlockDevice.status.filesystem show it.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`
	FilesystemUUID string `json:"filesystemUUID,omitempty"`

	// Directory is the path on spec.nodeName, absolute and without symbolic links. It lies
	// on the same mount as the root of spec.pool, below the directory that the root is in.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^(/[^/]+)+$`
	Directory string `json:"directory,omitempty"`

	// LeftOver of spec.pool on spec.nodeName, of the kind Volume; in mode device a whole disk of
	// spec.nodeName that a LocalVolume holds which is gone.
	// +optional
	LeftOver *AdoptedLeftOver `json:"leftOver,omitempty"`
}

// AdoptedLeftOver names a left-over of status.leftOvers of the Pool, or a disk by who holds it (spec.claimRef of
// the BlockDevice) and by what it is (DiskIdentity), twice over: both must be true.
type AdoptedLeftOver struct {
	// UID of the LocalVolume that it was made for.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`
	UID string `json:"uid"`
	// Identity of the thing itself: what is there by then and has another one is not touched.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Identity string `json:"identity"`
}

// SourceKind is what a volume can begin as a copy of.
// +kubebuilder:validation:Enum=LocalSnapshot;LocalVolume
type SourceKind string

const (
	// SourceSnapshot is a snapshot.
	SourceSnapshot SourceKind = "LocalSnapshot"
	// SourceVolume is another volume, as it is at that moment.
	SourceVolume SourceKind = "LocalVolume"
)

// VolumeSource names a snapshot or a volume.
type VolumeSource struct {
	Kind SourceKind `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

// ClaimReference names a PersistentVolumeClaim.
type ClaimReference struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
}

// LocalVolumeReady is the condition that says whether the volume can be staged.
// True: carved and, where asked, formatted. False: it cannot be made or it was
// damaged; reason and message say why. Unknown: the agent is at it.
const LocalVolumeReady = "Ready"

// LocalVolumeHealthy is the condition that is False while something is wrong with a volume
// that can be used nevertheless, or cannot though it is there: it has lost its redundancy, is
// being rebuilt, or its thin pool is full or has failed. It is absent as long as nothing ever
// was, and True afterwards.
const LocalVolumeHealthy = "Healthy"

// LocalVolumeResized is the condition that stands while spec.sizeBytes is larger
// than status.capacity, and says how far a growth has come or why it failed.
const LocalVolumeResized = "Resized"

// ReasonHasSnapshots of LocalVolumeResized: a thick volume cannot grow while it has snapshots.
const ReasonHasSnapshots = "HasSnapshots"

// Reasons of the condition Ready. Those that are marked final are answers about
// this node: the volume will not be made here however long one waits.
const (
	// ReasonCarved: the volume stands.
	ReasonCarved = "Carved"
	// ReasonInProgress: the agent is at it.
	ReasonInProgress = "InProgress"
	// ReasonNoSpace: the pool or the node's disks cannot hold it. Final.
	ReasonNoSpace = "NoSpace"
	// ReasonPoolNotFound: the node has no such pool. Final.
	ReasonPoolNotFound = "PoolNotFound"
	// ReasonPoolNotReady: the pool is there and cannot be used now.
	ReasonPoolNotReady = "PoolNotReady"
	// ReasonToolMissing: lvm2 or the mkfs of the filesystem is not installed on
	// the host. Final.
	ReasonToolMissing = "ToolMissing"
	// ReasonInvalid: the spec asks for what the mode cannot do. Final.
	ReasonInvalid = "Invalid"
	// ReasonFailed: an operation failed and is tried again.
	ReasonFailed = "Failed"
	// ReasonIdentityMismatch: what is on the disk is not what was recorded, or the
	// node is not the machine it was. Nothing is touched.
	ReasonIdentityMismatch = "IdentityMismatch"
	// ReasonNotAdoptable: the disk or the directory of spec.adopt cannot be taken over as it
	// is now. It was not touched, and is looked at again.
	ReasonNotAdoptable = "NotAdoptable"
	// ReasonMissing: the storage was proven absent though the record says it was
	// made.
	ReasonMissing = "Missing"
)

// LVMRecord names a logical volume by what does not change.
type LVMRecord struct {
	VGName string `json:"vgName"`
	VGUUID string `json:"vgUUID"`
	LVName string `json:"lvName"`
	LVUUID string `json:"lvUUID"`
}

// DeviceRecord names a whole disk.
type DeviceRecord struct {
	// BlockDeviceName is the claimed BlockDevice.
	BlockDeviceName string `json:"blockDeviceName"`
	// Identity is what the disk said of itself when it was claimed.
	Identity DeviceIdentity `json:"identity"`
	// SizeBytes of the disk when it was claimed.
	SizeBytes int64 `json:"sizeBytes"`
}

// HostpathRecord names a directory.
type HostpathRecord struct {
	// Root is the pool's root on the host.
	Root string `json:"root"`
	// Directory is the volume's directory, relative to the root.
	Directory string `json:"directory"`
	// RootID is the identity in the marker file of the root, so that a lost mount
	// is not taken for the pool.
	RootID string `json:"rootID"`
}

// EncryptionState is how far the encryption of a volume has come.
// +kubebuilder:validation:Enum=Unsealed;Sealed
type EncryptionState string

const (
	// EncryptionUnsealed: no pod has used the volume, and nothing is on it yet.
	EncryptionUnsealed EncryptionState = "Unsealed"
	// EncryptionSealed: the header stands; from now on none is ever made again.
	EncryptionSealed EncryptionState = "Sealed"
)

// EncryptionStatus is what is known of an encryption. It is no secret.
type EncryptionStatus struct {
	Format Encryption      `json:"format"`
	State  EncryptionState `json:"state"`
	// UUID of the LUKS header. A copy has that of its source.
	UUID string `json:"uuid"`
	// Cipher of the data.
	// +optional
	Cipher string `json:"cipher,omitempty"`
	// KeyGeneration is how many passphrases the volume has had: 1 with its first, one
	// more after each change.
	// +optional
	KeyGeneration int64 `json:"keyGeneration,omitempty"`
}

// LocalVolumeStatus is what the agent made and what it last saw.
type LocalVolumeStatus struct {
	// Capacity is the size of the volume as made, never less than asked for.
	// +optional
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// Formatted is true from the moment a filesystem was made; from then on no mkfs
	// ever runs on this volume again.
	// +optional
	Formatted bool `json:"formatted,omitempty"`
	// FilesystemUUID of the filesystem that was made.
	// +optional
	FilesystemUUID string `json:"filesystemUUID,omitempty"`
	// MachineID is /etc/machine-id of the host that made the volume. Staging is
	// refused on any other.
	// +optional
	MachineID string `json:"machineID,omitempty"`
	// +optional
	LVM *LVMRecord `json:"lvm,omitempty"`
	// +optional
	Device *DeviceRecord `json:"device,omitempty"`
	// +optional
	Hostpath *HostpathRecord `json:"hostpath,omitempty"`
	// Encryption is how the volume is encrypted, if it is.
	// +optional
	Encryption *EncryptionStatus `json:"encryption,omitempty"`
	// Limits are those in force.
	// +optional
	Limits *VolumeLimits `json:"limits,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// LocalVolumeList is a list of LocalVolumes.
//
// +kubebuilder:object:root=true
type LocalVolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LocalVolume `json:"items"`
}
