// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Options of a Backend.
type Options struct {
	// Registry of the node's disks.
	Registry Registry
	// Disks opens them; nil means the block devices of this host.
	Disks Opener
	// Prober tells what is on a disk that is to be adopted; nil refuses every one.
	Prober Prober
	// Log receives why a disk was passed over; nil means slog.Default.
	Log *slog.Logger
}

// Prober is what a Backend needs to know a filesystem; block.Prober is one.
type Prober interface {
	// Probe looks at the content of a device, past every cache.
	Probe(ctx context.Context, path string) (block.Content, error)
}

// Backend makes volumes of the whole disks of one node. It implements
// volume.Backend.
type Backend struct {
	registry Registry
	disks    Opener
	prober   Prober
	log      *slog.Logger
	taking   taking
}

var _ volume.Backend = (*Backend)(nil)

// New returns a backend. What it needs to remember is in the registry.
func New(o Options) *Backend {
	b := &Backend{registry: o.Registry, disks: o.Disks, prober: o.Prober, log: o.Log}
	if b.disks == nil {
		b.disks = BlockOpener{}
	}
	if b.log == nil {
		b.log = slog.Default()
	}
	return b
}

// Locate implements volume.Backend. A disk that is claimed and was pulled is
// ErrNotFound; the claim stays, and the volume is back when the disk is.
func (b *Backend) Locate(ctx context.Context, id string, rec volume.Record) (volume.Location, error) {
	held, err := b.held(ctx, id, &rec)
	if err != nil {
		return volume.Location{}, fmt.Errorf("locate volume %s: %w", id, err)
	}
	now, err := b.resolve(ctx, id, held)
	if err != nil {
		return volume.Location{}, fmt.Errorf("locate volume %s: %w", id, err)
	}
	if now.SizeBytes < rec.Device.SizeBytes {
		return volume.Location{}, fmt.Errorf("locate volume %s: disk %s has %d bytes now, %d were recorded: %w",
			id, now.Name, now.SizeBytes, rec.Device.SizeBytes, volume.ErrIdentity)
	}
	return volume.Location{Device: now.Path, SizeBytes: now.SizeBytes}, nil
}

// Grow implements volume.Backend. A disk has the size it has: what is larger is
// ErrInvalid, which no retry changes.
func (b *Backend) Grow(ctx context.Context, id string, rec volume.Record, sizeBytes int64) (volume.Record, error) {
	held, err := b.held(ctx, id, &rec)
	if err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	now, err := b.resolve(ctx, id, held)
	if err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	if now.SizeBytes < sizeBytes {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, cannotGrow(now, sizeBytes))
	}
	return record(now), nil
}

// Delete implements volume.Backend. It returns when the disk is Released, which
// keeps everybody from it; the wipe is the Cleaner's work and takes its time.
//
// In use is a disk that is mounted, stacked upon or opened exclusively. A process
// that has it open otherwise, as a pod has a block volume, is not seen: the caller
// unpublishes first.
//
// A disk that is not present is released too, so that the volume of a dead disk
// can be deleted, and is wiped when it comes back.
func (b *Backend) Delete(ctx context.Context, id string, rec *volume.Record, wipe volume.WipePolicy) error {
	held, err := b.held(ctx, id, rec)
	if errors.Is(err, volume.ErrNotFound) {
		return nil // no disk is claimed for it: proven by the registry
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	now, err := b.resolve(ctx, id, held)
	switch {
	case err == nil:
		if err := b.proveUnused(ctx, now); err != nil {
			return fmt.Errorf("delete volume %s: %w", id, err)
		}
	case errors.Is(err, volume.ErrNotFound):
		b.log.Warn("releasing a disk that is not there; it is wiped when it returns",
			"volume", id, "disk", held.Name)
	default:
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	if _, err := b.registry.Release(ctx, held.Name, id, wipe); err != nil {
		return fmt.Errorf("delete volume %s: release disk %s: %w", id, held.Name, err)
	}
	return nil
}

// List implements volume.Backend.
func (b *Backend) List(ctx context.Context) ([]volume.Found, error) {
	claims, err := b.registry.Claims(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the claimed disks: %w", err)
	}
	var found []volume.Found
	for _, c := range claims {
		if c.Owner.Kind == OwnerVolume {
			found = append(found, volume.Found{ID: c.Owner.UID, Record: record(c)})
		}
	}
	return found, nil
}

// Capacity implements volume.Backend for a volume without a selector.
func (b *Backend) Capacity(ctx context.Context) (volume.Capacity, error) {
	return b.CapacityOf(ctx, nil)
}

// CapacityOf is Capacity for volumes with this Spec.SelectDisk, by the function
// that Create chooses with (I8).
func (b *Backend) CapacityOf(ctx context.Context, selectDisk func(volume.Disk) bool) (volume.Capacity, error) {
	candidates, err := b.registry.Candidates(ctx)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("list the usable disks: %w", err)
	}
	claims, err := b.registry.Claims(ctx)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("list the claimed disks: %w", err)
	}
	released, err := b.registry.Released(ctx)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("list the released disks: %w", err)
	}
	var c volume.Capacity
	for _, d := range usable(candidates, selectDisk) {
		c.FreeBytes += d.SizeBytes
		c.MaxVolumeBytes = max(c.MaxVolumeBytes, d.SizeBytes)
	}
	for _, held := range claims {
		if held.Owner.Kind == OwnerVolume {
			c.AllocatedBytes += held.SizeBytes
			c.Volumes++
		}
	}
	c.TotalBytes = c.FreeBytes + c.AllocatedBytes
	for _, d := range released {
		c.TotalBytes += d.SizeBytes
	}
	return c, nil
}

