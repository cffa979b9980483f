// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

func plainPolicy() ThinPolicy {
	return ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
}

func TestThinPolicyCheck(t *testing.T) {
	t.Parallel()
	if err := plainPolicy().Check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*ThinPolicy){
		"promises less than there is": func(p *ThinPolicy) { p.OverprovisionPercent = 99 },
		"promises without bounds":     func(p *ThinPolicy) { p.OverprovisionPercent = math.MaxInt64 },
		"begins with nothing":         func(p *ThinPolicy) { p.InitialPercent = 0 },
		"threshold lvm cannot have":   func(p *ThinPolicy) { p.ThresholdPercent = 49 },
		"threshold never reached":     func(p *ThinPolicy) { p.ThresholdPercent = 100 },
		"grows by nothing":            func(p *ThinPolicy) { p.ExtendPercent = 0 },
		"no high-water mark":          func(p *ThinPolicy) { p.HighWaterPercent = 101 },
	} {
		p := plainPolicy()
		spoil(&p)
		if err := p.Check(); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const mib = 1 << 20

// thinGroup has extents of 1 MiB.
func thinGroup(data, metadata, free int64, volumes ...int64) *Group {
	pool := LogicalVolume{
		Name: thinPoolName, UUID: "pool", SizeBytes: data * mib, MetadataBytes: metadata * mib, Layout: []string{"thin", "pool"}, Tags: []string{TagThinPool},
	}
	g := &Group{ExtentBytes: mib, Extents: data + 2*metadata + free, FreeExtents: free, LVs: []LogicalVolume{pool}}
	for i, size := range volumes {
		g.LVs = append(g.LVs, LogicalVolume{
			Name: "00000000-0000-4000-8000-00000000000" + string(rune('0'+i)), PoolUUID: "pool", SizeBytes: size * mib, Tags: []string{TagVolume + "v"},
		})
	}
	return g
}

func used(dataPercent, metadataPercent uint64) *dm.ThinPool {
	return &dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: dataPercent * 10, DataBlocks: 1000, MetadataUsed: metadataPercent, MetadataBlocks: 100}
}

func TestThinRoom(t *testing.T) {
	t.Parallel()
	withSnapshot := thinGroup(100, 8, 16, 60)
	withSnapshot.LVs = append(withSnapshot.LVs, LogicalVolume{Name: "a-snapshot", PoolUUID: "pool", SizeBytes: 60 * mib})
	for name, tt := range map[string]struct {
		group       *Group
		ratio       int64
		reserve     int64
		usage       *dm.ThinPool
		total, left int64
	}{
		"empty":                                  {thinGroup(100, 8, 16), 100, 0, used(0, 1), 100, 100},
		"what it can grow by counts":             {thinGroup(100, 8, 66), 100, 0, used(0, 1), 150, 150},
		"but for the reserve":                    {thinGroup(100, 8, 66), 100, 20, used(0, 1), 130, 130},
		"one volume":                             {thinGroup(100, 8, 16, 60), 100, 0, used(30, 1), 100, 40},
		"twice as much is promised":              {thinGroup(100, 8, 16, 60), 200, 0, used(30, 1), 200, 140},
		"more is promised than may be":           {thinGroup(100, 8, 16, 60, 90), 100, 0, used(30, 1), 100, 0},
		"not active":                             {thinGroup(100, 8, 16, 60), 200, 0, nil, 200, 140},
		"above the high-water mark":              {thinGroup(100, 8, 16, 60, 60), 200, 0, used(95, 1), 200, 0},
		"below it":                               {thinGroup(100, 8, 16, 60, 60), 200, 0, used(94, 1), 200, 80},
		"above it, with room to grow":            {thinGroup(100, 8, 66, 60, 60), 200, 0, used(96, 1), 300, 180},
		"above it, and all is there for what is": {thinGroup(100, 8, 16, 60), 100, 0, used(95, 1), 100, 40},
		"a snapshot counts":                      {withSnapshot, 200, 0, used(50, 1), 200, 80},
		"above it, with a snapshot":              {withSnapshot, 200, 0, used(95, 1), 200, 0},
		"metadata full":                          {thinGroup(100, 8, 16, 60), 100, 0, used(5, 76), 100, 0},
		"out of space":                           {thinGroup(100, 8, 16, 60), 200, 0, &dm.ThinPool{Mode: dm.ThinPoolOutOfData, DataUsed: 1, DataBlocks: 10, MetadataBlocks: 100}, 200, 0},
		"to be repaired":                         {thinGroup(100, 8, 16, 60), 200, 0, &dm.ThinPool{Mode: dm.ThinPoolWritable, NeedsCheck: true, DataBlocks: 10, MetadataBlocks: 100}, 200, 0},
		"no pool":                                {&Group{ExtentBytes: mib, FreeExtents: 100}, 100, 0, nil, 0, 0},
		"a number that is too large":             {thinGroup(1<<40, 8, 16), 100_000, 0, used(0, 1), 1 << 40 * 1000, 1 << 40 * 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plainPolicy()
			p.OverprovisionPercent = tt.ratio
			total, left := tt.group.thinRoom(thinTerms{ThinPolicy: p, reserve: tt.reserve, usage: tt.usage})
			if total != tt.total || left != tt.left {
				t.Errorf("total %d, left %d; want %d and %d", total, left, tt.total, tt.left)
			}
		})
	}
}

