// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// adopt asks the backend for the disk or the directory that was handed over. The ledger is
// written first, so that whatever comes between, the disk is never taken for one to be
// formatted, nor the directory for one to be removed.
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
	rec, err := adopter.Adopt(ctx, volume.Spec{
		ID: w.UID, Name: w.Name, SizeBytes: w.SizeBytes, Access: w.Access, Limited: w.RequireQuota, Claim: w.Claim,
	}, *w.Adopt)
	if err != nil {
		return e, err
	}
	c.Backends.Touch(e.Pool)
	e.Record, e.State = &rec, ledger.Carved
	return e, nil
}

// validateAdoption returns volume.ErrInvalid for an adoption that no backend can do.
func validateAdoption(w Wish) error {
	a := w.Adopt
	if a == nil {
		return nil
	}
	if a.LeftOver != nil {
		others := volume.Adoption{FSType: a.FSType, LeftOver: a.LeftOver}
		if *a != others || w.Directory != "" || w.RetainFor != 0 || w.Encryption != "" || len(w.MkfsOptions) > 0 {
			return fmt.Errorf("a left-over is adopted as it is, and spec.adopt names nothing else: %w", volume.ErrInvalid)
		}
		if a.LeftOver.ID == w.UID || a.LeftOver.Identity == "" {
			return fmt.Errorf("spec.adopt.leftOver needs the UID and the identity of a left-over: %w", volume.ErrInvalid)
		}
		return volume.ValidateID(a.LeftOver.ID)
	}
	disk := w.Mode == volume.ModeDevice && w.FSType != "" && a.Disk != "" && a.FSUUID != "" && a.Directory == ""
	directory := w.Mode == volume.ModeHostpath && a.Directory != "" && a.Disk == "" && a.FSUUID == "" && w.Directory == "" && w.RetainFor == 0
	if !disk && !directory || w.Wipe != volume.WipeNone {
		return fmt.Errorf("adopt needs wipe none, and either mode device, a disk, its filesystem and the UUID of that, or mode hostpath and a directory, without a path of its own and without retainFor: %w", volume.ErrInvalid)
	}
	return nil
}

// adoptedDisk is the disk that a volume is to adopt; empty for none.
func adoptedDisk(lv *v1alpha1.LocalVolume) string {
	if lv.Spec.Adopt == nil {
		return ""
	}
	return lv.Spec.Adopt.Device
}
