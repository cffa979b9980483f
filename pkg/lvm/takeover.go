// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.LeftOverTaker = (*Backend)(nil)

// TakeOver implements volume.LeftOverTaker. The logical volume keeps its UUID and gets another name
// and then another tag, in one process; a volume that has the name of the new ID and that UUID was
// taken over, whatever its tag says. It is refused while there is a snapshot of it.
func (b *Backend) TakeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (volume.Record, error) {
	if err := spec.Validate(); err != nil {
		return volume.Record{}, err
	}
	if err := volume.ValidateID(from.ID); err != nil {
		return volume.Record{}, err
	}
	if spec.Source != nil || spec.ID == from.ID {
		return volume.Record{}, fmt.Errorf("%w: volume %s: what is taken over is no copy, and gets another ID than before", volume.ErrInvalid, spec.Name)
	}
	g, lv, err := b.look(ctx, spec.ID, spec.ID, nil)
	switch {
	case err != nil:
		return volume.Record{}, err
	case lv == nil:
		if lv, err = b.leftOver(ctx, from, sure); err != nil {
			return volume.Record{}, fmt.Errorf("take %s/%s over as volume %s: %w", b.group.GroupName, from.ID, spec.Name, err)
		}
	case !ownedVolume(lv) || identityOf(g, lv) != from.Identity:
		return volume.Record{}, fmt.Errorf("take %s/%s over as volume %s: %w: there is a volume %s already, which is not the left-over",
			b.group.GroupName, from.ID, spec.Name, volume.ErrIdentity, lv.Name)
	}
	uuid := lv.UUID
	g, err = b.queue.do(ctx, &operation{verb: verbTakeOver, name: lv.Name, uuid: uuid, newName: spec.ID, tag: TagVolume + tagText(spec.Name)})
	if err != nil {
		return volume.Record{}, err
	}
	lv = g.volumeByUUID(uuid)
	if _, err := b.node(ctx, g, lv); err != nil {
		return volume.Record{}, err
	}
	return record(g, lv), nil
}

// leftOver finds what is named, and proves that it may be taken over.
func (b *Backend) leftOver(ctx context.Context, from volume.LeftOver, sure func(context.Context) error) (*LogicalVolume, error) {
	g, lv, err := b.look(ctx, from.ID, from.ID, nil)
	switch {
	case err != nil:
		return nil, err
	case lv == nil || !ownedVolume(lv):
		return nil, fmt.Errorf("%w: there is no volume of that name with a tag %s", volume.ErrNotAdoptable, TagVolume)
	case identityOf(g, lv) != from.Identity:
		return nil, fmt.Errorf("%w: it is another one than was named: this is %q, named is %q", volume.ErrNotAdoptable, identityOf(g, lv), from.Identity)
	case lv.Unfinished:
		return nil, fmt.Errorf("%w: %w", volume.ErrNotAdoptable, errUnfinished)
	}
	for i := range g.LVs {
		if s := &g.LVs[i]; s.OriginUUID == lv.UUID && !ownedVolume(s) {
			return nil, fmt.Errorf("%w: there is a snapshot of it, %s: delete that first", volume.ErrNotAdoptable, s.Name)
		}
	}
	if err := sure(ctx); err != nil {
		return nil, err
	}
	if err := b.proveUnused(ctx, g, lv); err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
	}
	return lv, nil
}

// identityOf names a logical volume in full: lvm never makes another one of that UUID.
func identityOf(g *Group, lv *LogicalVolume) string { return g.UUID + "/" + lv.UUID }

// takeOver gives a volume another name, and then another tag: what has the new name was found by
// its UUID to be the one that was meant.
func (p *plan) takeOver(op *operation, lv *LogicalVolume) {
	p.acting = append(p.acting, op)
	if lv.Name != op.newName {
		p.commands = append(p.commands, []string{"lvrename", "--yes", p.group.Name, lv.Name, op.newName})
	}
	if change := retag(lv, TagVolume, op.tag); len(change) > 0 {
		p.commands = append(p.commands, changeCommand(p.group.UUID, op.uuid, change...))
	}
}

// LetGo implements volume.LeftOverTaker. A volume has one name at each moment, and is a volume by
// its tag before and after: nothing is to be ended.
func (b *Backend) LetGo(ctx context.Context, id string) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	_, _, err := b.look(ctx, id, id, nil)
	return err
}
