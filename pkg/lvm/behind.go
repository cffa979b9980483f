// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// A leg of an active volume whose device is away misses what is written meanwhile. The kernel
// notes that on the legs that are there (failed_devices in the superblock of
// drivers/md/dm-raid.c), and lvm's metadata do not change. So when the machine starts and only
// the device that was away is there, both take it for a volume that lacks a leg, and its
// user gets what he had when the device went. The node remembers, in the journal, which legs
// are behind, and does not activate a volume that would have to begin from them.

// images returns a volume's images in the order in which the kernel has them. After a repair
// that was cut short that is not the order of their names. Nil: it is not known.
func (lv *LogicalVolume) images() (images []Leg) {
	for _, name := range lv.onVolumes {
		if i := slices.IndexFunc(lv.Legs, func(leg Leg) bool { return !leg.Metadata && leg.Name == name }); i >= 0 {
			images = append(images, lv.Legs[i])
		}
	}
	if len(images) != len(lv.onVolumes) {
		return nil
	}
	return images
}

// survivesWithout reports whether a layout has all data without those of so many images, by their
// places in order.
func (l Layout) survivesWithout(images int, without map[int]bool) bool {
	switch l {
	case LayoutMirror:
		return len(without) < images
	case LayoutRAID10: // near copies: two images beside each other hold the same
		for i := 0; i+1 < images; i += 2 {
			if without[i] && without[i+1] {
				return false
			}
		}
		return true
	default:
		return l.survivesAny(images, without)
	}
}

// survivesAny is survivesWithout whatever the order is.
func (l Layout) survivesAny(_ int, without map[int]bool) bool {
	return len(without) <= shapes[l].survives
}

// requireCurrent returns volume.ErrPoolUnavailable for a volume whose legs that are there do
// not hold all that was written to it, because some of them were away meanwhile.
func (g *Group) requireCurrent(lv *LogicalVolume) error {
	if why := g.old(lv); why != "" {
		return fmt.Errorf("%w: %s", volume.ErrPoolUnavailable, why)
	}
	return nil
}

// old says why a volume is not to be begun from the legs that are there; "" if it may be.
func (g *Group) old(lv *LogicalVolume) string {
	parts := []*LogicalVolume{lv}
	if lv.isPool() || slices.Contains(lv.Role, "thin") || slices.Contains(lv.Layout, "thin") {
		for i := range g.below {
			parts = append(parts, &g.below[i])
		}
	}
	for _, part := range parts {
		var old []string
		without, lacks, images := map[int]bool{}, part.lacks(), part.images()
		survives := layoutOf(part).survivesWithout
		if images == nil {
			images = slices.DeleteFunc(slices.Clone(part.Legs), func(leg Leg) bool { return leg.Metadata })
			survives = layoutOf(part).survivesAny
		}
		for i, image := range images {
			switch {
			case lacks[legNumber(image.Name)]:
				without[i] = true
			case slices.Contains(g.imagesBehind(), image.UUID):
				without[i] = true
				old = append(old, strings.Join(image.Devices, " and "))
			}
		}
		// Where all are there, the kernel finds on them which one went on last.
		if len(old) > 0 && len(lacks) > 0 && !survives(len(images), without) {
			return fmt.Sprintf("the disks of %s in %s that are there were away while it was written to (%s), and the others are missing: attach those, or, if they are lost for good, see docs/guides/redundant-pools.md",
				part.called(), g.Name, strings.Join(old, ", "))
		}
	}
	return ""
}

// noteBehind writes down which legs miss what is written now. It is called after devices came
// and went, and after what the kernel tells of its raids; nothing is written when nothing has
// changed.
func (b *Backend) noteBehind(ctx context.Context, g *Group) error {
	if b.queue.journal == nil {
		return nil
	}
	behind := map[string]bool{}
	for _, uuid := range g.imagesBehind() {
		behind[uuid] = true
	}
	before := maps.Clone(behind)
	maps.DeleteFunc(behind, func(uuid string, _ bool) bool { return !g.knows(uuid) }) // made anew on another device
	for lv := range g.each() {
		if !mendable(lv) || lv.Unfinished {
			continue
		}
		status, active, err := b.nodes.Raid(ctx, g.node(lv))
		if err != nil {
			return fmt.Errorf("look at %s: %w", g.node(lv), err)
		}
		if !active {
			continue
		}
		if parted := lv.judgeBehind(status, behind); len(parted) > 0 {
			used, err := b.inUse(ctx, g, lv)
			if err != nil {
				return fmt.Errorf("look whether %s is used: %w", g.node(lv), err)
			}
			for _, uuid := range parted {
				behind[uuid] = behind[uuid] || used
			}
			maps.DeleteFunc(behind, func(_ string, is bool) bool { return !is })
		}
	}
	if maps.Equal(before, behind) {
		return nil
	}
	return b.queue.keepBehind(g, slices.Sorted(maps.Keys(behind)))
}

