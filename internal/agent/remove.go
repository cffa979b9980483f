// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// Remove makes a volume's bytes unreadable, gives its space back and forgets it. It
// returns nil when nothing of the volume is on the node, also when it was so
// before. volume.ErrInUse when somebody holds it: nothing was touched.
func (c *Carver) Remove(ctx context.Context, w Wish) error {
	unlock, err := c.Locks.Lock(ctx, w.Name)
	if err != nil {
		return err
	}
	defer unlock()

	e, known, err := c.recall(w)
	if err != nil {
		return err
	}
	if w.leftOverOf() != nil && w.Recorded == nil && e.State != ledger.Deleting {
		// Nobody was told that it has anything, so nobody can have meant to delete that.
		return c.letGo(ctx, w)
	}
	b, err := c.Backends.ForExisting(w.Mode, w.Pool)
	if err != nil {
		if !known && (errors.Is(err, ErrPoolNotFound) || errors.Is(err, volume.ErrInvalid)) {
			// Neither the ledger nor the status knows of it, and there is no place where it
			// could be.
			return nil
		}
		return err
	}
	if !e.Adopted {
		e.Wipe = w.Wipe
	}
	return c.remove(ctx, b, e, known)
}

// FinishRemoval completes a deletion that had begun, for a volume whose object is
// gone. An entry in any other state is left alone: its data are somebody's until an
// operator says otherwise (I5).
func (c *Carver) FinishRemoval(ctx context.Context, uid string) error {
	return c.withEntry(ctx, uid, func(e ledger.Entry) error {
		switch {
		case e.State != ledger.Deleting:
			return fmt.Errorf("volume %s (%s) has no LocalVolume and is kept", e.Name, e.UID)
		case e.MachineID != c.MachineID:
			return fmt.Errorf("volume %s was recorded on the machine %s: %w", e.Name, e.MachineID, volume.ErrIdentity)
		}
		b, err := c.Backends.ForExisting(e.Mode, e.Pool)
		if err != nil {
			return err
		}
		return c.remove(ctx, b, e, true)
	})
}

// withEntry calls do with the ledger's entry of a volume, under the lock of its name. Where there is
// none, nothing is done.
func (c *Carver) withEntry(ctx context.Context, uid string, do func(ledger.Entry) error) error {
	e, err := c.Journal.Get(uid)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := c.Locks.Lock(ctx, e.Name)
	if err != nil {
		return err
	}
	defer unlock()
	e, err = c.Journal.Get(uid)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return do(e)
}

func (c *Carver) remove(ctx context.Context, b volume.Backend, e ledger.Entry, known bool) error {
	if err := c.proveUnpublished(ctx, b, e); err != nil {
		return fmt.Errorf("delete volume %s: %w", e.Name, err)
	}
	if known {
		e.State = ledger.Deleting
		if err := c.Journal.Put(e); err != nil {
			return err
		}
	}
	if err := c.destroyKeys(ctx, b, &e); err != nil {
		return fmt.Errorf("delete volume %s: %w", e.Name, err)
	}
	err := b.Delete(ctx, e.UID, e.Record, e.Wipe)
	if errors.Is(err, volume.ErrToolMissing) && !known {
		// Neither the ledger nor the status ever knew of it, and what makes such volumes
		// is not even installed.
		err = nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", e.Name, err)
	}
	if err := c.Journal.Remove(e.UID); err != nil {
		return err
	}
	c.Backends.Touch(e.Pool)
	return nil
}

// proveUnpublished returns volume.ErrInUse while a block device is published. Backends
// notice who has a device open; a pod that has it and does not happen to read it right
// now is seen in the mount table alone.
func (c *Carver) proveUnpublished(ctx context.Context, b volume.Backend, e ledger.Entry) error {
	if e.Encryption != nil && e.Record != nil {
		return c.proveClosed(ctx, b, e)
	}
	if e.Access != volume.AccessBlock || e.Record == nil || e.State == ledger.Deleting {
		// A volume whose deletion has begun was proven unpublished then, and is not
		// staged any more.
		return nil
	}
	location, err := b.Locate(ctx, e.UID, *e.Record)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for who has it: %w", err)
	}
	mounts, err := c.Mounts.MountsOf(ctx, location.Device)
	if err != nil {
		return fmt.Errorf("look for who has %s: %w", location.Device, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is published at %s: %w", location.Device, mounts[0], volume.ErrInUse)
	}
	return nil
}