// held returns the disk that the volume holds, after comparing it with the record
// if there is one. ErrNotFound: the volume holds no disk.
func (b *Backend) held(ctx context.Context, id string, rec *volume.Record) (Claimed, error) {
	if err := volume.ValidateID(id); err != nil {
		return Claimed{}, err
	}
	if rec != nil && (rec.Mode != volume.ModeDevice || rec.Device == nil) {
		return Claimed{}, fmt.Errorf("the record is of mode %q: %w", rec.Mode, volume.ErrInvalid)
	}
	held, ok, err := b.registry.ClaimedBy(ctx, id)
	if err != nil {
		return Claimed{}, fmt.Errorf("look for its disk: %w", err)
	}
	if !ok {
		return Claimed{}, fmt.Errorf("no disk is claimed for it: %w", volume.ErrNotFound)
	}
	if held.Owner.Kind != OwnerVolume {
		return Claimed{}, fmt.Errorf("disk %s is claimed for a %s of this UID: %w", held.Name, held.Owner.Kind, volume.ErrExists)
	}
	if rec != nil && !record(held).SameStorage(*rec) {
		return Claimed{}, fmt.Errorf("it holds disk %s (%s %s), recorded is %s (%s %s): %w",
			held.Name, held.IdentityScheme, held.IdentityValue,
			rec.Device.Name, rec.Device.IdentityScheme, rec.Device.IdentityValue, volume.ErrIdentity)
	}
	return held, nil
}

// resolve finds the disk that the volume holds in the kernel, and proves that it
// is that disk.
func (b *Backend) resolve(ctx context.Context, id string, held Claimed) (Claimed, error) {
	now, err := b.registry.Resolve(ctx, held.Name)
	if err != nil {
		return Claimed{}, fmt.Errorf("resolve disk %s: %w", held.Name, err)
	}
	if now.State != StateClaimed || now.Owner.UID != id {
		return Claimed{}, fmt.Errorf("disk %s is %s and held by %q: %w", now.Name, now.State, now.Owner.UID, volume.ErrIdentity)
	}
	if !record(now).SameStorage(record(held)) {
		return Claimed{}, fmt.Errorf("disk %s says %s %s of itself, claimed was %s %s: %w", now.Name,
			now.IdentityScheme, now.IdentityValue, held.IdentityScheme, held.IdentityValue, volume.ErrIdentity)
	}
	return now, nil
}

// proveUnused returns ErrInUse when somebody has the disk. The lock is let go at
// once: the wipe proves it all again.
func (b *Backend) proveUnused(ctx context.Context, now Claimed) error {
	disk, err := b.disks.Open(ctx, now.Path)
	if err != nil {
		// A node that is gone since Resolve is no answer about the volume.
		return fmt.Errorf("take disk %s: %w", now.Name, maskNotFound(err))
	}
	same, err := disk.Is(now.Path)
	if err := errors.Join(err, disk.Close()); err != nil {
		return fmt.Errorf("take disk %s: %w", now.Name, err)
	}
	if !same {
		return fmt.Errorf("disk %s moved away from %s meanwhile: %w", now.Name, now.Path, volume.ErrBusy)
	}
	return nil
}

// maskNotFound turns the absence of a path into an error without an answer.
func maskNotFound(err error) error {
	if errors.Is(err, volume.ErrNotFound) {
		return fmt.Errorf("%w: %s", volume.ErrBusy, err.Error())
	}
	return err
}

func cannotGrow(c Claimed, sizeBytes int64) error {
	return fmt.Errorf("%w: it is the whole disk %s of %d bytes and cannot be made %d bytes large", volume.ErrInvalid, c.Name, c.SizeBytes, sizeBytes)
}

func record(c Claimed) volume.Record {
	return volume.Record{
		Mode:      volume.ModeDevice,
		SizeBytes: c.SizeBytes,
		Device: &volume.DeviceRecord{
			Name:           c.Name,
			IdentityScheme: c.IdentityScheme,
			IdentityValue:  c.IdentityValue,
			SizeBytes:      c.SizeBytes,
		},
	}
}
