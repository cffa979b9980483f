// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "fmt"

// Mode is the kind of storage a volume is carved from.
type Mode string

// The three modes.
const (
	ModeHostpath Mode = "hostpath"
	ModeDevice   Mode = "device"
	ModeLVM      Mode = "lvm"
)

// Access says how the volume is used.
type Access string

// The two kinds of access.
const (
	AccessFilesystem Access = "Filesystem"
	AccessBlock      Access = "Block"
)

// WipePolicy says what happens to the bytes of a deleted volume.
type WipePolicy string

// The wipe policies; see the API's WipePolicy for what each leaves behind.
const (
	WipeZero        WipePolicy = "zero"
	WipeDiscard     WipePolicy = "discard"
	WipeCryptoErase WipePolicy = "cryptoErase"
	WipeSignatures  WipePolicy = "signatures"
	WipeNone        WipePolicy = "none"
)

// CheckWipe says what is wrong with a policy for a mode: ErrInvalid for one that is not
// known, or that the mode cannot follow.
func CheckWipe(mode Mode, policy WipePolicy) error {
	switch policy {
	case WipeZero, WipeDiscard, WipeSignatures, WipeNone:
		return nil
	case WipeCryptoErase:
		if mode != ModeDevice {
			return fmt.Errorf("wipe policy %s in mode %s: only a whole disk has a key of its own: %w", policy, mode, ErrInvalid)
		}
		return nil
	}
	return fmt.Errorf("wipe policy %q is unknown: %w", policy, ErrInvalid)
}

// Record is what a backend made, told by what does not change: UUIDs and device
// identities, never kernel names. It is stored in the node's ledger and in the
// LocalVolume's status, and is what every later call is checked against. Exactly
// one of LVM, Device and Hostpath is set.
type Record struct {
	Mode      Mode            `json:"mode"`
	SizeBytes int64           `json:"sizeBytes"`
	LVM       *LVMRecord      `json:"lvm,omitempty"`
	Device    *DeviceRecord   `json:"device,omitempty"`
	Hostpath  *HostpathRecord `json:"hostpath,omitempty"`
}

// LVMRecord names a logical volume.
type LVMRecord struct {
	VGName string `json:"vgName"`
	VGUUID string `json:"vgUUID"`
	LVName string `json:"lvName"`
	LVUUID string `json:"lvUUID"`
}

// DeviceRecord names a whole disk.
type DeviceRecord struct {
	// Name under which the registry of disks knows it (the BlockDevice's name).
	Name string `json:"name"`
	// IdentityScheme and IdentityValue are what the disk said of itself.
	IdentityScheme string `json:"identityScheme"`
	IdentityValue  string `json:"identityValue"`
	// SizeBytes of the disk when it was claimed.
	SizeBytes int64 `json:"sizeBytes"`
}

// HostpathRecord names a directory under a pool's root.
type HostpathRecord struct {
	Root      string `json:"root"`
	Directory string `json:"directory"`
	RootID    string `json:"rootID"`
}

// SameStorage reports whether two records name the same thing on disk. Sizes do
// not count: a volume grows.
func (r Record) SameStorage(o Record) bool {
	if r.Mode != o.Mode {
		return false
	}
	switch r.Mode {
	case ModeLVM:
		return r.LVM != nil && o.LVM != nil && r.LVM.VGUUID == o.LVM.VGUUID && r.LVM.LVUUID == o.LVM.LVUUID
	case ModeDevice:
		return r.Device != nil && o.Device != nil && r.Device.Name == o.Device.Name &&
			r.Device.IdentityScheme == o.Device.IdentityScheme && r.Device.IdentityValue == o.Device.IdentityValue
	case ModeHostpath:
		return r.Hostpath != nil && o.Hostpath != nil && r.Hostpath.RootID == o.Hostpath.RootID &&
			r.Hostpath.Directory == o.Hostpath.Directory
	}
	return false
}
