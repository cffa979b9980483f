// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// diskPlace begins the place of a left-over that is a disk. No PoolSet has a slash in its name.
const diskPlace = "blockdevice/"

func placeOfDisk(name string) string { return diskPlace + name }

// diskOfPlace returns the disk that a place is; false for a pool.
func diskOfPlace(place string) (name string, is bool) { return strings.CutPrefix(place, diskPlace) }

// placeOfLeftOver is the disk that a volume holds which no object stands for, as its BlockDevice
// says at this moment.
func (p *Purger) placeOfLeftOver(ctx context.Context, b volume.Backend, from volume.LeftOver) (PurgePlace, error) {
	x, err := examinerOf(b, v1alpha1.LeftOverVolume)
	if err != nil {
		return PurgePlace{}, err
	}
	exam, err := x.Examine(ctx, from.ID)
	switch {
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrIdentity):
		return PurgePlace{}, fmt.Errorf("%w: %w", errKept, err)
	case err != nil:
		return PurgePlace{}, fmt.Errorf("look at it: %w", err)
	case p.PlaceOfDisk == nil || exam.Record.Device == nil:
		return PurgePlace{}, fmt.Errorf("%w: it is no disk that can be looked at", errKept)
	}
	bd := &v1alpha1.BlockDevice{}
	if err := p.Live.Get(ctx, client.ObjectKey{Name: exam.Record.Device.Name}, bd); err != nil {
		return PurgePlace{}, fmt.Errorf("read BlockDevice %s: %w", exam.Record.Device.Name, err)
	}
	place := p.PlaceOfDisk(bd)
	place.Backend = b
	asked := slices.ContainsFunc(bd.Spec.Purge, func(r v1alpha1.PurgeRequest) bool { return r.UID == from.ID })
	if place.Kept == "" && asked {
		place.Kept = "somebody has asked to purge it (spec.purge of its BlockDevice): withdraw that first"
	}
	return place, nil
}

// touch has the place of a left-over looked at again.
func (p *Purger) touch(place string) {
	name, isDisk := diskOfPlace(place)
	switch {
	case !isDisk:
		p.Carver.Backends.Touch(place)
	case p.DiskTouched != nil:
		p.DiskTouched(name)
	}
}

// identifyDisk proves what a disk that holds no mark of Berth is known by: that it is the disk
// that was named, that no record of the node has it for something else, and that there is on it
// what the ledger says. A serial number that a hypervisor gives to a slot comes back with
// whatever disk is there next.
func (p *Purger) identifyDisk(ctx context.Context, place PurgePlace, found provenLeftOver) error {
	e, disk := found.entry, found.exam.Record.Device
	name, _ := diskOfPlace(place.PoolSet)
	switch {
	case disk == nil || disk.Name != name:
		return fmt.Errorf("%w: it is not what holds the disk %s: %w", errKept, name, volume.ErrIdentity)
	case disk.IdentityScheme == block.SchemeByPath:
		return fmt.Errorf("%w: only its place (%s) tells the disk from another one", errKept, disk.IdentityValue)
	}
	for _, other := range p.Ledger.All() {
		if other.UID != e.UID && other.MachineID == p.Carver.MachineID && other.Record != nil && other.Record.Device != nil && other.Record.Device.Name == name {
			return fmt.Errorf("%w: the node's ledger has the disk for volume %s (%s), too", errKept, other.Name, other.UID)
		}
	}
	if damaged := p.Ledger.Damaged(); len(damaged) > 0 {
		return fmt.Errorf("%w: a damaged entry of the node's ledger may be of this disk: %w", errKept, damaged[0])
	}
	if !found.known || found.exam.Device == "" {
		return nil
	}
	if e.Encryption != nil {
		return p.identifyEncrypted(ctx, found)
	}
	if !e.Formatted() {
		return nil
	}
	switch s, err := p.Filesystems.Inspect(ctx, found.exam.Device); {
	case errors.Is(err, mount.ErrNoFilesystem):
		return nil // erased by its user, perhaps: that is shown, and no other filesystem is there
	case err != nil:
		return fmt.Errorf("read what is on the disk: %w", err)
	case !strings.EqualFold(s.UUID, e.FSUUID):
		return fmt.Errorf("%w: on the disk is the filesystem %s, and the node's ledger says %s: %w", errKept, s.UUID, e.FSUUID, volume.ErrIdentity)
	}
	return nil
}

// identifyEncrypted proves that on the disk of a volume that is encrypted is no other one's header,
// and no filesystem. That there is no header at all is shown.
func (p *Purger) identifyEncrypted(ctx context.Context, found provenLeftOver) error {
	_, err := p.Carver.Encrypted.HasHeader(ctx, found.entry, found.exam.Device)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, volume.ErrIdentity), errors.Is(err, luks.ErrDamaged):
		return fmt.Errorf("%w: %w", errKept, err)
	}
	return fmt.Errorf("read what is on the disk: %w", err)
}

// hasOwnHeader reports whether on a disk that the ledger does not know is the LUKS header of its volume, whose UUID is the
// UID. A header of another one is what the user of a raw volume has put there, as far as anybody knows.
func (p *Purger) hasOwnHeader(ctx context.Context, found provenLeftOver) (bool, error) {
	if p.Carver.Encrypted == nil {
		return false, nil
	}
	e := found.entry
	e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, UUID: e.UID}
	has, err := p.Carver.Encrypted.HasHeader(ctx, e, found.exam.Device)
	if errors.Is(err, volume.ErrIdentity) || errors.Is(err, luks.ErrDamaged) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read what is on the disk: %w", err)
	}
	return has, nil
}

// linksTo are the stable paths by which somebody else may have what a volume is made of: those of
// its disk, and that of the filesystem that the ledger knows on it.
func (place PurgePlace) linksTo(e ledger.Entry) []string {
	if place.Mode != volume.ModeDevice || e.FSUUID == "" {
		return place.Links
	}
	return append(slices.Clone(place.Links), "/dev/disk/by-uuid/"+e.FSUUID)
}

// proveShown proves that on a disk is what was shown of it when it was put into quarantine: that is
// what was confirmed. By what it says of itself a disk is not always told from the one that has
// taken its slot.
func (p *Purger) proveShown(ctx context.Context, place PurgePlace, rec *purgeRecord, found provenLeftOver) error {
	if place.Mode != volume.ModeDevice {
		return nil
	}
	now := p.contents(ctx, place, found)
	switch {
	case strings.Contains(", "+rec.Holds+", ", ", "+now+", "):
		return nil
	case now == holdsUnread:
		return errors.New("what is on the disk could not be read")
	}
	return fmt.Errorf("%w: on the disk is something else than was shown: %s: %w", errKept, now, volume.ErrIdentity)
}

// proveReleased returns an error as long as a volume holds a disk. One that is away is released
// when it is back and was proven to be that disk.
func (p *Purger) proveReleased(ctx context.Context, place PurgePlace, uid string) error {
	held, err := place.Backend.List(ctx)
	if err != nil {
		return fmt.Errorf("look whether the disk was released: %w", err)
	}
	for _, v := range held {
		if v.ID == uid {
			return fmt.Errorf("the disk is away: %w", volume.ErrNotFound)
		}
	}
	return nil
}
