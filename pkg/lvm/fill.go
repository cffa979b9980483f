// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

// A copy of a thick volume is made by copying: into a volume that has a tag of its own as
// long as that lasts, so that nobody takes it for a volume, out of a snapshot. That of a
// volume is made for the purpose, and removed afterwards. A call that is killed is begun
// anew: the volume is there, the snapshot is made again where it is of no use any more.

// fill makes a thick volume as a copy. It costs an lvm process for each of: the volume, the
// snapshot, handing it out, and removing the snapshot.
func (b *Backend) fill(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	source := spec.Source
	g, lv, err := b.look(ctx, spec.ID, spec.ID, nil)
	if err != nil {
		return volume.Record{}, err
	}
	if lv == nil || !ownedVolume(lv) {
		name, err := b.sourceName(spec)
		if err != nil {
			return volume.Record{}, err
		}
		g, err = b.fillNew(ctx, spec, name)
		if errors.Is(err, volume.ErrNoSpace) || errors.Is(err, volume.ErrInvalid) || errors.Is(err, volume.ErrNotFound) {
			if abandonErr := b.AbandonCopy(ctx, spec.ID); abandonErr != nil {
				return volume.Record{}, fmt.Errorf("give the copy up: %w (it was given up for: %s)", abandonErr, err.Error())
			}
		}
		if err != nil {
			return volume.Record{}, err
		}
	}
	if source.Secured != nil {
		source.Secured()
	}
	if err := b.removeSnapshotIn(ctx, g, copyPrefix+spec.ID); err != nil {
		return volume.Record{}, err
	}
	if lv = g.Volume(spec.ID); lv.SizeBytes < spec.SizeBytes {
		g, err = b.queue.do(ctx, &operation{verb: verbCreate, name: spec.ID, sizeBytes: spec.SizeBytes, tag: TagVolume + tagText(spec.Name)})
		if err != nil {
			return volume.Record{}, err
		}
		lv = g.Volume(spec.ID)
	}
	if _, err := b.node(ctx, g, lv); err != nil {
		return volume.Record{}, err
	}
	return record(g, lv), nil
}

func (b *Backend) fillNew(ctx context.Context, spec volume.Spec, sourceName string) (*Group, error) {
	source := spec.Source
	g, from, err := b.look(ctx, source.ID, sourceName, &source.Record)
	if err != nil {
		return nil, err
	}
	if from == nil {
		return nil, fmt.Errorf("copy to %s/%s: %w: %s, which it is to be a copy of", b.group.GroupName, spec.ID, volume.ErrNotFound, sourceName)
	}
	if err := copyable(from, source.Snapshot); err != nil {
		return nil, fmt.Errorf("copy to %s/%s: %w", g.Name, spec.ID, err)
	}
	if source.Snapshot {
		if err := b.proveHeld(ctx, g, from); err != nil {
			return nil, err
		}
	}
	if _, err := b.queue.do(ctx, &operation{verb: verbFill, name: spec.ID, sizeBytes: spec.SizeBytes, tag: TagFilling + string(source.Wipe)}); err != nil {
		return nil, err
	}
	if !source.Snapshot {
		if sourceName, err = b.snapshotToCopy(ctx, spec); err != nil {
			return nil, err
		}
	}
	if source.Secured != nil {
		source.Secured()
	}
	if g, err = b.ready(ctx); err != nil {
		return nil, err
	}
	from, to := g.Volume(sourceName), g.Volume(spec.ID)
	if from == nil || to == nil || !from.isThickSnapshot() || !ownedFilling(to) || source.Snapshot && from.UUID != source.Record.LVM.LVUUID {
		return nil, fmt.Errorf("copy %s/%s to %s: %w: somebody has removed one of them meanwhile", g.Name, sourceName, spec.ID, volume.ErrBusy)
	}
	if err := b.copyOver(ctx, g, from, to, source.Progress); err != nil {
		return nil, err
	}
	return b.queue.do(ctx, &operation{verb: verbHandOut, name: spec.ID, uuid: to.UUID, tag: TagVolume + tagText(spec.Name)})
}

