// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"cmp"
	"context"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.LeftOverTaker = (*Memory)(nil)

// TakeOver implements volume.LeftOverTaker.
func (m *Memory) TakeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (volume.Record, error) {
	if err := spec.ValidateEmpty(); err != nil {
		return volume.Record{}, err
	}
	if spec.ID == from.ID {
		return volume.Record{}, fmt.Errorf("%w: it needs another ID than before", volume.ErrInvalid)
	}
	rec, err := m.takenOver(ctx, spec.ID, from)
	if err != nil || rec != nil {
		return orNone(rec), err
	}
	if err := sure(ctx); err != nil {
		return volume.Record{}, err
	}
	err = m.change(ctx, Step{Op: "TakeOver", ID: spec.ID}, func() error {
		v := m.volumes[from.ID]
		if v == nil || v.holders > 0 {
			return fmt.Errorf("%w: volume %s is gone or held: %w", volume.ErrNotAdoptable, from.ID, volume.ErrInUse)
		}
		v.name, v.claim, v.former = spec.Name, cmp.Or(spec.Claim, v.claim), from.ID
		if v.record.LVM != nil {
			lv := *v.record.LVM
			lv.LVName = spec.ID
			v.record.LVM = &lv
		}
		delete(m.volumes, from.ID)
		m.volumes[spec.ID] = v
		rec = &v.record
		return nil
	})
	return orNone(rec), err
}

func orNone(rec *volume.Record) volume.Record {
	if rec == nil {
		return volume.Record{}
	}
	return *rec
}

// takenOver returns the record of what has the new ID already, nil where the left-over has its old
// one and is what was named.
func (m *Memory) takenOver(ctx context.Context, id string, from volume.LeftOver) (*volume.Record, error) {
	m.mu.Lock()
	taken := m.volumes[id]
	m.mu.Unlock()
	if taken != nil && taken.former != from.ID {
		return nil, fmt.Errorf("volume %s is there already: %w", id, volume.ErrIdentity)
	}
	if taken != nil {
		return &taken.record, ctx.Err()
	}
	e, err := m.Examine(ctx, from.ID)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
	case e.Identity != from.Identity:
		return nil, fmt.Errorf("%w: this is %q, named is %q", volume.ErrNotAdoptable, e.Identity, from.Identity)
	}
	return nil, nil
}

// LetGo implements volume.LeftOverTaker.
func (m *Memory) LetGo(ctx context.Context, id string) error {
	return m.change(ctx, Step{Op: "LetGo", ID: id}, func() error {
		if v := m.volumes[id]; v != nil && v.former == "" {
			return fmt.Errorf("volume %s was not taken over: %w", id, volume.ErrIdentity)
		}
		return nil
	})
}