// inUse reports whether somebody may be writing to a volume, or to one in the thin pool that it is
// a part of.
func (b *Backend) inUse(ctx context.Context, g *Group, lv *LogicalVolume) (bool, error) {
	if !lv.ofPool {
		return b.nodes.InUse(ctx, g.node(lv))
	}
	for i := range g.LVs {
		thin := &g.LVs[i]
		if thin.isPool() || !slices.Contains(thin.Layout, "thin") {
			continue
		}
		if used, err := b.nodes.InUse(ctx, g.node(thin)); used || err != nil {
			return used, err
		}
	}
	return false, nil
}

// judgeBehind changes which legs of an active volume are behind.
//
// Of those that it returns it cannot tell: the kernel has failed them and goes on with legs that
// were behind when they were seen last. Either these were written anew and the others died after
// that, both while nobody looked, or the volume was begun from what is old. What is on the disks
// says the same of both. Whoever uses the volume writes to the legs that are there, so that the
// others miss that.
func (lv *LogicalVolume) judgeBehind(status dm.Raid, behind map[string]bool) (parted []string) {
	images, lacks := lv.images(), lv.lacks()
	if len(status.Health) != len(images) {
		return nil // lvm was killed while it changed the legs; it is mended first
	}
	if len(lacks) == 0 && status.DeadLegs == 0 && status.RebuildingLegs == 0 {
		for _, image := range images {
			delete(behind, image.UUID)
		}
		return nil
	}
	without, outOfStep := map[int]bool{}, map[int]bool{}
	var gone, dead []string
	for i, image := range images {
		misses := lacks[legNumber(image.Name)]
		switch status.Health[i] {
		case dm.LegDead, dm.LegAbsent:
			misses = true
			dead = append(dead, image.UUID)
		case dm.LegRebuilding:
			misses = misses || status.Recovering()
		}
		if misses {
			gone = append(gone, image.UUID)
		}
		if misses || behind[image.UUID] {
			without[i] = true
		}
		if misses || status.Health[i] != dm.LegInStep {
			outOfStep[i] = true
		}
	}
	// Where the others are not enough the volume stands still, and nobody has written more.
	if layoutOf(lv).survivesWithout(len(images), without) {
		for _, uuid := range gone {
			behind[uuid] = true
		}
		return nil
	}
	// What others are written from is not failed by the kernel when it is the last one.
	if layoutOf(lv).survivesWithout(len(images), outOfStep) {
		return dead
	}
	return nil
}

// keepBehind changes which legs are behind in what the journal holds of a group. Where it
// holds nothing, as after an operator has taken it away, it gets no generation by that: there is
// no way back to one, and none is older.
func (q *queue) keepBehind(g *Group, behind []string) error {
	q.keeping.Lock()
	defer q.keeping.Unlock()
	kept, _, err := q.journal.Kept(g.UUID)
	if err == nil {
		kept.GroupUUID, kept.Behind = g.UUID, behind
		err = q.journal.Keep(kept)
	}
	if err != nil {
		return fmt.Errorf("write down which disks of %s miss what is written now: %w", g.Name, err)
	}
	q.behind.Store(&behind)
	return nil
}

// mayBeBehind reports whether legs of the group's volumes are behind, or that is not known.
func (q *queue) mayBeBehind() bool {
	if q.journal == nil || !q.layout.Redundant() {
		return false
	}
	kept, _, err := q.journal.Kept(q.groupUUID)
	return err != nil || len(kept.Behind) > 0
}

// imagesBehind are the UUIDs of the images that are behind.
func (g *Group) imagesBehind() []string {
	if g.behind == nil {
		return nil
	}
	return *g.behind.Load()
}