// copyable returns volume.ErrInvalid for what is not copied.
func copyable(from *LogicalVolume, snapshot bool) error {
	if !snapshot {
		return canHaveThick(from)
	}
	if !from.isThickSnapshot() {
		return fmt.Errorf("%w: %s is no snapshot any more", volume.ErrInvalid, from.Name)
	}
	return nil
}

// snapshotToCopy takes the snapshot that a volume is copied from. One that an earlier call has
// left serves, as long as it holds what it should.
func (b *Backend) snapshotToCopy(ctx context.Context, spec volume.Spec) (name string, err error) {
	name = copyPrefix + spec.ID
	op := &operation{verb: verbSnapshot, name: name, source: spec.Source.Record.LVM.LVUUID, tag: TagCopy + string(spec.Source.Wipe)}
	g, err := b.takeSnapshot(ctx, op)
	if err != nil {
		return "", err
	}
	lv := g.Volume(name)
	err = b.proveHeld(ctx, g, lv)
	if err == nil && lv.OriginUUID == op.source {
		return name, nil
	}
	if err != nil && !errors.Is(err, volume.ErrLost) {
		return "", err
	}
	if err := b.removeSnapshot(ctx, name); err != nil {
		return "", err
	}
	again := *op
	_, err = b.takeSnapshot(ctx, &again)
	return name, err
}

// proveHeld returns volume.ErrLost, which is volume.ErrInvalid for whoever wants to copy it,
// for a snapshot that was full.
func (b *Backend) proveHeld(ctx context.Context, g *Group, snapshot *LogicalVolume) error {
	if _, err := b.node(ctx, g, snapshot); err != nil {
		return err
	}
	status, active, err := b.nodes.Snapshot(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: snapshot.Name, UUID: snapshot.UUID})
	switch {
	case err != nil:
		return fmt.Errorf("look at snapshot %s/%s: %w", g.Name, snapshot.Name, err)
	case !active:
		return fmt.Errorf("look at snapshot %s/%s: %w: it is not active", g.Name, snapshot.Name, volume.ErrBusy)
	case status.Lost:
		return fmt.Errorf("snapshot %s: %w: %w: it was full, and nothing can be restored from it; its volume is as it should be: delete the snapshot",
			snapshot.tagged(TagSnapshot), volume.ErrInvalid, volume.ErrLost)
	}
	return nil
}

// copyOver copies what a snapshot shows to a volume that is being filled. It has it only when
// the snapshot holds what it should afterwards.
func (b *Backend) copyOver(ctx context.Context, g *Group, from, to *LogicalVolume, progress func(doneBytes, totalBytes int64)) error {
	source, err := b.node(ctx, g, from)
	if err != nil {
		return err
	}
	target, err := b.node(ctx, g, to)
	if err != nil {
		return err
	}
	tell := func(doneBytes int64) {
		if progress != nil {
			progress(doneBytes, source.SizeBytes)
		}
	}
	copyErr := b.nodes.Copy(ctx, source, target, tell)
	if heldErr := b.proveHeld(ctx, g, from); errors.Is(heldErr, volume.ErrLost) && ownedCopy(from) {
		// The next attempt takes another one.
		return fmt.Errorf("copy to %s/%s: %w: more was written to its source meanwhile than the pool had room to keep", g.Name, to.Name, volume.ErrBusy)
	} else if err := errors.Join(copyErr, heldErr); err != nil {
		return fmt.Errorf("copy %s/%s to %s: %w", g.Name, from.Name, to.Name, err)
	}
	return nil
}

// AbandonCopy implements volume.Snapshotter.
func (b *Backend) AbandonCopy(ctx context.Context, id string) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	g, err := b.ready(ctx)
	if err != nil {
		return err
	}
	if err := b.removeSnapshotIn(ctx, g, copyPrefix+id); err != nil {
		return err
	}
	lv := g.Volume(id)
	if lv == nil || !ownedFilling(lv) {
		return nil
	}
	wipe := volume.WipePolicy(lv.tagged(TagFilling))
	if wipe != volume.WipeZero && wipe != volume.WipeDiscard {
		wipe = volume.WipeSignatures // a filesystem, or the header of an encrypted volume
	}
	return b.wipeAndRemove(ctx, g, lv, wipe)
}
