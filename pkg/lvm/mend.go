// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/berth-dev/berth/pkg/volume"
)

// MendOptions say what Mend may do.
type MendOptions struct {
	// Replace lets legs whose device is missing be made anew on other devices, and devices
	// that nothing needs any more be taken out of the group. Without it a missing device is
	// waited for.
	Replace bool
}

// RaidState is how redundant the volumes of a group are.
type RaidState struct {
	// Volumes with legs, of which a thin pool has two, its data and its metadata;
	// DegradedVolumes of them lack one or have one that has failed,
	// FailedVolumes have one that has failed though its device is there, RebuildingVolumes
	// have one that is being written from the others.
	Volumes, DegradedVolumes, FailedVolumes, RebuildingVolumes int
	// RebuiltPercent is how far the rebuilding volume is that has come the least far; 100
	// when none is rebuilding.
	RebuiltPercent int
	// OldVolumes are not to be had, for their disks that are there were away while they were
	// written to; Old says so of one of them, or of one that is active and not to be repaired.
	OldVolumes int
	Old        string
	// Waiting says in words why nothing is done about a volume that is degraded.
	Waiting string
	// Repaired volumes got new legs in this call, Refreshed ones found a device again, and
	// DroppedDevices were taken out of the group.
	Repaired, Refreshed, DroppedDevices int
}

// Mend makes the volumes of a redundant layout whole again where it can: it resumes what a
// killed lvm has left suspended, takes devices back that return, lets legs follow their
// devices to other numbers, and puts new legs on
// other devices for those that are missing, as far as it is allowed to. It is called after
// devices came and went, and after each event of device-mapper. It starts no process when
// there is nothing to do. Nil, without an error: the group's layout is not redundant.
//
// volume.ErrPoolUnavailable: the group is in a state in which nothing may be changed.
func (b *Backend) Mend(ctx context.Context, o MendOptions) (*RaidState, error) {
	if !b.queue.layout.Redundant() {
		return nil, nil
	}
	done := &RaidState{RebuiltPercent: wholePercent}
	// Each step is decided by what the one before has done. A volume needs four at most: to
	// be activated, refreshed, repaired, and cleaned up after.
	tried := map[operationKey]bool{}
	for {
		g, err := b.Group(ctx)
		if err != nil {
			return nil, err
		}
		if state := g.State(); state != StateReady && state != StatePartial {
			return nil, g.usable()
		}
		if err := b.noteBehind(ctx, g); err != nil {
			return nil, err
		}
		op, err := b.nextMend(ctx, g, o, done, tried)
		if err != nil {
			return nil, err
		}
		if op == nil {
			if done.Refreshed+done.Repaired > 0 {
				if err := b.nodes.RemoveUnknown(ctx, g.Name, g.UUID, g.knows); err != nil {
					return nil, fmt.Errorf("clean up after volumes of %s were mended: %w", g.Name, err)
				}
			}
			return b.raidState(ctx, g, done)
		}
		key := operationKey{op.verb, op.name}
		if tried[key] {
			return nil, fmt.Errorf("%s %s/%s: %w: it does not come to rest", op.verb, g.Name, op.name, volume.ErrBusy)
		}
		tried[key] = true
		if op.verb == verbRepair {
			if err := b.nodes.RemoveUnknown(ctx, g.Name, g.UUID, g.knows); err != nil {
				return nil, fmt.Errorf("make room for new legs of %s/%s: %w", g.Name, op.name, err)
			}
		}
		missing := g.MissingPVs
		if _, err := b.queue.do(ctx, op); err != nil {
			if op.verb == verbRepair && errors.Is(err, volume.ErrNoSpace) {
				done.Waiting = err.Error()
				return b.raidState(ctx, g, done)
			}
			return nil, err
		}
		switch op.verb {
		case verbRepair:
			done.Repaired++
		case verbRefresh:
			done.Refreshed++
		case verbDropMissing:
			done.DroppedDevices += missing
		default:
		}
	}
}

const wholePercent = 100

type operationKey struct {
	verb verb
	name string
}

// knows reports whether a UUID is that of a volume of the group, or of a leg.
func (g *Group) knows(uuid string) bool {
	return g.find(func(lv *LogicalVolume) bool {
		return lv.UUID == uuid || slices.ContainsFunc(lv.Legs, func(leg Leg) bool { return leg.UUID == uuid })
	}) != nil
}

// mendable reports whether a volume is ours and has legs: one of our volumes, or a part of
// our thin pool.
func mendable(lv *LogicalVolume) bool {
	return (ownedVolume(lv) || lv.ofPool) && layoutOf(lv).Redundant()
}

// active returns the operation that lvm does on a volume with its device: for a part of the
// thin pool on the pool, for what is hidden is left out by lvchange.
func (g *Group) active(v verb, lv *LogicalVolume) *operation {
	if lv.ofPool {
		lv = g.Volume(lv.parent)
	}
	return &operation{verb: v, name: lv.Name, uuid: lv.UUID}
}

