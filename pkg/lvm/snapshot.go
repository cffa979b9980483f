// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Snapshot implements volume.Snapshotter, for volumes of a thin pool, and for thick ones of
// the layouts linear and striped. It costs one lvm process at most, shared with what else
// waits.
func (b *Backend) Snapshot(ctx context.Context, spec volume.SnapshotSpec) (volume.Record, error) {
	if err := volume.ValidateID(spec.ID); err != nil {
		return volume.Record{}, err
	}
	if err := b.checkRecord(spec.VolumeID, spec.Volume); err != nil {
		return volume.Record{}, err
	}
	op, err := b.snapshotOperation(ctx, spec)
	if err != nil {
		return volume.Record{}, err
	}
	name := snapshotPrefix + spec.ID
	if op == nil {
		op = &operation{verb: verbObserve, name: name}
	}
	g, err := b.takeSnapshot(ctx, op)
	if err != nil {
		return volume.Record{}, err
	}
	lv := g.Volume(name)
	if lv == nil {
		return volume.Record{}, fmt.Errorf("snapshot %s/%s: %w: somebody has removed it meanwhile", g.Name, spec.ID, volume.ErrBusy)
	}
	if lv.isThickSnapshot() {
		// It is one when the kernel keeps what is overwritten. That it was lost since is no news
		// of this call.
		if err := b.proveHeld(ctx, g, lv); err != nil && !errors.Is(err, volume.ErrLost) {
			return volume.Record{}, err
		}
	}
	return record(g, lv), nil
}

// takeSnapshot does a verbSnapshot. What an lvm that was killed has left of a thick one is
// removed before: nobody was told of it.
func (b *Backend) takeSnapshot(ctx context.Context, op *operation) (*Group, error) {
	g, err := b.queue.do(ctx, op)
	if !errors.Is(err, errUnfinished) {
		return g, err
	}
	if err := b.removeSnapshot(ctx, op.name); err != nil {
		return nil, err
	}
	again := *op
	return b.queue.do(ctx, &again)
}

// snapshotOperation returns what makes a snapshot, or nil when it is there.
func (b *Backend) snapshotOperation(ctx context.Context, spec volume.SnapshotSpec) (*operation, error) {
	name := snapshotPrefix + spec.ID
	_, lv, err := b.look(ctx, spec.ID, name, nil)
	if err != nil || lv != nil && ownedSnapshot(lv) && lv.stands() {
		return nil, err
	}
	// That the volume is there under both its names is seen in the same generation.
	_, source, err := b.look(ctx, spec.VolumeID, spec.VolumeID, &spec.Volume)
	if err != nil {
		return nil, err
	}
	if source == nil {
		return nil, fmt.Errorf("snapshot %s/%s: %w: volume %s", b.group.GroupName, spec.ID, volume.ErrNotFound, spec.VolumeID)
	}
	return &operation{
		verb: verbSnapshot, name: name, source: spec.Volume.LVM.LVUUID, sizeBytes: spec.Volume.SizeBytes,
		tag: TagSnapshot + tagText(spec.Name), wipe: spec.Wipe,
	}, nil
}

// DeleteSnapshot implements volume.Snapshotter. What a thick snapshot has kept is wiped as
// its volume is, in the caller's time.
func (b *Backend) DeleteSnapshot(ctx context.Context, id string, rec *volume.Record) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	name := snapshotPrefix + id
	if rec != nil {
		if err := b.checkRecordOf(id, name, *rec); err != nil {
			return err
		}
	}
	_, lv, err := b.look(ctx, id, name, rec)
	if err != nil || lv == nil {
		return err
	}
	return b.removeSnapshot(ctx, name)
}

// removeSnapshot removes a snapshot of ours, or what is left of one; nil when there is none.
func (b *Backend) removeSnapshot(ctx context.Context, name string) error {
	g, err := b.queue.do(ctx, &operation{verb: verbObserve, name: name})
	if err != nil {
		return err
	}
	lv := g.Volume(name)
	if lv == nil {
		return g.usable()
	}
	remove := &operation{verb: verbRemove, name: name, uuid: lv.UUID}
	wipe := volume.WipePolicy(cmp.Or(lv.tagged(TagWipe), lv.tagged(TagCopy)))
	if lv.PoolUUID != "" || wipe != volume.WipeZero && wipe != volume.WipeDiscard {
		_, err = b.queue.do(ctx, remove)
		return err
	}
	if err := remove.check(g, lv); err != nil {
		return err
	}
	// As long as it is a snapshot nobody reaches what it keeps.
	split := &operation{verb: verbSplit, name: name, uuid: lv.UUID}
	if g, err = b.queue.do(ctx, split); err != nil {
		return err
	}
	if lv = g.Volume(name); lv == nil || lv.isThickSnapshot() {
		return fmt.Errorf("split %s/%s: %w: lvm said %q", g.Name, name, volume.ErrInUse, split.said)
	}
	loc, err := b.node(ctx, g, lv)
	if err != nil {
		return err
	}
	if err := b.nodes.Wipe(ctx, loc, wipe); err != nil {
		return fmt.Errorf("wipe what snapshot %s/%s has kept (%s): %w", g.Name, name, loc.Device, err)
	}
	_, err = b.queue.do(ctx, remove)
	return err
}

// ListSnapshots implements volume.Snapshotter.
func (b *Backend) ListSnapshots(ctx context.Context) ([]volume.Found, error) {
	g, err := b.ready(ctx)
	if err != nil {
		return nil, err
	}
	var found []volume.Found
	for i := range g.LVs {
		if lv := &g.LVs[i]; ownedSnapshot(lv) && lv.stands() {
			found = append(found, volume.Found{ID: strings.TrimPrefix(lv.Name, snapshotPrefix), Record: record(g, lv)})
		}
	}
	return found, nil
}

// sourceName is what the logical volume is called that a volume begins as a copy of. It proves
// that the volume has room for it.
func (b *Backend) sourceName(spec volume.Spec) (string, error) {
	source := spec.Source
	name := source.ID
	if source.Snapshot {
		name = snapshotPrefix + source.ID
	}
	if err := b.checkRecordOf(source.ID, name, source.Record); err != nil {
		return "", err
	}
	if source.Record.SizeBytes > spec.SizeBytes {
		return "", fmt.Errorf("copy to %s/%s: %w: a volume of %d bytes has no room for the %d of its source",
			b.group.GroupName, spec.ID, volume.ErrInvalid, spec.SizeBytes, source.Record.SizeBytes)
	}
	return name, nil
}

// clone makes a volume of a snapshot or of another volume, and grows it where more is
// asked for.
func (b *Backend) clone(ctx context.Context, spec volume.Spec) (volume.Record, error) {
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
		if _, _, err := b.look(ctx, source.ID, name, &source.Record); err != nil {
			return volume.Record{}, err
		}
		g, err = b.queue.do(ctx, &operation{
			verb: verbClone, name: spec.ID, source: source.Record.LVM.LVUUID, sizeBytes: spec.SizeBytes, tag: TagVolume + tagText(spec.Name),
		})
		if err != nil {
			return volume.Record{}, err
		}
		lv = g.Volume(spec.ID)
	}
	if lv.SizeBytes < spec.SizeBytes {
		// It is ours and was handed to nobody: verbCreate grows it.
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
