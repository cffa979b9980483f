// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// Formatter makes filesystems; *mount.Formatter is one.
type Formatter interface {
	// Format refuses with volume.ErrNotBlank what it did not find blank (I3), unless it
	// is the very filesystem that was asked for, told by its UUID.
	Format(ctx context.Context, req mount.FormatRequest) error
}

// Tools finds the host's programs; *hostexec.Host does.
type Tools interface {
	// LookPath returns volume.ErrToolMissing when the host has no such program.
	LookPath(ctx context.Context, name string) (string, error)
}

// requireMkfs asks for the program before anything is made, so that a missing one
// is an answer about this node and not an accident.
func (c *Carver) requireMkfs(ctx context.Context, fsType string) error {
	if fsType == "" {
		return nil
	}
	_, err := c.Tools.LookPath(ctx, "mkfs."+fsType)
	return err
}

// format puts the filesystem on a volume that was never handed out.
//
// The ledger's state Formatting is written only after the device was found blank,
// by this attempt or an earlier one at the same entry. Storage that has content
// without any entry (a lost ledger) can therefore never come to the state in which
// what is on it may be cleared. A finished filesystem with the UUID that only this
// volume's can have is taken as made.
func (c *Carver) format(ctx context.Context, b volume.Backend, e *ledger.Entry) error {
	loc, err := b.Locate(ctx, e.UID, *e.Record)
	if err != nil {
		return fmt.Errorf("format volume %s: %w", e.Name, err)
	}
	err = c.Formatter.Format(ctx, mount.FormatRequest{
		Device: loc.Device, FSType: e.FSType, UUID: e.FSUUID, Options: e.MkfsOptions,
		NeverFormatted: true,
		Begun:          e.State == ledger.Formatting,
		Begin: func(context.Context) error {
			begun := *e
			begun.State = ledger.Formatting
			if err := c.Journal.Put(begun); err != nil {
				return err
			}
			e.State = ledger.Formatting
			return nil
		},
	})
	if err != nil {
		return fmt.Errorf("format volume %s: %w", e.Name, err)
	}
	return nil
}