// node names a volume or a part of the thin pool in device-mapper.
func (g *Group) node(lv *LogicalVolume) NodeID {
	id := NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID}
	if lv.ofPool {
		id.Layer = dataLayer
		if slices.Contains(lv.Role, "metadata") {
			id.Layer = metadataLayer
		}
	}
	return id
}

// nextMend is what must be done first, or nil.
func (b *Backend) nextMend(ctx context.Context, g *Group, o MendOptions, done *RaidState, tried map[operationKey]bool) (*operation, error) {
	var returned []string
	for _, pv := range g.PVs {
		if pv.ReturnedPath != "" {
			returned = append(returned, pv.ReturnedPath)
		}
	}
	if len(returned) > 0 {
		return &operation{verb: verbTakeBack, devices: returned}, nil
	}
	suspended, err := b.nodes.Suspended(ctx, g.UUID)
	if err != nil {
		return nil, err
	}
	for lv := range g.each() {
		if stuck := suspendedOf(lv, suspended); (ownedVolume(lv) || lv.ofPool) && len(stuck) > 0 {
			// The queue resumes it; what lvm was about to change is in force then, or not.
			if op := g.active(verbRefresh, lv); g.old(lv) == "" && !tried[operationKey{verbRefresh, op.name}] {
				return op, nil
			}
		}
	}
	done.Waiting, done.Old = "", ""
	needed := false
	for lv := range g.each() {
		if extracted(lv) {
			return &operation{verb: verbDiscard, name: lv.Name, uuid: lv.UUID}, nil
		}
		needed = needed || lv.partial || lv.missingLegs() > 0
		if !mendable(lv) || lv.Unfinished {
			continue
		}
		op, err := b.nextFor(ctx, g, lv, o, done, tried)
		if op != nil || err != nil {
			return op, err
		}
	}
	if o.Replace && g.MissingPVs > 0 && !needed {
		if g.lostSpare != nil {
			return &operation{verb: verbDropSpare, name: g.lostSpare.Name}, nil
		}
		return &operation{verb: verbDropMissing}, nil
	}
	return nil, nil
}

// resume lets what a killed lvm has left suspended go on, before another one is started: that
// would write to it, and wait for itself for ever. Volumes with legs are looked at each time,
// for also the lvm of an operator is killed; others, of which there may be many and in whose
// way nothing comes, when one of ours may have been.
func (q *queue) resume(ctx context.Context, g *Group) error {
	if !q.layout.Redundant() {
		if !q.mayHang {
			return nil
		}
		return q.resumeAll(ctx, g)
	}
	suspended, err := q.nodes.Suspended(ctx, g.UUID)
	if err != nil {
		return err
	}
	if q.thin != nil {
		// lvm suspends the volumes, their pool and its legs, one above the other.
		if q.mayHang || slices.Contains(slices.Collect(maps.Values(suspended)), true) {
			return q.resumeAll(ctx, g)
		}
		return nil
	}
	// What lvm moves extents by lies below the legs.
	var below []string
	for uuid, stuck := range suspended {
		if stuck && !g.knows(uuid) {
			below = append(below, uuid)
		}
	}
	if len(below) > 0 {
		if err := q.nodes.Resume(ctx, g.Name, g.UUID, below); err != nil {
			return fmt.Errorf("resume what is being moved of %s: %w", g.Name, err)
		}
	}
	for lv := range g.each() {
		stuck := suspendedOf(lv, suspended)
		if len(stuck) == 0 {
			continue
		}
		if err := q.nodes.Resume(ctx, g.Name, g.UUID, stuck); err != nil {
			return fmt.Errorf("resume volume %s/%s: %w", g.Name, lv.Name, err)
		}
	}
	return nil
}

// resumeAll is resume where whatever of the group is suspended is to go on.
func (q *queue) resumeAll(ctx context.Context, g *Group) error {
	resumed, err := q.nodes.ResumeAll(ctx, g.Name, g.UUID, g.foreign())
	if err != nil {
		return fmt.Errorf("resume volumes of %s that were left suspended: %w", g.Name, err)
	}
	q.mayHang = false
	if resumed > 0 {
		q.resumed(resumed)
	}
	return nil
}

// foreign are the UUIDs of volumes that are not ours: what its owner has suspended stays so.
func (g *Group) foreign() (uuids []string) {
	pool, _ := g.thinPool()
	for i := range g.LVs {
		if lv := &g.LVs[i]; lv != pool && !isHalfPool(lv) && !owned(lv) && !isDeleted(lv) {
			uuids = append(uuids, lv.UUID)
		}
	}
	return uuids
}