func TestThinTarget(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		group          *Group
		initial        int64
		usage          *dm.ThinPool
		data, metadata int64
	}{
		"nothing to do":                       {thinGroup(100, 8, 16), 100, used(99, 1), 100, 8},
		"a disk has joined":                   {thinGroup(100, 8, 66), 100, used(0, 1), 150, 8},
		"a disk has joined, with a beginning": {thinGroup(100, 8, 316), 50, used(0, 1), 200, 8},
		"below the threshold":                 {thinGroup(100, 8, 116), 20, used(79, 1), 100, 8},
		"at the threshold":                    {thinGroup(100, 8, 116), 20, used(80, 1), 120, 8},
		"far above it":                        {thinGroup(100, 8, 116), 20, used(100, 1), 144, 8},
		"the last room":                       {thinGroup(100, 8, 26), 20, used(100, 1), 110, 8},
		"no room":                             {thinGroup(100, 8, 16), 20, used(100, 1), 100, 8},
		"metadata at their threshold":         {thinGroup(100, 8, 16), 100, used(50, 70), 100, 16},
		"metadata, with less room":            {thinGroup(100, 8, 6), 100, used(50, 70), 100, 11},
		"metadata, with no room":              {thinGroup(100, 8, 1), 100, used(50, 90), 100, 8},
		"both":                                {thinGroup(100, 8, 116), 20, used(80, 70), 120, 16},
		"not active":                          {thinGroup(100, 8, 116), 20, nil, 100, 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plainPolicy()
			p.InitialPercent = tt.initial
			data, metaBytes := tt.group.thinTarget(&tt.group.LVs[0], thinTerms{ThinPolicy: p, usage: tt.usage})
			if data != tt.data || metaBytes != tt.metadata*mib {
				t.Errorf("data %d, metadata %d; want %d and %d", data, metaBytes/mib, tt.data, tt.metadata)
			}
		})
	}
}

// However a pool comes to be, what is asked of the group is there, the reserve is left,
// and the metadata can grow once.
func TestThinSizesFit(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		p := plainPolicy()
		p.InitialPercent = 1 + random.Int64N(100)
		free, reserve := random.Int64N(5000), random.Int64N(500)
		g := &Group{ExtentBytes: mib, Extents: free, FreeExtents: free}
		terms := thinTerms{ThinPolicy: p, reserve: reserve}
		data, metaBytes := g.newPool(terms)
		meta := g.extentsFor(metaBytes)
		if data == 0 {
			if free-reserve > 4*meta {
				t.Fatalf("no pool in %d extents with %d in reserve", free, reserve)
			}
			continue
		}
		left := free - data - 2*meta
		if left < reserve+2*meta {
			t.Fatalf("a pool of %d+%d extents in %d leaves %d, reserved are %d", data, 2*meta, free, left, reserve)
		}
		made := thinGroup(data, meta, left)
		terms.usage = used(random.Uint64N(101), random.Uint64N(101))
		total, _ := made.thinRoom(terms)
		data2, metaBytes2 := made.thinTarget(&made.LVs[0], terms)
		more := data2 - data + 2*(made.extentsFor(metaBytes2)-meta)
		if data2 < data || metaBytes2 < metaBytes || more > left || data2 > total {
			t.Fatalf("from %d+%d to %d+%d extents of %d, %d are free", data, meta, data2, metaBytes2/mib, total, left)
		}
		if metaBytes2 == metaBytes && left-more < reserve {
			t.Fatalf("the data took of the reserve of %d: %d are left", reserve, left-more)
		}
	}
}

func TestChunksOfLargePools(t *testing.T) {
	t.Parallel()
	for dataBytes, want := range map[int64]int64{0: 64 << 10, 1 << 40: 64 << 10, 7 << 40: 64 << 10, 20 << 40: 256 << 10, 1 << 50: 16 << 20} {
		chunk := chunkBytes(dataBytes)
		if chunk != want {
			t.Errorf("%d bytes: chunks of %d, want %d", dataBytes, chunk, want)
		}
		if meta := metadataBytes(dataBytes); meta < dataBytes/chunk*mappingBytes || meta > mostMetadataBytes {
			t.Errorf("%d bytes: metadata of %d", dataBytes, meta)
		}
	}
}
