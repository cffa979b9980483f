// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// ThinState is how a group's thin pool is.
type ThinState struct {
	// DataBytes and MetadataBytes are how large the pool is now.
	DataBytes, MetadataBytes int64
	// Usage is how much of both is taken, and in which condition the pool is.
	Usage dm.ThinPool
	// Grown is true when the call made the pool larger.
	Grown bool
}

// Tend makes the group's thin pool if there is none, activates it, and gives it more data
// and metadata where its policy says so and the group has room, and sees to it that the
// kernel tells before it is full. It is called after the
// group was made or has got a device, and after each event of device-mapper. It starts
// no process when there is nothing to do. Nil, without an error: the group's volumes are
// thick.
//
// A thin pool of somebody else is only looked at: it is neither made nor activated, neither
// extended nor changed.
//
// volume.ErrNoSpace: the group is too small for a thin pool. volume.ErrExists: a volume
// that is not ours has its name. volume.ErrPoolUnavailable: a pool of somebody else cannot
// be used; with volume.ErrIdentity or volume.ErrNotFound it is another one, or not there.
//
// ErrThinTransaction: lvm does not activate it.
func (b *Backend) Tend(ctx context.Context) (*ThinState, error) {
	if b.queue.thin == nil {
		return nil, nil
	}
	grown, refreshed, activated := false, false, ""
	// Each step is decided by what the one before has done: make, activate, grow, look. A
	// pool that others fill at the same time grows more than once.
	const most = 32
	for range most {
		g, err := b.ready(ctx)
		if err != nil {
			return nil, err
		}
		t, err := b.queue.terms(ctx, g)
		if err != nil {
			return nil, err
		}
		pool, err := g.thinPool()
		if err != nil {
			return nil, err
		}
		if b.queue.pool != nil {
			if t.thin.unusable != nil {
				return nil, t.thin.unusable
			}
			return &ThinState{DataBytes: pool.SizeBytes, MetadataBytes: pool.MetadataBytes, Usage: *t.thin.usage}, nil
		}
		op, err := nextStep(g, pool, *t.thin)
		if err != nil {
			return nil, err
		}
		if u := t.thin.usage; op == nil && !refreshed && (u.LowWaterBlocks == 0 && u.Mode == dm.ThinPoolWritable && g.marks(pool, *t.thin) || pool.lags(u)) {
			// The host activated it, by its own lvm.conf, which does not let the kernel tell of
			// anything before the pool is full; or lvm was killed after it had extended it, and
			// before the kernel had that.
			op, refreshed = &operation{verb: verbRefresh, name: thinPoolName, uuid: pool.UUID}, true
		}
		if op == nil {
			return &ThinState{DataBytes: pool.SizeBytes, MetadataBytes: pool.MetadataBytes, Usage: *t.thin.usage, Grown: grown}, nil
		}
		if op.verb == verbActivate && activated != "" {
			return nil, fmt.Errorf("activate thin pool %s/%s: %w", g.Name, pool.Name, explain([]byte(activated), nil))
		}
		if _, err := b.queue.do(ctx, op); err != nil {
			return nil, err
		}
		if op.verb == verbActivate {
			// lvm that cannot do it says why, and nothing in the report does.
			activated = cmp.Or(op.said, "nothing")
		}
		grown = grown || op.verb == verbTend && pool != nil
	}
	return nil, fmt.Errorf("tend thin pool %s/%s: %w: it does not come to rest", b.group.GroupName, thinPoolName, volume.ErrBusy)
}

// lags reports whether the kernel has less of an active thin pool than lvm's metadata say, and
// would take more.
func (lv *LogicalVolume) lags(u *dm.ThinPool) bool {
	const metadataBlock = 4 << 10
	if u.NeedsCheck || u.ChunkBytes == 0 || u.Mode != dm.ThinPoolWritable && u.Mode != dm.ThinPoolOutOfData {
		return false
	}
	return u.DataBlocks < uint64(lv.SizeBytes)/u.ChunkBytes || u.MetadataBlocks < uint64(min(lv.MetadataBytes, mostMetadataBytes))/metadataBlock
}

// nextStep is what must be done first, or nil.
func nextStep(g *Group, pool *LogicalVolume, t thinTerms) (*operation, error) {
	if op := g.nextOfParts(); op != nil {
		return op, nil
	}
	if pool == nil {
		data, metaBytes := g.newPool(t)
		if data == 0 {
			return nil, fmt.Errorf("make thin pool %s/%s: %w: %d bytes are free, of which %d are kept in reserve and %d go to the pool's metadata",
				g.Name, thinPoolName, volume.ErrNoSpace, g.bytes(g.FreeExtents), g.bytes(t.reserve), 4*metaBytes)
		}
		making := verbTend
		if t.layout.Redundant() {
			making = verbPoolParts
		}
		return &operation{verb: making, name: thinPoolName, sizeBytes: g.bytes(data), metadataBytes: metaBytes}, nil
	}
	if t.usage == nil {
		return &operation{verb: verbActivate, name: thinPoolName, uuid: pool.UUID}, nil
	}
	if fail := t.FailWhenFull; fail != nil && pool.FailsWhenFull != *fail {
		return &operation{verb: verbWhenFull, name: thinPoolName, uuid: pool.UUID, failWhenFull: *fail}, nil
	}
	data, metaBytes := g.thinTarget(pool, t)
	if data == g.extentsFor(pool.SizeBytes) && metaBytes == pool.MetadataBytes {
		return nil, nil
	}
	return &operation{verb: verbTend, name: thinPoolName, sizeBytes: g.bytes(data), metadataBytes: metaBytes}, nil
}