// suspendedOf returns which parts of a volume are suspended: the legs, and then the volume,
// which writes to all of them as soon as it goes on.
func suspendedOf(lv *LogicalVolume, suspended map[string]bool) (uuids []string) {
	for _, leg := range lv.Legs {
		if suspended[leg.UUID] {
			uuids = append(uuids, leg.UUID)
		}
	}
	if suspended[lv.UUID] {
		uuids = append(uuids, lv.UUID)
	}
	return uuids
}

// nextFor is what must be done first for one volume, or nil.
func (b *Backend) nextFor(ctx context.Context, g *Group, lv *LogicalVolume, o MendOptions, done *RaidState, tried map[operationKey]bool) (*operation, error) {
	id := g.node(lv)
	_, active, err := b.nodes.Raid(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", id, err)
	}
	why := g.old(lv)
	if active && why == "" {
		// From what is old it would go on below whoever uses it.
		stale, err := b.stale(ctx, g, lv)
		if err != nil {
			return nil, fmt.Errorf("look at the legs of %s: %w", id, err)
		}
		switch refresh := g.active(verbRefresh, lv); {
		case stale && tried[operationKey{verbRefresh, refresh.name}]:
			done.Waiting = fmt.Sprintf("%s does not take its disk back: lvchange --refresh has no effect on it", lv.called())
		case stale:
			return refresh, nil
		}
	}
	missing := lv.missingLegs()
	if missing == 0 || !o.Replace {
		return nil, nil
	}
	if why != "" {
		// A new leg would be made of what is not all there, and the whole one given up.
		done.Old = why
		return nil, nil
	}
	spares, needs := g.spares(lv)
	if len(spares) == 0 {
		done.Waiting = fmt.Sprintf("no disk of the pool on which %s does not lie has room for %d bytes", lv.called(), g.bytes(needs))
		return nil, nil
	}
	if !active {
		// lvconvert repairs active volumes only.
		return g.active(verbActivate, lv), nil
	}
	spares = spares[:min(missing, len(spares))]
	return &operation{verb: verbRepair, name: lv.Name, uuid: lv.UUID, devices: spares, mostMissing: missing - len(spares)}, nil
}

// stale reports whether a leg of an active volume lies on a device that is gone, and its
// disk is there as another one.
func (b *Backend) stale(ctx context.Context, g *Group, lv *LogicalVolume) (bool, error) {
	for _, leg := range lv.Legs {
		if leg.Missing || len(leg.Devices) != 1 {
			continue
		}
		stale, err := b.nodes.Stale(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: leg.Name, UUID: leg.UUID}, leg.Devices[0])
		if stale || err != nil {
			return stale, err
		}
	}
	return false, nil
}

// spares are the devices that have room for a leg of a volume that does not lie on them,
// those with the most room first, and how many extents that is. What is reserved may be
// used: redundancy is worth more.
func (g *Group) spares(lv *LogicalVolume) (paths []string, needs int64) {
	s, images := shapes[layoutOf(lv)], int64(0)
	var taken []string
	for _, leg := range lv.Legs {
		taken = append(taken, leg.Devices...)
		if !leg.Metadata {
			images++
		}
	}
	if images == 0 || images < s.least {
		return nil, 0
	}
	needs = s.share(g.extentsFor(lv.SizeBytes), images) + s.overhead()
	fitting := slices.DeleteFunc(slices.Clone(g.PVs), func(pv PhysicalVolume) bool {
		return pv.Path == "" || pv.Closed || pv.FreeExtents < needs || slices.Contains(taken, pv.Path)
	})
	slices.SortFunc(fitting, func(a, b PhysicalVolume) int {
		return cmp.Or(cmp.Compare(b.FreeExtents, a.FreeExtents), cmp.Compare(a.Path, b.Path))
	})
	for _, pv := range fitting {
		paths = append(paths, pv.Path)
	}
	return paths, needs
}

// raidState counts.
func (b *Backend) raidState(ctx context.Context, g *Group, done *RaidState) (*RaidState, error) {
	for lv := range g.each() {
		if len(lv.Legs) == 0 || lv.Unfinished {
			continue
		}
		done.Volumes++
		id := g.node(lv)
		status, active, err := b.nodes.Raid(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", id, err)
		}
		if why := g.old(lv); why != "" && !active {
			done.OldVolumes++
			done.Old = why
		}
		rebuilding := active && status.Recovering()
		if lv.missingLegs() > 0 || active && status.DeadLegs > 0 || rebuilding {
			done.DegradedVolumes++
		}
		if active && status.DeadLegs > lv.missingLegs() {
			done.FailedVolumes++
		}
		if rebuilding {
			done.RebuildingVolumes++
			done.RebuiltPercent = min(done.RebuiltPercent, status.SyncedPercent())
		}
	}
	// Behind what was counted: nobody looks again at a group that is said to be whole.
	return done, b.noteBehind(ctx, g)
}
