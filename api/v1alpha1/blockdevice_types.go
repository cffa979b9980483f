// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// BlockDevice is one disk or partition that a node has seen. Its name is a hash
// of the node and the strongest identity the disk has; kernel names such as
// /dev/sdb are status, never keys, for a disk comes back under another name
// after a reboot.
//
// There is no status subresource on purpose: the node's agent writes both
// halves, and one write keeps spec.claimRef and status.claimState from ever
// disagreeing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=bd,categories=berth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="NodeName",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Path",type=string,priority=1,JSONPath=`.status.path`
// +kubebuilder:printcolumn:name="FSType",type=string,priority=1,JSONPath=`.status.filesystem.type`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.status.sizeBytes`
// +kubebuilder:printcolumn:name="ClaimState",type=string,JSONPath=`.status.claimState`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Model",type=string,priority=1,JSONPath=`.status.model`
// +kubebuilder:printcolumn:name="Serial",type=string,priority=1,JSONPath=`.status.serial`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Usable")].message`
type BlockDevice struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BlockDeviceSpec   `json:"spec"`
	Status BlockDeviceStatus `json:"status,omitempty"`
}

// BlockDeviceSpec says where the disk is and who holds it.
type BlockDeviceSpec struct {
	// NodeName is the node that has seen the disk.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.nodeName is immutable: a disk that moved is a new BlockDevice on its new node"
	NodeName string `json:"nodeName"`

	// Reserved keeps the disk out of every claim and every pool; the text says
	// why and for whom. It is the operator's field: no controller writes it. A
	// claim that stands already is not touched by it.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Reserved string `json:"reserved,omitempty"`

	// ClaimRef is the pool or volume that holds the disk. The node's agent writes
	// it before anything else happens to the disk.
	// +optional
	ClaimRef *BlockDeviceClaimRef `json:"claimRef,omitempty"`

	// Purge asks to give up what is on the disk: it is claimed for a LocalVolume that is gone. Its
	// uid is that of spec.claimRef, its identity what DiskIdentity makes of the status. The disk is
	// looked at and put into quarantine first; it is released, and wiped as the volume's class had
	// said, when it is confirmed by the token that status.purges shows then. Taken away, it ends a
	// quarantine, and nothing has happened. A person writes it (`kubectl berth orphans purge`),
	// never an agent.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=1
	// +kubebuilder:validation:XValidation:rule="self.all(r, r.kind == 'Volume')",message="of a disk, a Volume can be purged"
	Purge []PurgeRequest `json:"purge,omitempty"`
}

// BlockDeviceClaimRef names the object that holds a disk.
type BlockDeviceClaimRef struct {
	// Kind of the holder.
	// +kubebuilder:validation:Enum=LocalVolume;Pool
	Kind string `json:"kind"`
	// Name of the holder.
	Name string `json:"name"`
	// UID of the holder: an object that was made anew under an old name does not
	// inherit a disk.
	UID types.UID `json:"uid"`
}

// ClaimState says whether a disk is held.
// +kubebuilder:validation:Enum=Unclaimed;Claimed;Released
type ClaimState string

const (
	// ClaimStateUnclaimed is a disk that nothing of Berth's holds.
	ClaimStateUnclaimed ClaimState = "Unclaimed"
	// ClaimStateClaimed is a disk that a pool or a volume holds.
	ClaimStateClaimed ClaimState = "Claimed"
	// ClaimStateReleased is a disk whose holder is gone and that is not clean yet.
	// It is handed out to nobody.
	ClaimStateReleased ClaimState = "Released"
)

// DeviceState says whether the kernel shows the disk now.
// +kubebuilder:validation:Enum=Active;Inactive;Unknown
type DeviceState string

const (
	// DeviceActive is a disk that the node's kernel shows.
	DeviceActive DeviceState = "Active"
	// DeviceInactive is a disk that was seen and is gone; its claim is kept.
	DeviceInactive DeviceState = "Inactive"
	// DeviceUnknown is a disk that could not be examined.
	DeviceUnknown DeviceState = "Unknown"
)

// Conditions of a BlockDevice.
const (
	// BlockDeviceUsable is True when the disk may be claimed: blank, whole, kept by
	// every filter, unlike any other. When False its message, which kubectl shows
	// as REASON, says why in words.
	BlockDeviceUsable = "Usable"
	// BlockDeviceHealthy is False when the disk says itself that it is failing, or
	// does not carry out commands: it is handed out to nobody. It is Unknown when the
	// disk could not be asked, and missing for disks that have no way to tell.
	BlockDeviceHealthy = "Healthy"
)

