// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.LeftOverTaker = (*Backend)(nil)

// TakeOver implements volume.LeftOverTaker. The disk carries no mark: all that changes is who the
// registry says has it, in one write, while the disk is open exclusively and locked. The disk is as
// large as it is, so that one that is smaller than the volume is to be is refused.
func (b *Backend) TakeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (volume.Record, error) {
	fail := func(err error) (volume.Record, error) {
		return volume.Record{}, fmt.Errorf("take the disk of volume %s over as volume %s: %w", from.ID, spec.Name, err)
	}
	if err := errors.Join(spec.ValidateEmpty(), volume.ValidateID(from.ID)); err != nil {
		return fail(err)
	}
	if spec.ID == from.ID {
		return fail(fmt.Errorf("what is taken over gets another ID than before: %w", volume.ErrInvalid))
	}
	held, err := b.held(ctx, spec.ID, nil)
	switch {
	case err == nil:
		now, err := b.resolve(ctx, spec.ID, held)
		if err != nil {
			return fail(err)
		}
		if identityOf(now) != from.Identity {
			return fail(fmt.Errorf("it holds disk %s already, which is %q, and named is %q: %w", now.Name, identityOf(now), from.Identity, volume.ErrIdentity))
		}
		return record(now), nil
	case !errors.Is(err, volume.ErrNotFound):
		return fail(err)
	}
	left, err := b.leftOver(ctx, from)
	if err != nil {
		return fail(notAdoptable(err))
	}
	if !b.taking.try(left.Name) {
		return fail(fmt.Errorf("another volume is being made of disk %s: %w", left.Name, volume.ErrBusy))
	}
	defer b.taking.end(left.Name)
	if left.SizeBytes < spec.SizeBytes {
		return fail(notAdoptable(fmt.Errorf("spec.sizeBytes is %d, and disk %s has %d bytes: %w", spec.SizeBytes, left.Name, left.SizeBytes, volume.ErrInvalid)))
	}
	if err := sure(ctx); err != nil {
		return fail(err)
	}
	claimed, err := b.handOver(ctx, spec, from, left)
	if err != nil {
		return fail(err)
	}
	return record(claimed), nil
}

// leftOver finds the one disk that the volume holds, and proves that it is the one that was named.
func (b *Backend) leftOver(ctx context.Context, from volume.LeftOver) (Claimed, error) {
	held, err := b.held(ctx, from.ID, nil)
	if err != nil {
		return Claimed{}, err
	}
	claims, err := b.registry.Claims(ctx)
	if err != nil {
		return Claimed{}, fmt.Errorf("list the claimed disks: %w", err)
	}
	for _, c := range claims {
		if c.Owner.UID == from.ID && c.Name != held.Name {
			return Claimed{}, fmt.Errorf("it holds the disks %s and %s: %w", held.Name, c.Name, volume.ErrIdentity)
		}
	}
	now, err := b.resolve(ctx, from.ID, held)
	if err != nil {
		return Claimed{}, err
	}
	if identityOf(now) != from.Identity {
		return Claimed{}, fmt.Errorf("it is another one than was named: this is %q, named is %q: %w", identityOf(now), from.Identity, volume.ErrIdentity)
	}
	return now, nil
}

// handOver takes the disk, proves that it is the left-over still, and has the registry give it to
// the volume.
func (b *Backend) handOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, left Claimed) (Claimed, error) {
	disk, err := b.disks.Open(ctx, left.Path)
	if err != nil {
		return Claimed{}, notAdoptable(fmt.Errorf("take disk %s: %w", left.Name, maskNotFound(err)))
	}
	defer func() {
		if closeErr := disk.Close(); closeErr != nil {
			b.log.Warn("close disk", "disk", left.Name, "error", closeErr)
		}
	}()
	// Again, now that nobody can put another in its place unseen.
	now, err := b.leftOver(ctx, from)
	if err == nil {
		err = sameDisk(disk, now)
	}
	if err != nil {
		return Claimed{}, notAdoptable(err)
	}
	claimed, err := b.registry.HandOver(ctx, now.Name, from.ID, Owner{UID: spec.ID, Name: spec.Name, Kind: OwnerVolume})
	if err != nil {
		return Claimed{}, notAdoptable(fmt.Errorf("hand disk %s over: %w", now.Name, err))
	}
	if !record(claimed).SameStorage(record(now)) {
		return Claimed{}, fmt.Errorf("the registry has it as %s %s: %w", claimed.IdentityScheme, claimed.IdentityValue, volume.ErrIdentity)
	}
	return now, nil // as the kernel shows it
}

// notAdoptable marks an error that is a fact about the disk, and leaves others as they are. That
// somebody looks at it at this moment is none.
func notAdoptable(err error) error {
	for _, fact := range []error{volume.ErrInUse, volume.ErrIdentity, volume.ErrNotFound, volume.ErrInvalid, volume.ErrExists} {
		if errors.Is(err, fact) {
			return fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
		}
	}
	return err
}

// LetGo implements volume.LeftOverTaker. One volume has the disk at each moment: nothing is to be
// ended.
func (b *Backend) LetGo(ctx context.Context, id string) error {
	_, err := b.held(ctx, id, nil)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	return err
}
