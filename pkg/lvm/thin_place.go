// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"slices"
	"strconv"
)

const (
	// poolMetadataName is what the metadata of a redundant thin pool are called until they
	// are given to it.
	poolMetadataName = "thin-metadata"
	// changesOfParts is how often lvm changes the metadata to make what a redundant thin pool is
	// made of: twice for each volume.
	changesOfParts = 4
)

// isHalfPool reports whether a volume is what a redundant thin pool is made of, before it is
// one: the making was cut short, and nothing is in it. lvm makes a pool out of both at once.
func isHalfPool(lv *LogicalVolume) bool {
	return (lv.Name == thinPoolName || lv.Name == poolMetadataName) && slices.Contains(lv.Tags, TagThinPool) && layoutOf(lv).Redundant()
}

// metadataCopies is how often the metadata of a pool may have to lie on one device: there is
// a spare of those that are not redundant.
func (s shape) metadataCopies() int64 {
	if s.redundant {
		return 1
	}
	return 2 //nolint:mnd // the metadata and the spare
}

// poolRoom is what the group has for the pool itself.
func (g *Group) poolRoom(t thinTerms) *room {
	return g.room(terms{reserveBytes: g.bytes(t.reserve), layout: t.layout})
}

// newPool is the size of a pool that is to be made: extents of data and bytes of metadata.
// Beside the data it leaves room for the metadata, for the spare that lvm keeps to repair
// them, and for both to double, on each of its devices where it has several. data is 0 when
// there is too little room.
func (g *Group) newPool(t thinTerms) (data, metaBytes int64) {
	room, s := g.openExtents()-t.reserve, shapes[t.layout]
	wide, most := int64(1), max(room, 0)
	if s.spreads() {
		most, wide = g.poolRoom(t).widest()
	}
	metaBytes = metadataBytes(g.bytes(most))
	beside := 2*s.metadataCopies()*g.extentsFor(metaBytes) + s.overhead()
	if !s.spreads() {
		if data = room - beside; data <= 0 {
			return 0, metaBytes
		}
		return max(1, data*t.InitialPercent/100), metaBytes
	}
	if most == 0 {
		return 0, metaBytes
	}
	share := most/s.data(wide) - beside
	if share <= 0 {
		return 0, metaBytes
	}
	return max(1, share*t.InitialPercent/100) * s.data(wide), metaBytes
}

// placePool says where the data of a new pool lie: on as many devices as the largest one
// could have.
func (g *Group) placePool(data int64, t thinTerms) (placement, bool) {
	r := g.poolRoom(t)
	if !shapes[t.layout].spreads() {
		return r.take(data)
	}
	_, wide := r.widest()
	return r.takeOn(data, wide)
}

// partOf returns the data or the metadata of a redundant pool, or nil.
func (g *Group) partOf(role string) *LogicalVolume {
	for i := range g.below {
		if slices.Contains(g.below[i].Role, role) {
			return &g.below[i]
		}
	}
	return nil
}

// dataGrowth is how many extents of data the pool can get beside what it has, when its metadata
// have got metaBytes and can double again. A redundant one grows on the devices that its legs
// lie on.
func (g *Group) dataGrowth(pool *LogicalVolume, t thinTerms, metaBytes int64) int64 {
	s := shapes[t.layout]
	headroom := s.metadataCopies() * (2*g.extentsFor(metaBytes) - g.extentsFor(pool.MetadataBytes))
	switch {
	case !s.spreads():
		return max(0, g.openExtents()-t.reserve-headroom)
	case !s.redundant:
		most, wide := g.poolRoom(t).widest()
		if most == 0 {
			return 0
		}
		return max(0, most-headroom*s.data(wide))
	}
	data := g.partOf("data")
	if data == nil {
		return 0
	}
	wide := int64(len(data.devicesOfLegs()))
	if wide == 0 {
		return 0 // one of them is missing
	}
	return max(0, g.poolRoom(t).growth(data)-headroom*s.data(wide))
}

// metadataGrowth is how many extents the metadata can get; the spare grows as well. What is
// reserved may be used: a pool whose metadata are full is worth nothing.
func (g *Group) metadataGrowth(t thinTerms) int64 {
	if !t.layout.Redundant() {
		return g.openExtents() / 2
	}
	meta := g.partOf("metadata")
	if meta == nil {
		return 0
	}
	t.reserve = 0
	return g.poolRoom(t).leastOn(meta.devicesOfLegs())
}

// leastOn is what the fullest of some devices has free; 0 of none.
func (r *room) leastOn(devices []string) int64 {
	var least int64
	for i, path := range devices {
		if free := r.freeOn(path); i == 0 || free < least {
			least = free
		}
	}
	return least
}

