// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.Examiner = (*Backend)(nil)

// Examine implements volume.Examiner, from the metadata alone. When it was made is not among
// what the reports have.
func (b *Backend) Examine(ctx context.Context, id string) (volume.Examination, error) {
	if err := volume.ValidateID(id); err != nil {
		return volume.Examination{}, err
	}
	g, lv, err := b.look(ctx, id, id, nil)
	switch {
	case err != nil:
		return volume.Examination{}, err
	case lv == nil:
		return volume.Examination{}, fmt.Errorf("examine %s/%s: %w in the volume group's metadata", g.Name, id, volume.ErrNotFound)
	case !ownedVolume(lv):
		return volume.Examination{}, fmt.Errorf("examine %s/%s: %w: a volume of that name has no tag %s", g.Name, id, volume.ErrExists, TagVolume)
	}
	loc, _, err := b.nodes.Find(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID})
	if err != nil {
		return volume.Examination{}, fmt.Errorf("find the device of %s/%s: %w", g.Name, id, err)
	}
	name := lv.tagged(TagVolume)
	return volume.Examination{
		Record: record(g, lv), Identity: identityOf(g, lv), Device: loc.Device,
		Name: name, NameCut: len(name) >= maxTagText,
	}, nil
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
