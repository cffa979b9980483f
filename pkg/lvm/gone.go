// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

// A volume that is active when its disk is unplugged stays so, on a device that is gone, and a disk
// that is plugged in again is another one. lvm says that all is well then, and whoever reads the volume
// gets errors until lvm loads its table anew. Volumes with legs are mended by Mend; of a thin
// pool one device may be gone and most volumes may be well, so that it is only told.

// onGone reports whether an active volume lies on a device that is gone, and can be put on the one that
// is there.
func (b *Backend) onGone(ctx context.Context, loc volume.Location) (bool, error) {
	if b.queue.thin != nil || b.queue.layout.Redundant() {
		return false, nil
	}
	return b.nodes.Gone(ctx, loc)
}

// requireUnused returns volume.ErrGone and ErrInUse for a volume on a device that is gone which
// somebody has open: what he has in memory is of before, and writes that failed are lost to him.
func (b *Backend) requireUnused(ctx context.Context, id NodeID) error {
	used, err := b.nodes.InUse(ctx, id)
	if err != nil {
		return fmt.Errorf("look whether %s is used: %w", id, err)
	}
	if used {
		return fmt.Errorf("%s was open when its disk was pulled out, and still is: %w: %w", id, volume.ErrGone, volume.ErrInUse)
	}
	return nil
}

// goneProblems says so of a volume that is open.
func (b *Backend) goneProblems(ctx context.Context, rec volume.Record) ([]volume.Problem, error) {
	loc, active, err := b.nodes.Find(ctx, NodeID{
		GroupName: rec.LVM.VGName, GroupUUID: rec.LVM.VGUUID, Name: rec.LVM.LVName, UUID: rec.LVM.LVUUID,
	})
	if err != nil || !active {
		return nil, err
	}
	gone, err := b.nodes.Gone(ctx, loc)
	if err != nil || !gone {
		return nil, err
	}
	return []volume.Problem{{
		Inaccessible: true, Reason: ReasonDiskGone,
		Message: "a disk below it was pulled out, and what is read from it or written to it fails, also when the disk was put back, until whoever has it open has let it go",
	}}, nil
}
