// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.Examiner = (*Backend)(nil)

// Examine implements volume.Examiner. A disk carries no mark: that it is the volume's is what
// the registry says, and its name is from there. The identity in full is what the disk says of
// itself at this moment, with its size; a disk that is not there is ErrNotFound.
func (b *Backend) Examine(ctx context.Context, id string) (volume.Examination, error) {
	held, err := b.held(ctx, id, nil)
	if err != nil {
		return volume.Examination{}, fmt.Errorf("examine volume %s: %w", id, err)
	}
	now, err := b.resolve(ctx, id, held)
	if err != nil {
		return volume.Examination{}, fmt.Errorf("examine volume %s: %w", id, err)
	}
	return volume.Examination{Record: record(now), Identity: identityOf(now), Device: now.Path, Name: now.Owner.Name}, nil
}

// ProveUnused implements volume.Examiner.
func (b *Backend) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	held, err := b.held(ctx, id, &rec)
	if err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	now, err := b.resolve(ctx, id, held)
	if err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	if err := b.proveUnused(ctx, now); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

// identityOf names a disk in full. It is also told by its BlockDevice (v1alpha1.DiskIdentity).
func identityOf(c Claimed) string {
	return fmt.Sprintf("%s %s, %d bytes", c.IdentityScheme, c.IdentityValue, c.SizeBytes)
}
