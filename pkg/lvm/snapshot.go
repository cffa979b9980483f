// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// Snapshot implements volume.Snapshotter, for volumes of a thin pool. It costs one lvm
// process at most, shared with what else waits.
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
	g, err := b.queue.do(ctx, op)
	if err != nil {
		return volume.Record{}, err
	}
	lv := g.Volume(name)
	if lv == nil {
		return volume.Record{}, fmt.Errorf("snapshot %s/%s: %w: somebody has removed it meanwhile", g.Name, spec.ID, volume.ErrBusy)
	}
	return record(g, lv), nil
}

// snapshotOperation returns what makes a snapshot, or nil when it is there.
func (b *Backend) snapshotOperation(ctx context.Context, spec volume.SnapshotSpec) (*operation, error) {
	name := snapshotPrefix + spec.ID
	_, lv, err := b.look(ctx, spec.ID, name, nil)
	if err != nil || lv != nil && ownedSnapshot(lv) {
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
	return &operation{verb: verbSnapshot, name: name, source: spec.Volume.LVM.LVUUID, tag: TagSnapshot + tagText(spec.Name)}, nil
}

// DeleteSnapshot implements volume.Snapshotter.
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
	_, err = b.queue.do(ctx, &operation{verb: verbRemove, name: name, uuid: lv.UUID})
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
		if lv := &g.LVs[i]; ownedSnapshot(lv) {
			found = append(found, volume.Found{ID: strings.TrimPrefix(lv.Name, snapshotPrefix), Record: record(g, lv)})
		}
	}
	return found, nil
}

// clone makes a volume of a snapshot or of another volume, and grows it where more is
// asked for.
func (b *Backend) clone(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	source := spec.Source
	name := source.ID
	if source.Snapshot {
		name = snapshotPrefix + source.ID
	}
	if err := b.checkRecordOf(source.ID, name, source.Record); err != nil {
		return volume.Record{}, err
	}
	if source.Record.SizeBytes > spec.SizeBytes {
		return volume.Record{}, fmt.Errorf("clone %s/%s: %w: a volume of %d bytes has no room for the %d of its source",
			b.group.GroupName, spec.ID, volume.ErrInvalid, spec.SizeBytes, source.Record.SizeBytes)
	}
	g, lv, err := b.look(ctx, spec.ID, spec.ID, nil)
	if err != nil {
		return volume.Record{}, err
	}
	if lv == nil || !ownedVolume(lv) {
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
