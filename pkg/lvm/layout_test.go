// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// groupOf has a device for each number of free extents.
func groupOf(free ...int64) *Group {
	g := &Group{ExtentBytes: 1}
	for i, n := range free {
		g.PVs = append(g.PVs, PhysicalVolume{Path: fmt.Sprintf("/dev/vd%c", 'b'+i), Extents: 100, FreeExtents: n})
		g.Extents += 100
		g.FreeExtents += n
	}
	return g
}

func TestRoomForStripes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		free          []int64
		reserve       int64
		largest, room int64
		// take, and what comes of it: the extents, 0 for none, and the devices.
		take, got int64
		on        []string
	}{
		"alike":                            {free: []int64{10, 10, 10}, largest: 30, room: 30, take: 9, got: 9, on: []string{"/dev/vdb", "/dev/vdc", "/dev/vdd"}},
		"rounded up to whole stripes":      {free: []int64{10, 10, 10}, largest: 30, room: 30, take: 7, got: 9, on: []string{"/dev/vdb", "/dev/vdc", "/dev/vdd"}},
		"those with the most come first":   {free: []int64{3, 10, 9}, largest: 18, room: 22, take: 18, got: 18, on: []string{"/dev/vdc", "/dev/vdd"}},
		"as wide as possible":              {free: []int64{3, 10, 9}, largest: 18, room: 22, take: 9, got: 9, on: []string{"/dev/vdc", "/dev/vdd", "/dev/vdb"}},
		"one too many":                     {free: []int64{3, 10, 9}, largest: 18, room: 22, take: 19},
		"the rest of one is of no use":     {free: []int64{2, 50}, largest: 4, room: 4, take: 5},
		"one device":                       {free: []int64{50}},
		"no device":                        {},
		"full ones":                        {free: []int64{0, 0, 7}},
		"the reserve is not handed out":    {free: []int64{10, 10}, reserve: 5, largest: 14, room: 15, take: 15},
		"all but the reserve":              {free: []int64{10, 10}, reserve: 5, largest: 14, room: 15, take: 14, got: 14, on: []string{"/dev/vdb", "/dev/vdc"}},
		"more in reserve than there is":    {free: []int64{10, 10}, reserve: 50, take: 1},
		"nothing is no volume":             {free: []int64{10, 10}, largest: 20, room: 20, take: 0},
		"more extents than a number holds": {free: []int64{10, 10}, largest: 20, room: 20, take: 1<<63 - 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := groupOf(tt.free...).room(terms{reserveBytes: tt.reserve, layout: LayoutStriped})
			if r.largest() != tt.largest || r.free() != tt.room {
				t.Errorf("largest %d, free %d; want %d and %d", r.largest(), r.free(), tt.largest, tt.room)
			}
			p, ok := r.take(tt.take)
			if ok != (tt.got > 0) || p.extents != tt.got || !slices.Equal(p.devices, tt.on) {
				t.Errorf("take(%d) = %+v, %v; want %d on %q", tt.take, p, ok, tt.got, tt.on)
			}
		})
	}
}

// Whatever is said to be the largest volume can be made, nothing larger can, and no
// device gives more than it has (I8).
func TestRoomKeepsItsWord(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var free []int64
		for range 1 + random.IntN(5) {
			free = append(free, random.Int64N(20))
		}
		layout := []Layout{LayoutLinear, LayoutStriped}[random.IntN(2)]
		r := groupOf(free...).room(terms{reserveBytes: random.Int64N(10), layout: layout})
		for step := 0; ; step++ {
			largest, room := r.largest(), r.free()
			if largest > room {
				t.Fatalf("%s %v: the largest volume has %d extents, free are %d", layout, free, largest, room)
			}
			if p, ok := r.clone().take(largest + 1); ok {
				t.Fatalf("%s %v, step %d: largest is %d, and %+v was given", layout, free, step, largest, p)
			}
			if largest == 0 {
				break
			}
			if p, ok := r.clone().take(largest); !ok || p.extents != largest {
				t.Fatalf("%s %v, step %d: largest is %d, and that gives %+v", layout, free, step, largest, p)
			}
			want := 1 + random.Int64N(largest)
			p, ok := r.take(want)
			if !ok || p.extents < want {
				t.Fatalf("%s %v, step %d: %d of %d extents: %+v, %v", layout, free, step, want, largest, p, ok)
			}
			if layout == LayoutStriped && (len(p.devices) < 2 || p.extents%int64(len(p.devices)) != 0) {
				t.Fatalf("%v: %+v", free, p)
			}
			for _, d := range r.devices {
				if d.free < 0 {
					t.Fatalf("%v: %s has %d left", free, d.path, d.free)
				}
			}
		}
	}
}

func (r *room) clone() *room {
	c := *r
	c.devices = slices.Clone(r.devices)
	return &c
}

