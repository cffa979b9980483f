// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"time"
)

// Backend makes and unmakes volumes in one place: one volume group, one hostpath
// root, or the free disks of one node. It does not format and does not mount.
//
// Every method may be called again after any crash, of the process or of the
// machine, and converges: nothing leaked, nothing twice, nothing lost. Methods
// are safe for concurrent use; calls for different volumes do not wait for each
// other longer than the storage forces them to. The caller never runs two calls
// for the same volume at once.
type Backend interface {
	// Create makes the volume, or finds the one that an earlier call made: both
	// return the same record, told by Spec.ID. The storage is reachable through
	// Locate when it returns. A volume that exists with another size is grown to
	// the asked size, never shrunk.
	//
	// The first and last 4 MiB of a new block device read as zeroes: what an earlier
	// owner of the same place left there is nobody's. A volume that is found is cleared
	// like that only with Spec.Fresh.
	//
	// ErrNoSpace, ErrInvalid and ErrToolMissing promise that nothing was made. Any
	// other error leaves the outcome open; call Create or Delete again.
	Create(ctx context.Context, spec Spec) (Record, error)

	// Locate verifies that what is on the disk is what the record says (ErrIdentity
	// otherwise), makes it reachable (activates the logical volume) and returns
	// where. ErrNotFound means proven absent (I4).
	Locate(ctx context.Context, id string, rec Record) (Location, error)

	// Grow makes the volume at least sizeBytes large and returns the new record.
	// A volume that is large enough already is left alone. ErrNoSpace promises that
	// it was not changed.
	Grow(ctx context.Context, id string, rec Record, sizeBytes int64) (Record, error)

	// Delete makes the bytes unreadable as the policy asks and gives the space
	// back. rec may be nil when nothing was ever recorded; then the volume is
	// looked for by its ID. It returns nil when the volume is proven absent, also
	// when it was so before. ErrInUse when somebody holds it: nothing was touched.
	Delete(ctx context.Context, id string, rec *Record, wipe WipePolicy) error

	// List returns every volume of ours that is in this place, from a successful
	// and complete observation; any doubt is an error (I4, I5).
	List(ctx context.Context) ([]Found, error)

	// Capacity returns the room there is. Create admits by this same function (I8).
	Capacity(ctx context.Context) (Capacity, error)
}

// Spec is a wish for a volume.
type Spec struct {
	// ID names the thing on disk: the UID of the LocalVolume, a lower-case UUID.
	ID string
	// Name is for people (messages, LVM tags): the LocalVolume's name.
	Name string
	// SizeBytes is the least size. Backends round up to what they can make.
	SizeBytes int64
	// Access says how it will be used. A backend may refuse one (ErrInvalid).
	Access Access
	// SelectDisk narrows the disks of device mode; nil takes any usable one. Other
	// backends ignore it.
	SelectDisk func(Disk) bool
	// Limited makes a volume that can hold more than its size ErrInvalid. Only of hostpath
	// mode: other volumes end where their device does.
	Limited bool
	// Directory is where the volume lies below the place's root, instead of at a name of the
	// backend's own; empty for that. Only of hostpath mode: other backends ignore it.
	// ErrInvalid when it is no such path, or another volume lies at, above or below it.
	Directory string
	// RetainFor keeps what the volume holds for that long after it was deleted; 0 not at all.
	// Only of hostpath mode: other backends ignore it.
	RetainFor time.Duration
	// Claim is the namespace and the name of the claim that the volume is made for, with a
	// slash between them, for people; it may be empty.
	Claim string
	// Fresh says that the caller has kept durably, before it first asked for this
	// volume, that there was none of this ID (Backend implementations that need it have
	// a method Absent for the proof), and that it has handed the volume to nobody since.
	// What is found under the ID is then what a killed call left.
	Fresh bool
	// Source is what the volume begins as a copy of, nil for an empty one. Backends that
	// are no Snapshotter refuse it (ErrInvalid). What was copied is never cleared.
	Source *Source
}

// Adoption names a disk with a filesystem, a directory or a left-over that becomes a volume as it
// is.
type Adoption struct {
	// LeftOver is for a LeftOverTaker, nil for others.
	LeftOver *LeftOver

	// Directory is the absolute path on the host; empty for a disk. The other fields are empty
	// then.
	Directory string
	// Disk is the name under which the registry knows the disk.
	Disk string
	// FSType and FSUUID of the filesystem on it, as libblkid tells them.
	FSType, FSUUID string
}

// Disk is what a device-mode selector may look at.
type Disk struct {
	Name       string
	Path       string
	Links      []string
	SizeBytes  int64
	Model      string
	Serial     string
	Transport  string
	Rotational bool
	Weak       bool
	// CryptoErase is true when Wipe can follow WipeCryptoErase.
	CryptoErase bool
	// Controller names the adapter that the disk is behind; empty when it is not known.
	Controller string
}

// Location is where a volume can be reached on the host right now. It is not
// stable: kernel names change at a reboot.
type Location struct {
	// Device is the block device's path on the host, empty in mode hostpath.
	Device string
	// Directory is the absolute path on the host, only in mode hostpath.
	Directory string
	// SizeBytes is its size right now.
	SizeBytes int64
}

// Found is a volume that a backend holds.
type Found struct {
	ID     string
	Record Record
}

// Capacity is the room in one place.
type Capacity struct {
	// TotalBytes that volumes may use, any reserve taken off.
	TotalBytes int64
	// AllocatedBytes are promised to volumes.
	AllocatedBytes int64
	// FreeBytes can still be promised. Never negative.
	FreeBytes int64
	// MaxVolumeBytes is the largest single volume that can be made now.
	MaxVolumeBytes int64
	// Volumes is the number of volumes.
	Volumes int
}

// And is the capacity of two places of which each volume is in one.
func (c Capacity) And(other Capacity) Capacity {
	return Capacity{
		TotalBytes:     c.TotalBytes + other.TotalBytes,
		AllocatedBytes: c.AllocatedBytes + other.AllocatedBytes,
		FreeBytes:      c.FreeBytes + other.FreeBytes,
		MaxVolumeBytes: max(c.MaxVolumeBytes, other.MaxVolumeBytes),
		Volumes:        c.Volumes + other.Volumes,
	}
}

// Fits reports whether a volume of sizeBytes can be made now. It is the one
// decision that the published capacity and the admission share (I8).
func (c Capacity) Fits(sizeBytes int64) bool {
	return sizeBytes > 0 && sizeBytes <= c.MaxVolumeBytes && sizeBytes <= c.FreeBytes
}
