// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// ThinPolicy is how the volumes of a group share one thin pool. Percentages are whole.
type ThinPolicy struct {
	// OverprovisionPercent is how many bytes may be promised to volumes for each 100 that
	// the pool has or can get: 100 promises nothing that is not there.
	OverprovisionPercent int64
	// InitialPercent of the group's room is what the pool's data take when it is made.
	InitialPercent int64
	// ThresholdPercent of the data in use is when they get ExtendPercent more, while the
	// group has room.
	ThresholdPercent int64
	ExtendPercent    int64
	// HighWaterPercent of all the data that the pool can get in use is when nothing is
	// admitted any more to a pool that has promised more than there is.
	HighWaterPercent int64
	// FailWhenFull true makes writes that find no room fail at once, false lets them wait
	// for room, for a minute by the kernel's default. Nil leaves it as it is; a new pool
	// lets them wait.
	FailWhenFull *bool
}

// Check returns volume.ErrInvalid for a policy that cannot be followed.
func (p ThinPolicy) Check() error {
	const mostOverprovision = 100_000
	for _, field := range []struct {
		name               string
		value, least, most int64
	}{
		{"over-provisioning", p.OverprovisionPercent, 100, mostOverprovision},
		{"initial size", p.InitialPercent, 1, 100},
		// lvm takes no threshold below 50 (activation/thin_pool_autoextend_threshold).
		{"threshold of growth", p.ThresholdPercent, 50, 99},
		{"growth", p.ExtendPercent, 1, 100},
		{"high-water mark", p.HighWaterPercent, 50, 100},
	} {
		if field.value < field.least || field.value > field.most {
			return fmt.Errorf("%w: %s of %d %%: %d to %d are allowed", volume.ErrInvalid, field.name, field.value, field.least, field.most)
		}
	}
	return nil
}

const (
	// thinPoolName is the logical volume that the thin volumes of a group share. It cannot
	// be the ID of a volume.
	thinPoolName = "thin"
	// TagThinPool marks it as ours.
	TagThinPool = "berth.dev/thin-pool"

	leastMetadataBytes = 8 << 20
	// mostMetadataBytes is below what the kernel can use, 15.8 GiB
	// (THIN_METADATA_MAX_SECTORS in drivers/md/dm-thin-metadata.h).
	mostMetadataBytes = 15 << 30
	// leastChunkBytes is what lvm takes by itself. Larger ones copy more for each first
	// write after a snapshot.
	leastChunkBytes = 64 << 10
	mostChunkBytes  = 1 << 30
	// mappingBytes is what lvm counts for the mapping of one chunk
	// (_estimate_metadata_size in lib/metadata/thin_manip.c).
	mappingBytes = 64
	// metadataLowPercent in use is when the metadata grow. The kernel tells of 75 at the
	// latest where they are small, and of 4 MiB that are left where they are large
	// (calc_metadata_threshold in drivers/md/dm-thin.c).
	metadataLowPercent = 70
)

// thinPool returns the group's thin pool, or nil. One that is not ours is an error, unless
// it was adopted.
func (g *Group) thinPool() (*LogicalVolume, error) {
	if g.adopted != nil {
		return g.adoptedPool()
	}
	lv := g.Volume(thinPoolName)
	if lv == nil || isHalfPool(lv) {
		return nil, nil
	}
	if !slices.Contains(lv.Tags, TagThinPool) || !lv.isPool() {
		return nil, fmt.Errorf("volume %s/%s: %w: it is no thin pool with the tag %s (layout %v, tags %v)",
			g.Name, thinPoolName, volume.ErrExists, TagThinPool, lv.Layout, lv.Tags)
	}
	return lv, nil
}

// isPool reports whether a volume is a thin pool, whoever made it.
func (lv *LogicalVolume) isPool() bool {
	return slices.Contains(lv.Layout, "thin") && slices.Contains(lv.Layout, "pool")
}

// isThin reports whether a volume lies in the thin pool.
func (lv *LogicalVolume) isThin(pool *LogicalVolume) bool {
	return pool != nil && lv.PoolUUID == pool.UUID
}

// chunkBytes is the size of a chunk with which the metadata of a pool can name all its
// data.
func chunkBytes(dataBytes int64) int64 {
	chunk := int64(leastChunkBytes)
	for chunk < mostChunkBytes && dataBytes/chunk*mappingBytes > mostMetadataBytes/2 {
		chunk *= 2
	}
	return chunk
}