func TestRoomForLegs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		layout        Layout
		free          []int64
		reserve       int64
		largest, room int64
		take, got     int64
		on            int
	}{
		"mirror":                            {layout: LayoutMirror, free: []int64{10, 10, 10}, largest: 9, room: 9, take: 5, got: 5, on: 2},
		"mirror of four":                    {layout: LayoutMirror, free: []int64{10, 10, 10, 10}, largest: 9, room: 18, take: 9, got: 9, on: 2},
		"mirror, one too many":              {layout: LayoutMirror, free: []int64{10, 10, 10, 10}, largest: 9, room: 18, take: 10},
		"mirror, one is large":              {layout: LayoutMirror, free: []int64{50, 10}, largest: 9, room: 9, take: 9, got: 9, on: 2},
		"mirror, one device":                {layout: LayoutMirror, free: []int64{50}},
		"mirror, room for its metadata":     {layout: LayoutMirror, free: []int64{1, 1}, take: 1},
		"mirror, the reserve":               {layout: LayoutMirror, free: []int64{10, 10}, reserve: 6, largest: 6, room: 6, take: 7},
		"raid5":                             {layout: LayoutRAID5, free: []int64{10, 10, 10}, largest: 18, room: 18, take: 18, got: 18, on: 3},
		"raid5, rounded up":                 {layout: LayoutRAID5, free: []int64{10, 10, 10}, largest: 18, room: 18, take: 17, got: 18, on: 3},
		"raid5, as wide as possible":        {layout: LayoutRAID5, free: []int64{10, 10, 10, 5}, largest: 18, room: 18, take: 12, got: 12, on: 4},
		"raid5, narrower where it must":     {layout: LayoutRAID5, free: []int64{10, 10, 10, 5}, largest: 18, room: 18, take: 18, got: 18, on: 3},
		"raid5, two devices":                {layout: LayoutRAID5, free: []int64{10, 10}, take: 1},
		"raid6":                             {layout: LayoutRAID6, free: []int64{10, 10, 10, 10, 10}, largest: 27, room: 27, take: 3, got: 3, on: 5},
		"raid6, four devices":               {layout: LayoutRAID6, free: []int64{10, 10, 10, 10}, take: 1},
		"raid10":                            {layout: LayoutRAID10, free: []int64{10, 10, 10, 10}, largest: 18, room: 18, take: 18, got: 18, on: 4},
		"raid10, five devices":              {layout: LayoutRAID10, free: []int64{10, 10, 10, 10, 10}, largest: 18, room: 18, take: 5, got: 6, on: 4},
		"raid10, more than a number can be": {layout: LayoutRAID10, free: []int64{10, 10, 10, 10}, largest: 18, room: 18, take: 1<<63 - 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := groupOf(tt.free...).room(terms{reserveBytes: tt.reserve, layout: tt.layout})
			if r.largest() != tt.largest || r.free() != tt.room {
				t.Errorf("largest %d, free %d; want %d and %d", r.largest(), r.free(), tt.largest, tt.room)
			}
			p, ok := r.take(tt.take)
			if ok != (tt.got > 0) || p.extents != tt.got || len(p.devices) != tt.on {
				t.Errorf("take(%d) = %+v, %v; want %d on %d", tt.take, p, ok, tt.got, tt.on)
			}
		})
	}
}

// A volume with legs grows on the devices that it lies on, whatever room others have.
func TestRoomForGrowthOfLegs(t *testing.T) {
	t.Parallel()
	lv := &LogicalVolume{Layout: []string{"raid", "raid5", "raid5_ls"}, Legs: []Leg{
		{Name: "a_rimage_0", Devices: []string{"/dev/vdb"}},
		{Name: "a_rmeta_0", Devices: []string{"/dev/vdb"}, Metadata: true},
		{Name: "a_rimage_1", Devices: []string{"/dev/vdc"}},
		{Name: "a_rimage_2", Devices: []string{"/dev/vdd"}},
	}}
	r := groupOf(5, 3, 9, 50).room(terms{layout: LayoutRAID5})
	if got := r.growth(lv); got != 6 {
		t.Errorf("it can grow by %d", got)
	}
	if p, ok := r.takeFor(lv, 7); ok {
		t.Errorf("grows by %+v", p)
	}
	p, ok := r.takeFor(lv, 3)
	if !ok || p.extents != 4 || !slices.Equal(p.devices, []string{"/dev/vdb", "/dev/vdc", "/dev/vdd"}) || !slices.Equal(p.flags(), []string{"--alloc", "cling"}) {
		t.Errorf("grows by %+v, %v", p, ok)
	}
	if r.extents != 67-6 || r.freeOn("/dev/vdc") != 1 || r.freeOn("/dev/vde") != 50 {
		t.Errorf("left is %+v", r)
	}
	lv.Legs[2].Missing = true
	if got := r.growth(lv); got != 0 {
		t.Errorf("without a leg it can grow by %d", got)
	}
}

// What is said to be the largest volume can be made, and of what is said to be free
// nothing is left.
func TestRoomForLegsKeepsItsWord(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		free := make([]int64, 1+random.IntN(8))
		for i := range free {
			free[i] = random.Int64N(30)
		}
		for _, layout := range []Layout{LayoutMirror, LayoutRAID5, LayoutRAID6, LayoutRAID10} {
			r := groupOf(free...).room(terms{reserveBytes: random.Int64N(40), layout: layout})
			said, raw := r.free(), r.extents
			var got int64
			for r.largest() > 0 {
				p, ok := r.take(r.largest())
				if !ok {
					t.Fatalf("%s on %v: the largest volume has no room", layout, free)
				}
				got += p.extents
			}
			if got != said || got > raw {
				t.Fatalf("%s on %v: %d were free, %d could be taken of %d", layout, free, said, got, raw)
			}
			if _, ok := r.take(1); ok {
				t.Fatalf("%s on %v: one is left", layout, free)
			}
		}
	}
}