// whole is how many extents of data the pool has or can get.
func (g *Group) whole(pool *LogicalVolume, t thinTerms) int64 {
	if g.adopted != nil {
		return max(0, g.extentsFor(pool.SizeBytes)-t.reserve) // it is never extended by us
	}
	return g.extentsFor(pool.SizeBytes) + g.dataGrowth(pool, t, pool.MetadataBytes)
}

// placeGrowth says where what the pool grows by lies.
func (g *Group) placeGrowth(extents int64, t thinTerms) (placement, bool) {
	if !t.layout.Redundant() {
		if !shapes[t.layout].spreads() {
			return placement{layout: t.layout, extents: extents}, true
		}
		return g.poolRoom(t).take(extents)
	}
	data := g.partOf("data")
	if data == nil {
		return placement{}, false
	}
	return g.poolRoom(t).takeFor(data, extents)
}

// growMetadataCommand lets each leg of redundant metadata grow on the device that it is on.
func (g *Group) growMetadataCommand(sizeBytes int64) []string {
	command := []string{"lvextend", "--yes", "--poolmetadatasize", byteCount(sizeBytes)}
	if meta := g.partOf("metadata"); meta != nil {
		command = append(command, "--alloc", "cling")
		return append(append(command, g.Name+"/"+thinPoolName), meta.devicesOfLegs()...)
	}
	return append(command, g.Name+"/"+thinPoolName)
}

// newPoolCommand makes a pool that is not redundant. It leaves it to a later command what the
// pool does when it is full: lvcreate says that --errorwhenfull is not supported as long as the
// kernel has not loaded dm_thin_pool, which it does for this very command.
func (g *Group) newPoolCommand(where placement, metaBytes int64) []string {
	command := append([]string{"lvcreate", "--yes", "--type", "thin-pool", "--activate", "y"}, g.poolFlags(where.extents)...)
	command = append(command, "--poolmetadataspare", "y", "--poolmetadatasize", byteCount(metaBytes),
		"--extents", strconv.FormatInt(where.extents, 10), "--addtag", TagThinPool, "--name", thinPoolName)
	command = append(append(command, where.flags()...), g.Name)
	return append(command, where.devices...)
}

// poolFlags are those of each new pool.
func (g *Group) poolFlags(extents int64) []string {
	// Chunks are zeroed before a volume gets them: nobody reads what another one wrote.
	return []string{"--zero", "y", "--discards", "passdown", "--chunksize", byteCount(chunkBytes(g.bytes(extents)))}
}

// partCommands make the two volumes that a redundant pool is made of, for lvcreate makes no
// such pool: its data in the layout of the group, and its metadata as mirrors on as many of the
// same devices as may be lost, and one more.
func (g *Group) partCommands(where placement, metaBytes int64) (data, meta []string) {
	create := func(layout Layout, name string, extents int64, flags, devices []string) []string {
		command := []string{
			"lvcreate", "--yes", "--type", shapes[layout].kind, "--activate", "y", "--wipesignatures", "n", "--zero", "n",
			"--extents", strconv.FormatInt(extents, 10), "--addtag", TagThinPool, "--name", name,
		}
		command = append(append(command, flags...), g.Name)
		return append(command, devices...)
	}
	lost := shapes[where.layout].survives
	return create(where.layout, thinPoolName, where.extents, where.flags(), where.devices),
		create(LayoutMirror, poolMetadataName, g.extentsFor(metaBytes), []string{"--mirrors", strconv.Itoa(lost)}, where.devices[:lost+1])
}

// joinCommand makes a pool of its two parts, and wipes both. No spare is kept: it would lie on
// one device.
func (g *Group) joinCommand() []string {
	data, _ := g.poolParts()
	command := append([]string{"lvconvert", "--yes", "--type", "thin-pool"}, g.poolFlags(g.extentsFor(data.SizeBytes))...)
	return append(command, "--poolmetadataspare", "n", "--poolmetadata", g.Name+"/"+poolMetadataName, g.Name+"/"+thinPoolName)
}

// poolParts returns what a redundant pool is about to be made of, each nil when it is not
// there, or not finished.
func (g *Group) poolParts() (data, meta *LogicalVolume) {
	part := func(name string) *LogicalVolume {
		if lv := g.Volume(name); lv != nil && isHalfPool(lv) && !lv.Unfinished {
			return lv
		}
		return nil
	}
	return part(thinPoolName), part(poolMetadataName)
}

// nextOfParts is what must be done with the parts of a pool, or nil: they are joined when both
// are there, and one of which the other is missing is made anew with it.
func (g *Group) nextOfParts() *operation {
	data, meta := g.poolParts()
	if data != nil && meta != nil {
		return &operation{verb: verbJoin, name: thinPoolName, uuid: data.UUID, source: meta.UUID}
	}
	for lv := range g.each() {
		if isHalfPool(lv) {
			return &operation{verb: verbRemove, name: lv.Name, uuid: lv.UUID}
		}
	}
	return nil
}