// metadataBytes is the size of the metadata of a new pool: twice what lvm would take, for
// snapshots have mappings of their own.
func metadataBytes(dataBytes int64) int64 {
	return min(max(2*(dataBytes/chunkBytes(dataBytes))*mappingBytes, leastMetadataBytes), mostMetadataBytes)
}

// thinTerms is what decides over a thin pool at one moment.
type thinTerms struct {
	ThinPolicy

	// layout of what the pool lies on.
	layout Layout
	// reserve in extents.
	reserve int64
	// usage is nil when the pool is not active.
	usage *dm.ThinPool
	// unusable is why nothing may be made in somebody else's pool.
	unusable error
}

// thinRoom is what can still be promised to volumes of a thin pool, in extents; it is
// the room of such a group.
func (g *Group) thinRoom(t thinTerms) (total, left int64) {
	pool, err := g.thinPool()
	if err != nil || pool == nil {
		return 0, 0
	}
	whole := g.whole(pool, t)
	total = scale(whole, t.OverprovisionPercent)
	promised := g.promised(pool)
	left = max(0, total-promised)
	if t.unusable != nil {
		left = 0
	}
	if u := t.usage; u != nil {
		switch {
		case u.Mode != dm.ThinPoolWritable || u.NeedsCheck || u.MetadataPercent() > metadataFullPercent:
			left = 0
		case int64(u.DataPercent())*g.extentsFor(pool.SizeBytes) >= t.HighWaterPercent*whole:
			// What is promised once for each byte that is there cannot fill it.
			left = min(left, max(0, whole-promised))
		}
	}
	return total, left
}

// promised is what all that lies in the pool may come to need, in extents: volumes,
// snapshots, and what is not ours.
func (g *Group) promised(pool *LogicalVolume) (extents int64) {
	for i := range g.LVs {
		if lv := &g.LVs[i]; lv.isThin(pool) {
			extents += g.extentsFor(lv.SizeBytes)
		}
	}
	return extents
}

// metadataFullPercent is when lvm makes no volume any more
// (thin_pool_metadata_min_threshold in lib/metadata/thin_manip.c), where they are small.
const metadataFullPercent = 75

// scale is extents*percent/100; it saturates.
func scale(extents, percent int64) int64 {
	high, low := bits.Mul64(uint64(extents), uint64(percent))
	if high > 0 || low > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(low / 100)
}

// thinTarget is how large the pool should be now: extents of data and bytes of metadata,
// never less than they are.
func (g *Group) thinTarget(pool *LogicalVolume, t thinTerms) (data, metaBytes int64) {
	data, metaBytes = g.extentsFor(pool.SizeBytes), pool.MetadataBytes
	if u := t.usage; u != nil && u.MetadataPercent() >= metadataLowPercent && metaBytes < mostMetadataBytes {
		metaBytes += g.bytes(min(g.extentsFor(metaBytes), g.extentsFor(mostMetadataBytes-metaBytes), g.metadataGrowth(t)))
	}
	most := data + g.dataGrowth(pool, t, metaBytes)
	data = max(data, min(most, most*t.InitialPercent/100))
	if u := t.usage; u != nil && u.DataBlocks > 0 {
		used := scale(g.extentsFor(pool.SizeBytes), 100*min(int64(u.DataUsed), math.MaxInt64/100)/int64(u.DataBlocks))
		for data < most && used*100 >= t.ThresholdPercent*data {
			data = min(most, data+max(1, data*t.ExtendPercent/100))
		}
	}
	return data, metaBytes
}

// threshold is the one that lvm is told of the pool, which sets the kernel's low-water
// mark by it and makes no volume above it (_check_pool_create in
// lib/metadata/thin_manip.c): where the pool can still grow the one of its growth,
// otherwise that of the admission.
func (g *Group) threshold(pool *LogicalVolume, t thinTerms) int64 {
	if pool == nil || g.whole(pool, t) > g.extentsFor(pool.SizeBytes) {
		return t.ThresholdPercent
	}
	return t.HighWaterPercent
}

// marks reports whether lvm would give an active pool a low-water mark
// (_thin_pool_add_target_line in lib/thin/thin.c): at a threshold of 100 it gives none, nor one
// of less than a block.
func (g *Group) marks(pool *LogicalVolume, t thinTerms) bool {
	return t.usage.DataBlocks*uint64(wholePercent-g.threshold(pool, t))/wholePercent > 0
}

func yesOrNo(b bool) string {
	if b {
		return "y"
	}
	return "n"
}

func byteCount(n int64) string { return strconv.FormatInt(n, 10) + "b" }
