// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Adopt makes a volume of a disk and the filesystem that is on it. It reads the disk
// and writes nothing to it; repeated, it returns the same record.
//
// The disk is claimed while it is open exclusively and locked, and after it has
// proven, so held, to be the disk that was named and to hold that filesystem and
// nothing else. volume.ErrNotAdoptable where it does not.
func (b *Backend) Adopt(ctx context.Context, spec volume.Spec, adoption volume.Adoption) (volume.Record, error) {
	fail := func(err error) (volume.Record, error) {
		return volume.Record{}, fmt.Errorf("adopt disk %s as volume %s: %w", adoption.Disk, spec.Name, err)
	}
	if err := spec.ValidateEmpty(); err != nil {
		return fail(err)
	}
	held, err := b.held(ctx, spec.ID, nil)
	switch {
	case err == nil && held.Name != adoption.Disk:
		return fail(fmt.Errorf("it holds disk %s already: %w", held.Name, volume.ErrIdentity))
	case err == nil:
		now, err := b.resolve(ctx, spec.ID, held)
		if err != nil {
			return fail(err)
		}
		return record(now), nil
	case !errors.Is(err, volume.ErrNotFound):
		return fail(err)
	}
	if !b.taking.try(adoption.Disk) {
		return fail(fmt.Errorf("another volume is being made of it: %w", volume.ErrBusy))
	}
	defer b.taking.end(adoption.Disk)
	claimed, err := b.takeOver(ctx, spec, adoption)
	if err != nil {
		if isReason(err) && !errors.Is(err, errClaimUnknown) {
			err = fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
		}
		return fail(err)
	}
	return record(claimed), nil
}

func (b *Backend) takeOver(ctx context.Context, spec volume.Spec, adoption volume.Adoption) (Claimed, error) {
	before, err := b.registry.Resolve(ctx, adoption.Disk)
	if err != nil {
		return Claimed{}, err
	}
	disk, err := b.disks.Open(ctx, before.Path)
	if err != nil {
		return Claimed{}, fmt.Errorf("take it: %w", err)
	}
	defer func() {
		if closeErr := disk.Close(); closeErr != nil {
			b.log.Warn("close disk", "disk", adoption.Disk, "error", closeErr)
		}
	}()
	// Again, now that nobody can put another in its place unseen.
	now, err := b.registry.Resolve(ctx, adoption.Disk)
	if err != nil {
		return Claimed{}, err
	}
	if now.State == StateClaimed || now.WipeToken != "" {
		return Claimed{}, fmt.Errorf("it is %s, by %s %s: %w", now.State, now.Owner.Kind, now.Owner.Name, volume.ErrBusy)
	}
	if err := sameDisk(disk, now); err != nil {
		return Claimed{}, err
	}
	if now.SizeBytes < spec.SizeBytes {
		return Claimed{}, fmt.Errorf("spec.sizeBytes is %d and the disk has %d bytes: %w", spec.SizeBytes, now.SizeBytes, volume.ErrInvalid)
	}
	if err := b.proveContent(ctx, now, adoption); err != nil {
		return Claimed{}, err
	}
	if err := sameDisk(disk, now); err != nil {
		return Claimed{}, err // the path was probed, and is another disk's by now
	}
	claimed, err := b.registry.Adopt(ctx, now.Name, Owner{UID: spec.ID, Name: spec.Name, Kind: OwnerVolume})
	if err == nil && !record(claimed).SameStorage(record(now)) {
		err = fmt.Errorf("the registry has it as %s %s: %w: %w", claimed.IdentityScheme, claimed.IdentityValue, errClaimUnknown, volume.ErrIdentity)
	}
	if err != nil && !isReason(err) {
		err = fmt.Errorf("%w: %w", errClaimUnknown, err)
	}
	return claimed, err
}

// proveContent proves that the filesystem that was named is on the disk, alone.
func (b *Backend) proveContent(ctx context.Context, now Claimed, adoption volume.Adoption) error {
	if b.prober == nil {
		return errors.New("nothing can tell what is on it")
	}
	content, err := b.prober.Probe(ctx, now.Path)
	if err != nil {
		return err
	}
	found := contentWords(content)
	switch {
	case content.Ambivalent, content.PartitionTable != "",
		content.Type != adoption.FSType, !strings.EqualFold(content.UUID, adoption.FSUUID):
		return fmt.Errorf("it holds %s, named was %s with UUID %s: %w", found, adoption.FSType, adoption.FSUUID, volume.ErrIdentity)
	}
	return nil
}

func contentWords(c block.Content) string {
	switch {
	case c.Ambivalent:
		return "signatures that contradict each other (wipefs --no-act shows them)"
	case c.PartitionTable != "":
		return fmt.Sprintf("a partition table (%s)", c.PartitionTable)
	case c.Type != "" && c.UUID != "":
		return fmt.Sprintf("%s with UUID %s", c.Type, c.UUID)
	case c.Type != "":
		return c.Type
	}
	return "no filesystem"
}
