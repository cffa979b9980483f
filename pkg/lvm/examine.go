// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

var (
	_ volume.Examiner         = (*Backend)(nil)
	_ volume.SnapshotExaminer = (*Backend)(nil)
)

// Examine implements volume.Examiner, from the metadata alone. When it was made is not among
// what the reports have.
func (b *Backend) Examine(ctx context.Context, id string) (volume.Examination, error) {
	g, lv, err := b.examined(ctx, id, id)
	if err != nil {
		return volume.Examination{}, err
	}
	if !ownedVolume(lv) {
		return volume.Examination{}, fmt.Errorf("examine %s/%s: %w: a volume of that name has no tag %s", g.Name, id, volume.ErrExists, TagVolume)
	}
	e, err := b.examination(ctx, g, lv, TagVolume)
	for i := range g.LVs {
		if s := &g.LVs[i]; s.OriginUUID == lv.UUID && ownedSnapshot(s) {
			e.Snapshots = append(e.Snapshots, called(strings.TrimPrefix(s.Name, snapshotPrefix), s.tagged(TagSnapshot)))
		}
	}
	return e, err
}

// ExamineSnapshot implements volume.SnapshotExaminer, from the metadata alone. A thin snapshot
// whose volume is gone does not know it any more, and when it was taken is known of a group.
func (b *Backend) ExamineSnapshot(ctx context.Context, id string) (volume.Examination, error) {
	name := snapshotPrefix + id
	g, lv, err := b.examined(ctx, id, name)
	switch {
	case err != nil:
		return volume.Examination{}, err
	case !ownedSnapshot(lv):
		return volume.Examination{}, fmt.Errorf("examine %s/%s: %w: a volume of that name has no tag %s", g.Name, name, volume.ErrExists, TagSnapshot)
	case !lv.stands():
		return volume.Examination{}, fmt.Errorf("examine %s/%s: %w: it is what is left of a snapshot", g.Name, name, volume.ErrNotFound)
	}
	e, err := b.examination(ctx, g, lv, TagSnapshot)
	if origin := g.volumeByUUID(lv.OriginUUID); origin != nil {
		if of := strings.TrimPrefix(origin.Name, deletedPrefix); volume.ValidateID(of) == nil {
			e.Of, e.OfName = of, origin.tagged(TagVolume)
		}
	}
	if at, err := time.Parse(instantLayout, lv.tagged(TagInstant)); err == nil {
		e.Made = at
	}
	return e, err
}

// examined finds what is to be examined.
func (b *Backend) examined(ctx context.Context, id, name string) (*Group, *LogicalVolume, error) {
	if err := volume.ValidateID(id); err != nil {
		return nil, nil, err
	}
	g, lv, err := b.look(ctx, id, name, nil)
	if err == nil && lv == nil {
		err = fmt.Errorf("examine %s/%s: %w in the volume group's metadata", g.Name, name, volume.ErrNotFound)
	}
	return g, lv, err
}

// examination is what is known of a volume and of a snapshot alike; its name is in the tag.
func (b *Backend) examination(ctx context.Context, g *Group, lv *LogicalVolume, tag string) (volume.Examination, error) {
	loc, _, err := b.nodes.Find(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID})
	if err != nil {
		return volume.Examination{}, fmt.Errorf("find the device of %s/%s: %w", g.Name, lv.Name, err)
	}
	name := lv.tagged(tag)
	return volume.Examination{
		Record: record(g, lv), Identity: identityOf(g, lv), Device: loc.Device,
		Name: name, NameCut: len(name) >= maxTagText,
	}, nil
}

// called is an ID, with a name where there is one.
func called(id, name string) string {
	if name == "" {
		return id
	}
	return id + " (" + name + ")"
}

// ProveUnused implements volume.Examiner, by opening the volume exclusively.
func (b *Backend) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	if err := b.checkRecord(id, rec); err != nil {
		return err
	}
	g, lv, err := b.look(ctx, id, id, &rec)
	switch {
	case err != nil:
		return err
	case lv == nil:
		return fmt.Errorf("look for who has %s/%s: %w in the volume group's metadata", g.Name, id, volume.ErrNotFound)
	case lv.Unfinished:
		return nil // it has no device that anybody could have
	}
	return b.proveUnused(ctx, g, lv)
}

// ProveSnapshotUnused implements volume.SnapshotExaminer, by opening the snapshot exclusively.
func (b *Backend) ProveSnapshotUnused(ctx context.Context, id string, rec volume.Record) error {
	name := snapshotPrefix + id
	if err := b.checkRecordOf(id, name, rec); err != nil {
		return err
	}
	g, lv, err := b.look(ctx, id, name, &rec)
	switch {
	case err != nil:
		return err
	case lv == nil:
		return fmt.Errorf("look for who has %s/%s: %w in the volume group's metadata", g.Name, name, volume.ErrNotFound)
	}
	loc, active, err := b.nodes.Find(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID})
	if err == nil && active {
		err = b.nodes.Wipe(ctx, loc, volume.WipeNone)
	}
	if err != nil {
		return fmt.Errorf("look for who has %s/%s: %w", g.Name, name, err)
	}
	return nil
}
