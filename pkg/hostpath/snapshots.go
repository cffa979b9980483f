// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.Snapshotter = (*Backend)(nil)

// allSnapshots returns the promises of all snapshots.
func (b *Backend) allSnapshots(root *os.Root) ([]promise, error) {
	all, err := b.snaps.all(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever taken here
	}
	return all, err
}

// Snapshot implements volume.Snapshotter. The snapshot is a copy of the volume's tree, whose
// files share their blocks with the volume's: it takes time by their number, not by their
// size. It counts in the capacity with the size of the volume.
//
// ErrInvalid: the filesystem has no reflinks, or the volume is mounted so that somebody could
// write to it meanwhile.
func (b *Backend) Snapshot(ctx context.Context, spec volume.SnapshotSpec) (volume.Record, error) {
	rec, err := b.snapshot(ctx, spec)
	if err != nil {
		return volume.Record{}, fmt.Errorf("snapshot volume %s: %w", spec.VolumeID, err)
	}
	return rec, nil
}

func (b *Backend) snapshot(ctx context.Context, spec volume.SnapshotSpec) (volume.Record, error) {
	wanted := promise{ID: spec.ID, Snapshot: true}
	root, p, err := b.findPromise(ctx, wanted, nil)
	if errors.Is(err, volume.ErrNotFound) {
		p = wanted
		p.Name, p.Source, p.Created = spec.Name, spec.VolumeID, time.Now().UTC().Truncate(time.Second)
		root, err = b.open(ctx)
	}
	if err != nil {
		return volume.Record{}, err
	}
	defer closeRoot(root)
	if p.Source != spec.VolumeID {
		return volume.Record{}, fmt.Errorf("the snapshot %s is one of volume %s: %w", spec.ID, p.Source, volume.ErrExists)
	}
	made, err := b.takeSnapshot(ctx, root, p, spec)
	if err != nil {
		return volume.Record{}, b.dropUnmade(root, p, err)
	}
	return b.record(made), nil
}

func (b *Backend) takeSnapshot(ctx context.Context, root *os.Root, p promise, spec volume.SnapshotSpec) (promise, error) {
	source := volume.Source{ID: spec.VolumeID, Record: spec.Volume, NoWait: spec.NoWait}
	if p.SizeBytes > 0 {
		return b.fulfil(ctx, root, p, p.SizeBytes, source)
	}
	from, err := b.sourceOf(root, source)
	if err != nil {
		return p, err
	}
	if err := b.step("make the directories of snapshots"); err != nil {
		return p, err
	}
	for _, dir := range []string{snapshotRecordDir, snapshotsDir} {
		if err := ensureDir(root, dir); err != nil {
			return p, fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return b.fulfil(ctx, root, p, from.SizeBytes, source)
}

// DeleteSnapshot implements volume.Snapshotter. It returns when the snapshot is in the trash.
func (b *Backend) DeleteSnapshot(ctx context.Context, id string, rec *volume.Record) error {
	root, p, err := b.findPromise(ctx, promise{ID: id, Snapshot: true}, rec)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := b.discard(root, p); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	b.Kick()
	return nil
}

// ListSnapshots implements volume.Snapshotter.
func (b *Backend) ListSnapshots(ctx context.Context) ([]volume.Found, error) {
	root, err := b.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	defer closeRoot(root)
	all, err := b.allSnapshots(root)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots of %s: %w", b.Root, err)
	}
	found := make([]volume.Found, 0, len(all))
	for _, p := range all {
		found = append(found, volume.Found{ID: p.ID, Record: b.record(p)})
	}
	return found, nil
}
