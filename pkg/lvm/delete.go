// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Delete implements volume.Backend. The wiping, which may take hours, happens in
// the caller's time and holds up nobody else; the removal is one lvm process at
// most, shared with what else waits. A thick volume that is large and is to be zeroed
// takes one more, which gives it another name and tag first: what is half zeroed is no
// volume of anybody.
//
// A thick volume of which there are snapshots cannot be wiped, for they would keep all that
// was on it, or be lost. It gets another name and tag, which say what is to become of it,
// and is a volume no longer; Sweep does the rest when the last snapshot is gone.
func (b *Backend) Delete(ctx context.Context, id string, rec *volume.Record, wipe volume.WipePolicy) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	if rec != nil {
		if err := b.checkRecord(id, *rec); err != nil {
			return err
		}
	}
	g, lv, err := b.look(ctx, id, id, rec)
	if err != nil {
		return err
	}
	if err := b.removeSnapshotIn(ctx, g, copyPrefix+id); err != nil {
		return err
	}
	if lv == nil {
		return b.finishDeleted(ctx, id, wipe)
	}
	if lv.isThickOrigin() && g.onlyOurs(lv) {
		if err := b.proveUnused(ctx, g, lv); err != nil {
			return err
		}
		return b.quarantine(ctx, lv, id, wipe)
	}
	remove := &operation{verb: verbRemove, name: id, uuid: lv.UUID}
	if err := remove.check(g, lv); err != nil {
		return err
	}
	if lv.Unfinished {
		return b.removeUnfinished(ctx, id) // it has no device that could be wiped
	}
	if ownedVolume(lv) && lv.PoolUUID == "" && wipe == volume.WipeZero && lv.SizeBytes >= quarantineBytes {
		if err := b.proveUnused(ctx, g, lv); err != nil {
			return err
		}
		if err := b.quarantine(ctx, lv, id, wipe); err != nil {
			return err
		}
		return b.finishDeleted(ctx, id, wipe)
	}
	return b.wipeAndRemove(ctx, g, lv, wipe)
}

// wipeAndRemove ends a volume.
func (b *Backend) wipeAndRemove(ctx context.Context, g *Group, lv *LogicalVolume, wipe volume.WipePolicy) error {
	remove := &operation{verb: verbRemove, name: lv.Name, uuid: lv.UUID}
	// What cannot be removed, as while a disk is missing, would be wiped again and again.
	if err := remove.allowed(g); err != nil {
		return err
	}
	if err := remove.check(g, lv); err != nil {
		return err
	}
	// To be opened exclusively, which shows that nobody uses it, it must be active.
	loc, err := b.node(ctx, g, lv)
	if err != nil {
		return err
	}
	erase := b.nodes.Wipe
	if lv.PoolUUID != "" {
		erase = b.nodes.WipeThin
	}
	if err := erase(ctx, loc, wipe); err != nil {
		return fmt.Errorf("wipe %s/%s (%s): %w", g.Name, lv.Name, loc.Device, err)
	}
	_, err = b.queue.do(ctx, remove)
	return err
}

// proveUnused returns volume.ErrInUse when somebody has the volume.
func (b *Backend) proveUnused(ctx context.Context, g *Group, lv *LogicalVolume) error {
	loc, err := b.node(ctx, g, lv)
	if err != nil {
		return err
	}
	if err := b.nodes.Wipe(ctx, loc, volume.WipeNone); err != nil {
		return fmt.Errorf("look for who has %s/%s (%s): %w", g.Name, lv.Name, loc.Device, err)
	}
	return nil
}

// quarantine makes a volume one that was deleted. What is to become of it is in its tag,
// where it outlives whatever happens to the node.
func (b *Backend) quarantine(ctx context.Context, lv *LogicalVolume, id string, wipe volume.WipePolicy) error {
	if g, err := b.ready(ctx); err != nil {
		return err
	} else if former := g.Volume(deletedPrefix + id); former != nil && former.UUID != lv.UUID && ownedDeleted(former) && !former.isThickOrigin() {
		if err := b.endDeleted(ctx, g, former, ""); err != nil {
			return err
		}
	}
	_, err := b.queue.do(ctx, &operation{verb: verbQuarantine, name: lv.Name, uuid: lv.UUID, newName: deletedPrefix + id, tag: TagDeleted + string(wipe)})
	return err
}

// finishDeleted ends a volume that was deleted, unless there are snapshots of it. The policy is
// for one whose tag has none yet.
func (b *Backend) finishDeleted(ctx context.Context, id string, wipe volume.WipePolicy) error {
	for _, name := range []string{deletedPrefix + id, id} {
		g, err := b.queue.do(ctx, &operation{verb: verbObserve, name: name})
		if err != nil {
			return err
		}
		if lv := g.Volume(name); lv != nil && isDeleted(lv) {
			return b.endDeleted(ctx, g, lv, wipe)
		}
	}
	return nil
}

// endDeleted needs a policy for a volume whose tag has none yet, and leaves one alone for which
// there is none: whoever deletes it knows it, and was not told that it is deleted.
func (b *Backend) endDeleted(ctx context.Context, g *Group, lv *LogicalVolume, wipe volume.WipePolicy) error {
	id := strings.TrimPrefix(lv.Name, deletedPrefix)
	if hasTag(lv, TagDeleted) {
		wipe = volume.WipePolicy(lv.tagged(TagDeleted))
	}
	if wipe == "" {
		return nil
	}
	if !ownedDeleted(lv) || hasTag(lv, TagVolume) {
		if err := b.quarantine(ctx, lv, id, wipe); err != nil {
			return err
		}
		return b.finishDeleted(ctx, id, wipe)
	}
	if lv.isThickOrigin() {
		return nil
	}
	err := b.wipeAndRemove(ctx, g, lv, wipe)
	if errors.Is(err, volume.ErrNotFound) {
		return nil // somebody else has ended it
	}
	return err
}

// onlyOurs reports whether a volume has thick snapshots, and all of them are ours.
func (g *Group) onlyOurs(origin *LogicalVolume) bool {
	snapshots := g.snapshotsOf(origin)
	for _, lv := range snapshots {
		if !ownedSnapshot(lv) && !ownedCopy(lv) {
			return false
		}
	}
	return len(snapshots) > 0
}

// Deleted returns how many volumes were deleted and are there still, and how many of them
// wait for snapshots to be deleted; Sweep ends the others.
func (b *Backend) Deleted(ctx context.Context) (all, waiting int, err error) {
	g, err := b.ready(ctx)
	if err != nil {
		return 0, 0, err
	}
	for i := range g.LVs {
		if lv := &g.LVs[i]; isDeleted(lv) {
			all++
			if lv.isThickOrigin() {
				waiting++
			}
		}
	}
	return all, waiting, nil
}

// Sweep wipes and removes the volumes that were deleted while there were snapshots of them,
// of which the last is gone, and those whose wiping was cut short. It may take hours, and holds
// up nobody else. It may be called again after any crash. What somebody else is wiping right
// now it leaves to him.
func (b *Backend) Sweep(ctx context.Context) error {
	g, err := b.ready(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range g.LVs {
		lv := &g.LVs[i]
		if !isDeleted(lv) || lv.isThickOrigin() {
			continue
		}
		if err := b.endDeleted(ctx, g, lv, ""); err != nil && !errors.Is(err, volume.ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeSnapshotIn is removeSnapshot where a group that was just seen shows one.
func (b *Backend) removeSnapshotIn(ctx context.Context, g *Group, name string) error {
	if g.Volume(name) == nil {
		return nil
	}
	return b.removeSnapshot(ctx, name)
}
