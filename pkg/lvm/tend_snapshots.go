// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// SnapshotState is how a thick snapshot is.
type SnapshotState struct {
	// ID of the snapshot; empty for one that a volume is being filled from.
	ID string
	// UsedPercent of AreaBytes is in use by what it keeps.
	UsedPercent int
	AreaBytes   int64
	// Lost: it was full, and holds nothing any more.
	Lost bool
	// Waiting says in words why it does not get more room, which it needs; empty else.
	Waiting string
	// Extended is true when this call gave it more room.
	Extended bool
}

const (
	// The kernel tells of a snapshot when it is lost, and not before. So it is asked, the more
	// often the sooner it can be full.
	leastInterval = time.Second
	mostInterval  = 30 * time.Second
	// looksBeforeFull is how often a snapshot is looked at before it is full, at the speed at
	// which it was filled last.
	looksBeforeFull = 4
)

// fill is how full a snapshot was.
type fill struct {
	sectors uint64
	at      time.Time
}

// TendSnapshots gives thick snapshots more room for what they keep, as the policy says, and
// says how they are, and how soon they should be looked at again; 0 when there are none. It
// costs no process when none needs room. It may use what is in reserve: a snapshot that
// overflows is worth nothing. One call at a time.
func (b *Backend) TendSnapshots(ctx context.Context) (states []SnapshotState, next time.Duration, err error) {
	if b.queue.thin != nil || b.queue.layout.Redundant() {
		return nil, 0, nil
	}
	g, err := b.ready(ctx)
	if err != nil {
		return nil, 0, err
	}
	fills, now := map[string]fill{}, time.Now()
	for i := range g.LVs {
		lv := &g.LVs[i]
		if !lv.isThickSnapshot() || !ownedSnapshot(lv) && !ownedCopy(lv) {
			continue
		}
		status, active, err := b.snapshotStatus(ctx, g, lv)
		if err != nil {
			return nil, 0, fmt.Errorf("look at snapshot %s/%s: %w", g.Name, lv.Name, err)
		}
		interval := mostInterval
		state := SnapshotState{AreaBytes: lv.AreaBytes, Lost: status.Lost}
		state.ID, _ = strings.CutPrefix(lv.Name, snapshotPrefix)
		if ownedCopy(lv) {
			state.ID = ""
		}
		switch {
		case !active: // nothing is written to its volume
		case status.Lost:
			state.UsedPercent = status.UsedPercent()
		default:
			total := status.TotalSectors
			if want := g.nextArea(lv, status.UsedSectors, total, b.queue.snapshots()); want > g.extentsFor(lv.AreaBytes) {
				b.extendSnapshot(ctx, lv, want, &state)
				total = uint64(state.AreaBytes / sectorBytes)
				interval = leastInterval
			}
			state.UsedPercent = int((status.UsedSectors*100 + total - 1) / max(1, total))
			fills[lv.UUID] = fill{status.UsedSectors, now}
			if before, known := b.fills[lv.UUID]; known && status.UsedSectors > before.sectors {
				full := time.Duration(float64(now.Sub(before.at)) * float64(total-min(total, status.UsedSectors)) / float64(status.UsedSectors-before.sectors))
				interval = min(interval, max(leastInterval, full/looksBeforeFull))
			} else if !known {
				interval = leastInterval
			}
		}
		if next == 0 || interval < next {
			next = interval
		}
		states = append(states, state)
	}
	b.fills = fills
	return states, next, nil
}

// snapshotStatus looks at a thick snapshot. Where the kernel has less room for it than lvm's
// metadata say, for lvm was killed after it had extended it, the kernel gets that first.
func (b *Backend) snapshotStatus(ctx context.Context, g *Group, lv *LogicalVolume) (dm.Snapshot, bool, error) {
	node := NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID}
	status, active, err := b.nodes.Snapshot(ctx, node)
	origin := g.volumeByUUID(lv.OriginUUID)
	if err != nil || !active || status.Lost || origin == nil || status.TotalSectors >= uint64(lv.AreaBytes/sectorBytes) {
		return status, active, err
	}
	if _, err := b.queue.do(ctx, &operation{verb: verbRefresh, name: origin.Name, uuid: origin.UUID}); err != nil {
		return status, active, nil //nolint:nilerr // it is tried again with the next look; others must not wait for it
	}
	return b.nodes.Snapshot(ctx, node)
}

// extendSnapshot gives a snapshot so many extents, or as many as there are.
func (b *Backend) extendSnapshot(ctx context.Context, lv *LogicalVolume, want int64, state *SnapshotState) {
	g, err := b.ready(ctx)
	if err == nil {
		have := g.extentsFor(lv.AreaBytes)
		if want = min(want, have+g.openExtents()); want <= have {
			err = fmt.Errorf("%w: the pool has no room left", volume.ErrNoSpace)
		}
	}
	if err == nil {
		g, err = b.queue.do(ctx, &operation{verb: verbArea, name: lv.Name, uuid: lv.UUID, sizeBytes: g.bytes(want)})
	}
	switch {
	case errors.Is(err, volume.ErrBusy): // as while a part of it is moved: soon again
		return
	case errors.Is(err, volume.ErrNoSpace):
		state.Waiting = "the pool has no room left"
		return
	case err != nil:
		state.Waiting = err.Error()
		return
	}
	if extended := g.Volume(lv.Name); extended != nil {
		state.AreaBytes, state.Extended = extended.AreaBytes, true
	}
}
