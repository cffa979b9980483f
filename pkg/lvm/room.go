// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"slices"
)

// terms are what decides, beside the group itself, over what it has room for.
type terms struct {
	reserveBytes int64
	layout       Layout
	// thin is nil for a group whose volumes have their extents for themselves.
	thin *thinTerms
	// snapshots is how much room thick snapshots get.
	snapshots SnapshotPolicy
}

// room is what a group has for new volumes and for growth. It is what the capacity is
// published from, what a volume is admitted by, and what says where it shall lie (I8).
type room struct {
	layout Layout
	// extents that may be handed out, with the reserve taken off; of a thin pool those
	// that may be promised.
	extents int64
	// reserved are those beside them that what keeps a snapshot from overflowing may have.
	reserved int64
	thin     bool
	// devices with the most free extents first.
	devices []deviceRoom
}

type deviceRoom struct {
	path string
	free int64
}

func (g *Group) room(t terms) *room {
	if t.thin != nil {
		_, left := g.thinRoom(*t.thin)
		return &room{layout: LayoutLinear, extents: left, thin: true}
	}
	open := g.openExtents()
	r := &room{layout: t.layout, extents: max(0, open-g.extentsFor(t.reserveBytes))}
	r.reserved = open - r.extents
	for _, pv := range g.PVs {
		if pv.Path != "" && pv.FreeExtents > 0 && !pv.Closed {
			r.devices = append(r.devices, deviceRoom{pv.Path, pv.FreeExtents})
		}
	}
	r.sort()
	return r
}

// openExtents are those that can be handed out: free, on devices that are not closed, and
// not needed for what still lies on those that are.
func (g *Group) openExtents() int64 {
	open := g.FreeExtents
	for _, pv := range g.PVs {
		if pv.Closed {
			open -= pv.Extents // its free ones, and room for the others elsewhere
		}
	}
	return max(0, open)
}

func (r *room) sort() {
	slices.SortFunc(r.devices, func(a, b deviceRoom) int {
		return cmp.Or(cmp.Compare(b.free, a.free), cmp.Compare(a.path, b.path))
	})
}

// free is how many extents can be handed out to volumes of any size.
func (r *room) free() int64 {
	switch s := shapes[r.layout]; {
	case !s.spreads():
		return r.extents
	case s.redundant:
		return r.freeOfLegs()
	}
	if len(r.devices) == 0 {
		return 0
	}
	// A stripe has a partner: what one device has more than all others together is of no
	// use.
	var all int64
	for _, d := range r.devices {
		all += d.free
	}
	return min(r.extents, all, 2*(all-r.devices[0].free))
}

// freeOfLegs hands out the largest volume again and again. Each of them uses one device
// up at least.
func (r *room) freeOfLegs() (extents int64) {
	left := &room{layout: r.layout, extents: r.extents, devices: slices.Clone(r.devices)}
	for {
		p, ok := left.take(left.largest())
		if !ok {
			return extents
		}
		extents += p.extents
	}
}

// largest is the size in extents of the largest single volume.
func (r *room) largest() int64 {
	if !shapes[r.layout].spreads() {
		return r.extents
	}
	most, _ := r.widest()
	return most
}

// widest is the size in extents of the largest single volume of a layout that spreads, and on
// how many devices it lies.
func (r *room) widest() (most, on int64) {
	s := shapes[r.layout]
	for wide := s.least; wide <= int64(len(r.devices)); wide++ {
		if !s.fits(wide) {
			continue
		}
		if size := s.data(wide) * (min(r.devices[wide-1].free, r.extents/wide) - s.overhead()); size > most {
			most, on = size, wide
		}
	}
	return most, on
}

// take hands out room. It reports false, and changes nothing, when there is not enough.
func (r *room) take(extents int64) (placement, bool) {
	if extents <= 0 || extents > r.extents {
		return placement{}, false
	}
	s := shapes[r.layout]
	if !s.spreads() {
		r.extents -= extents
		return placement{layout: r.layout, extents: extents, thin: r.thin}, true
	}
	for wide := int64(len(r.devices)); wide >= s.least; wide-- {
		if p, fits := r.takeOn(extents, wide); fits {
			return p, true
		}
	}
	return placement{}, false
}

// takeOn is take for a layout that spreads, on that many devices.
func (r *room) takeOn(extents, wide int64) (placement, bool) {
	s := shapes[r.layout]
	if !s.fits(wide) || wide > int64(len(r.devices)) {
		return placement{}, false
	}
	share := s.share(extents, wide)
	each := share + s.overhead()
	if r.devices[wide-1].free < each || each > r.extents/wide {
		return placement{}, false
	}
	p := placement{layout: r.layout, extents: share * s.data(wide)}
	for i := range r.devices[:wide] {
		p.devices = append(p.devices, r.devices[i].path)
		r.devices[i].free -= each
	}
	r.used(each * wide)
	return p, true
}

func (r *room) used(extents int64) {
	r.extents -= extents
	r.devices = slices.DeleteFunc(r.devices, func(d deviceRoom) bool { return d.free == 0 })
	r.sort()
}

// growth is the most that a volume can grow by: a volume with legs grows on the devices
// that it lies on.
func (r *room) growth(lv *LogicalVolume) int64 {
	s := shapes[layoutOf(lv)]
	if !s.redundant {
		return r.largest()
	}
	devices := lv.devicesOfLegs()
	if len(devices) == 0 || !s.fits(int64(len(devices))) {
		return 0
	}
	share := r.extents / int64(len(devices))
	for _, path := range devices {
		share = min(share, r.freeOn(path))
	}
	return share * s.data(int64(len(devices)))
}

func (r *room) freeOn(path string) int64 {
	i := slices.IndexFunc(r.devices, func(d deviceRoom) bool { return d.path == path })
	if i < 0 {
		return 0
	}
	return r.devices[i].free
}

// takeFor is take for what a volume grows by.
func (r *room) takeFor(lv *LogicalVolume, extents int64) (placement, bool) {
	layout := layoutOf(lv)
	s := shapes[layout]
	if !s.redundant {
		return r.take(extents)
	}
	if extents <= 0 || extents > r.growth(lv) {
		return placement{}, false
	}
	devices := lv.devicesOfLegs()
	wide := int64(len(devices))
	share := s.share(extents, wide)
	for i := range r.devices {
		if slices.Contains(devices, r.devices[i].path) {
			r.devices[i].free -= share
		}
	}
	r.used(share * wide)
	return placement{layout: layout, extents: share * s.data(wide), devices: devices, cling: true}, true
}