// Reasons of the condition Usable.
const (
	ReasonBlank          = "Blank"          // nothing on it, usable
	ReasonClaimed        = "Claimed"        // held by a pool or a volume of ours
	ReasonFiltered       = "Filtered"       // a filter of berth-config drops it
	ReasonInUse          = "InUse"          // mounted, swap, holder, or opened by somebody
	ReasonHasContent     = "HasContent"     // signature or data that we did not write
	ReasonPartitioned    = "Partitioned"    // carries a partition table
	ReasonConflicted     = "Conflicted"     // a second disk shows the same identity
	ReasonWeakIdentity   = "WeakIdentity"   // nothing tells it from another disk
	ReasonReadOnly       = "ReadOnly"       // the kernel refuses writes
	ReasonReserved       = "Reserved"       // spec.reserved is set
	ReasonFailing        = "Failing"        // the condition Healthy is False
	ReasonCleaning       = "Cleaning"       // released, being wiped
	ReasonWipeFailed     = "WipeFailed"     // released, would not come clean
	ReasonGone           = "Gone"           // not seen by the kernel any more
	ReasonUnreadable     = "Unreadable"     // reading it failed, so nothing is known
	ReasonUnsupported    = "Unsupported"    // zoned, zero-sized, or of a kind we do not use
	ReasonFiltersMissing = "FiltersMissing" // no valid filter configuration was ever seen
)

// Reasons of the condition Healthy.
const (
	ReasonGood        = "Good"        // SMART passed
	ReasonWorn        = "Worn"        // works, and should be replaced at the next occasion
	ReasonSelfFailing = "SelfFailing" // SMART or the NVMe health log says so
	ReasonIOErrors    = "IOErrors"    // commands fail, or are not answered
	ReasonNotTold     = "NotTold"     // the disk could not be asked, or tells nothing
)

// IdentityQuality says how surely an identity names one disk.
// +kubebuilder:validation:Enum=Strong;Weak
type IdentityQuality string

const (
	// IdentityStrong comes from the device itself (WWN, NGUID, serial).
	IdentityStrong IdentityQuality = "Strong"
	// IdentityWeak comes from where the disk is plugged in (by-path).
	IdentityWeak IdentityQuality = "Weak"
)

// DeviceIdentity is the evidence by which a disk is known again.
type DeviceIdentity struct {
	// Scheme names the evidence used, the strongest there is: nguid, eui64, wwn,
	// serial, dm-uuid, md-uuid, partuuid, loop-file or by-path.
	Scheme string `json:"scheme"`
	// Value is the identity under that scheme.
	Value string `json:"value"`
	// Quality is Weak when only the place of the disk is known.
	Quality IdentityQuality `json:"quality"`
}

// DiskIdentity names a disk in full, as spec.purge of its BlockDevice does.
func DiskIdentity(scheme, value string, sizeBytes int64) string {
	return fmt.Sprintf("%s %s, %d bytes", scheme, value, sizeBytes)
}

// BlockDeviceFilesystem is what a probe found on the disk. It is evidence, never
// the disk's identity.
type BlockDeviceFilesystem struct {
	// Type as libblkid names it, for example ext4, LVM2_member, swap.
	// +optional
	Type string `json:"type,omitempty"`
	// UUID of the filesystem or member.
	// +optional
	UUID string `json:"uuid,omitempty"`
	// Label of the filesystem.
	// +optional
	Label string `json:"label,omitempty"`
	// MountPoints on the host.
	// +optional
	// +listType=set
	MountPoints []string `json:"mountPoints,omitempty"`
}

// BlockDeviceWipe is the cleaning of a released disk.
type BlockDeviceWipe struct {
	// Token permits exactly one wipe. It is minted when the claim is released and
	// removed when the wipe has been verified.
	Token string `json:"token"`
	// Policy is what the class of the released volume asked for.
	Policy WipePolicy `json:"policy"`
	// StartedAt is when the disk was released.
	StartedAt metav1.Time `json:"startedAt"`
	// DoneBytes is how much of the disk was wiped when that was last written down. A
	// wipe that is cut off begins anew.
	// +optional
	DoneBytes int64 `json:"doneBytes,omitempty"`
	// Content is what was on the disk when it was released. A disk that holds something else by
	// then is not wiped: it is another one. Absent when it was not known, because the disk was
	// away or could not be read.
	// +optional
	Content *BlockDeviceContent `json:"content,omitempty"`
}

