// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// The reasons of Problems.
const (
	ReasonNotRedundant = "NotRedundant"
	ReasonRebuilding   = "Rebuilding"
	ReasonThinPoolFull = "ThinPoolFull"
	ReasonThinPoolBad  = "ThinPoolFailed"
	ReasonDiskGone     = "DiskGone"
)

var _ volume.HealthReporter = (*Backend)(nil)

// Problems implements volume.HealthReporter.
func (b *Backend) Problems(ctx context.Context, id string, rec volume.Record) ([]volume.Problem, error) {
	if err := b.checkRecord(id, rec); err != nil {
		return nil, err
	}
	switch {
	case b.queue.thin != nil:
		problems, err := b.thinPoolProblems(ctx)
		if err != nil || len(problems) > 0 || b.queue.pool != nil || b.queue.layout.Redundant() {
			return problems, err
		}
	case b.queue.layout.Redundant():
		node := NodeID{GroupName: rec.LVM.VGName, GroupUUID: rec.LVM.VGUUID, Name: rec.LVM.LVName, UUID: rec.LVM.LVUUID}
		status, active, err := b.nodes.Raid(ctx, node)
		if err != nil || !active {
			return nil, err
		}
		return raidProblems(status), nil
	}
	return b.goneProblems(ctx, rec)
}

// thinPoolProblems are those of the pool and of what it lies on.
func (b *Backend) thinPoolProblems(ctx context.Context) ([]volume.Problem, error) {
	g, err := b.Group(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := g.thinPool()
	if err != nil && b.queue.pool != nil {
		return []volume.Problem{{Reason: ReasonThinPoolBad, Message: err.Error()}}, nil
	}
	if err != nil || pool == nil {
		return nil, err
	}
	usage, active, err := b.nodes.ThinPool(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: pool.Name, UUID: pool.UUID})
	if err != nil || !active {
		return nil, err
	}
	problems := thinProblems(usage)
	for i := range g.below {
		status, active, err := b.nodes.Raid(ctx, g.node(&g.below[i]))
		if err != nil {
			return nil, err
		}
		if found := raidProblems(status); active && len(found) > 0 {
			return append(problems, found[0]), nil // both parts lie on the same disks, as far as they can
		}
	}
	return problems, nil
}

func raidProblems(status dm.Raid) []volume.Problem {
	switch {
	case status.DeadLegs > 0:
		return []volume.Problem{{Reason: ReasonNotRedundant, Message: fmt.Sprintf("%d of its %d disks have failed or are missing", status.DeadLegs, status.Legs)}}
	case status.Recovering():
		// In steps, for who reads it is told of each change.
		const step = 10
		return []volume.Problem{{Reason: ReasonRebuilding, Message: fmt.Sprintf("it is being rebuilt on %d of its %d disks, and at least %d %% of that is done",
			status.RebuildingLegs, status.Legs, status.SyncedPercent()/step*step)}}
	}
	return nil
}

func thinProblems(usage dm.ThinPool) []volume.Problem {
	switch {
	case usage.Mode == dm.ThinPoolFailed:
		return []volume.Problem{{Inaccessible: true, Reason: ReasonThinPoolBad, Message: "its thin pool has failed"}}
	case usage.Mode == dm.ThinPoolReadOnly || usage.NeedsCheck:
		return []volume.Problem{{Reason: ReasonThinPoolBad, Message: "the metadata of its thin pool must be repaired; it gets no new room"}}
	case usage.Mode == dm.ThinPoolOutOfData:
		return []volume.Problem{{Reason: ReasonThinPoolFull, Message: "its thin pool is full; it gets no new room"}}
	}
	return nil
}
