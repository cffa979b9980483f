// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// adopt asks the backend for the disk that was handed over. The ledger is written
// first, so that whatever comes between, the disk is never taken for one to be
// formatted.
func (c *Carver) adopt(ctx context.Context, b volume.Backend, e ledger.Entry, w Wish, begun bool) (ledger.Entry, error) {
	adopter, ok := b.(interface {
		Adopt(ctx context.Context, spec volume.Spec, adoption volume.Adoption) (volume.Record, error)
	})
	if !ok || w.Adopt == nil {
		return e, fmt.Errorf("volume %s cannot be adopted in mode %s: %w", w.Name, w.Mode, volume.ErrInvalid)
	}
	if !begun {
		if err := c.Journal.Put(e); err != nil {
			return e, err
		}
	}
	rec, err := adopter.Adopt(ctx, volume.Spec{ID: w.UID, Name: w.Name, SizeBytes: w.SizeBytes, Access: w.Access}, *w.Adopt)
	if err != nil {
		return e, err
	}
	c.Backends.Touch(e.Pool)
	e.Record, e.State = &rec, ledger.Carved
	return e, nil
}