// BlockDeviceContent is what libblkid finds on a disk; empty for nothing that it knows.
type BlockDeviceContent struct {
	// Type as libblkid names it (ext4, crypto_LUKS, LVM2_member), of a partition table (gpt, dos),
	// or contradiction, for several signatures that contradict each other.
	// +optional
	Type string `json:"type,omitempty"`
	// UUID of that.
	// +optional
	UUID string `json:"uuid,omitempty"`
}

// BlockDeviceSighting is where a disk was before it came to its node.
type BlockDeviceSighting struct {
	// NodeName of the node that had it.
	NodeName string `json:"nodeName"`
	// Name of its BlockDevice there.
	Name string `json:"name"`
	// ClaimRef is who holds it there, if anybody.
	// +optional
	ClaimRef *BlockDeviceClaimRef `json:"claimRef,omitempty"`
}

// BlockDeviceStatus is what the node's agent last saw.
type BlockDeviceStatus struct {
	// Path is the kernel's present name of the disk. It changes; never key by it.
	// +optional
	Path string `json:"path,omitempty"`
	// DevLinks are the stable links udev keeps for the disk.
	// +optional
	// +listType=set
	DevLinks []string `json:"devLinks,omitempty"`
	// SizeBytes is the size of the disk.
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// LogicalBlockSizeBytes is the smallest unit the disk can address.
	// +optional
	LogicalBlockSizeBytes int64 `json:"logicalBlockSizeBytes,omitempty"`
	// PhysicalBlockSizeBytes is the smallest unit the disk writes without a
	// read-modify-write.
	// +optional
	PhysicalBlockSizeBytes int64 `json:"physicalBlockSizeBytes,omitempty"`
	// DeviceType is disk, partition, loop, lvm, crypt, mpath, md or other.
	// +optional
	DeviceType string `json:"deviceType,omitempty"`
	// Transport is virtio, nvme, sata, sas, usb, iscsi, fc, mmc, … or empty.
	// +optional
	Transport string `json:"transport,omitempty"`
	// +optional
	Vendor string `json:"vendor,omitempty"`
	// +optional
	Model string `json:"model,omitempty"`
	// +optional
	Serial string `json:"serial,omitempty"`
	// WWN is the world-wide name, NGUID or EUI-64.
	// +optional
	WWN string `json:"wwn,omitempty"`
	// +optional
	FirmwareRevision string `json:"firmwareRevision,omitempty"`
	// +optional
	Rotational bool `json:"rotational,omitempty"`
	// +optional
	Removable bool `json:"removable,omitempty"`
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
	// CryptoErase is true when the disk can delete the key that it encrypts everything
	// with, and nothing but itself would be erased: an NVMe namespace whose controller
	// says so. It is found out when the content of the disk is looked at.
	// +optional
	CryptoErase bool `json:"cryptoErase,omitempty"`
	// Parent is the BlockDevice name of the disk a partition is on.
	// +optional
	Parent string `json:"parent,omitempty"`
	// Holders are the kernel names of the devices stacked on this one.
	// +optional
	// +listType=set
	Holders []string `json:"holders,omitempty"`
	// Partitions are the kernel names of the disk's partitions.
	// +optional
	// +listType=set
	Partitions []string `json:"partitions,omitempty"`
	// Filesystem is what the last probe found.
	// +optional
	Filesystem *BlockDeviceFilesystem `json:"filesystem,omitempty"`
	// Identity is the evidence the name was made from.
	// +optional
	Identity *DeviceIdentity `json:"identity,omitempty"`
	// MachineID is /etc/machine-id of the node that saw the disk: a node that was
	// made anew under an old name is another node.
	// +optional
	MachineID string `json:"machineID,omitempty"`
	// LastSeen is the other node that had the disk before, by its identity.
	// +optional
	LastSeen *BlockDeviceSighting `json:"lastSeen,omitempty"`
	// ClaimState says whether the disk is held.
	// +optional
	ClaimState ClaimState `json:"claimState,omitempty"`
	// State says whether the kernel shows the disk.
	// +optional
	State DeviceState `json:"state,omitempty"`
	// Wipe stands while a released disk is being cleaned.
	// +optional
	Wipe *BlockDeviceWipe `json:"wipe,omitempty"`
	// Purges say what has come of spec.purge.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=4
	Purges []PurgeStatus `json:"purges,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BlockDeviceList is a list of BlockDevices.
//
// +kubebuilder:object:root=true
type BlockDeviceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BlockDevice `json:"items"`
}
