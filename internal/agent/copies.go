// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// CopyOf names what a volume begins as a copy of.
type CopyOf struct {
	// Snapshot is true for a LocalSnapshot, false for a LocalVolume.
	Snapshot  bool
	Name, UID string
}

// Copies finds what volumes are to begin as copies of.
type Copies struct {
	// Cache reads LocalSnapshots from the informers' cache.
	Cache     client.Reader
	Ledger    *ledger.Ledger
	Locks     *Locks
	MachineID string
	// Quarantined reports whether what has a UID is not handed out because somebody has asked to
	// purge it; nil where nobody can.
	Quarantined func(uid string) bool
}

// copySource is what was found, with what is in it.
type copySource struct {
	volume.Source

	Pool           string
	Access         volume.Access
	FSType, FSUUID string
	// Encryption is nil for what is not encrypted.
	Encryption *ledger.Encryption
}

// open finds the source of a volume and keeps it from being deleted until release is
// called. volume.ErrInvalid: it is gone, or the volume cannot be a copy of it.
func (c *Copies) open(ctx context.Context, w Wish) (source copySource, release func(), err error) {
	of := *w.CopyOf
	if c.Quarantined != nil && c.Quarantined(of.UID) {
		return copySource{}, nil, fmt.Errorf("somebody has asked to purge %s, which the volume is to be a copy of: %w", of.Name, volume.ErrBusy)
	}
	if of.Snapshot {
		// A snapshot is deleted in one step, by its UUID or by a rename, which whoever copies it
		// notices: it is whole or it is gone.
		release = func() {}
		source, err = c.snapshot(ctx, of)
	} else {
		// Its deletion begins with wiping, under the same lock.
		if release, err = c.Locks.Lock(ctx, of.Name); err != nil {
			return copySource{}, nil, err
		}
		source, err = c.volume(of)
	}
	if err == nil {
		err = source.fits(w)
	}
	if err != nil {
		release()
		return copySource{}, nil, err
	}
	return source, release, nil
}

func (c *Copies) snapshot(ctx context.Context, of CopyOf) (copySource, error) {
	s := &v1alpha1.LocalSnapshot{}
	err := c.Cache.Get(ctx, client.ObjectKey{Name: of.Name}, s)
	switch {
	case apierrors.IsNotFound(err), err == nil && string(s.UID) != of.UID:
		return copySource{}, fmt.Errorf("LocalSnapshot %s (%s) is gone from this node: %w", of.Name, of.UID, volume.ErrInvalid)
	case err != nil:
		return copySource{}, fmt.Errorf("read LocalSnapshot %s: %w", of.Name, err)
	case !s.DeletionTimestamp.IsZero():
		return copySource{}, fmt.Errorf("LocalSnapshot %s is being deleted: %w", of.Name, volume.ErrInvalid)
	case !meta.IsStatusConditionTrue(s.Status.Conditions, v1alpha1.LocalSnapshotReady) || s.Status.LVM == nil && s.Status.Hostpath == nil || s.Status.RestoreSize == nil:
		return copySource{}, fmt.Errorf("LocalSnapshot %s is not ready yet: %w", of.Name, volume.ErrBusy)
	case isMissing(s):
		return copySource{}, fmt.Errorf("LocalSnapshot %s is gone from its pool: %w", of.Name, volume.ErrInvalid)
	case meta.IsStatusConditionFalse(s.Status.Conditions, v1alpha1.LocalSnapshotValid):
		return copySource{}, fmt.Errorf("LocalSnapshot %s has overflowed and holds nothing any more; delete it: %w", of.Name, volume.ErrInvalid)
	case s.Status.MachineID != c.MachineID:
		return copySource{}, madeElsewhere("LocalSnapshot "+of.Name, s.Status.MachineID, c.MachineID)
	}
	return copySource{
		Source: volume.Source{ID: of.UID, Record: recordOfSnapshot(s), Snapshot: true},
		Pool:   s.Spec.Pool, Access: volume.Access(s.Status.VolumeMode), FSType: s.Status.FSType, FSUUID: s.Status.FilesystemUUID,
		Encryption: encryptionOf(s.Status.Encryption),
	}, nil
}

func (c *Copies) volume(of CopyOf) (copySource, error) {
	e, err := c.Ledger.ByName(of.Name)
	switch {
	case errors.Is(err, ledger.ErrNotFound), err == nil && e.UID != of.UID:
		return copySource{}, fmt.Errorf("LocalVolume %s (%s) is gone from this node: %w", of.Name, of.UID, volume.ErrInvalid)
	case err != nil:
		return copySource{}, err
	}
	return sourceOf(e, c.MachineID)
}

// sourceOf is a volume as something to copy.
func sourceOf(e ledger.Entry, machineID string) (copySource, error) {
	switch {
	case e.MachineID != machineID:
		return copySource{}, madeElsewhere("volume "+e.Name, e.MachineID, machineID)
	case e.State == ledger.Deleting:
		return copySource{}, fmt.Errorf("volume %s is being deleted: %w", e.Name, volume.ErrInvalid)
	case e.State != ledger.Ready:
		return copySource{}, fmt.Errorf("volume %s is not ready yet: %w", e.Name, volume.ErrBusy)
	case e.Encryption != nil && e.Encryption.Seal != ledger.Sealed:
		return copySource{}, fmt.Errorf("volume %s is encrypted when a pod uses it first, and holds nothing yet: %w", e.Name, volume.ErrBusy)
	}
	return copySource{
		Source: volume.Source{ID: e.UID, Record: *e.Record, Wipe: e.Wipe}, Pool: e.Pool, Access: e.Access, FSType: e.FSType, FSUUID: e.FSUUID,
		Encryption: e.Encryption,
	}, nil
}

// inTurn copies something that may have to wait for others, and begins anew after it has: what
// copies locks its source itself, which pods want meanwhile.
func inTurn[T any](ctx context.Context, copies func() (T, error)) (T, error) {
	for {
		made, err := copies()
		waits, ok := errors.AsType[*volume.NoTurn](err)
		if !ok {
			return made, err
		}
		if err := waits.Await(ctx); err != nil {
			return made, err
		}
	}
}

// fits returns volume.ErrInvalid for a volume that cannot be a copy of the source.
func (s copySource) fits(w Wish) error {
	switch {
	case s.Record.Mode != w.Mode || s.Pool != w.Pool:
		return fmt.Errorf("the volume is asked for in pool %s, and what it is to be a copy of is in pool %s: %w", w.Pool, s.Pool, volume.ErrInvalid)
	case s.Access != w.Access || s.FSType != w.FSType:
		return fmt.Errorf("the volume is asked for as %s %s, and what it is to be a copy of is %s %s: %w", w.Access, w.FSType, s.Access, s.FSType, volume.ErrInvalid)
	case s.encryption() != w.Encryption:
		return fmt.Errorf("the volume is asked for with encryption %q, and what it is to be a copy of has %q: %w", w.Encryption, s.encryption(), volume.ErrInvalid)
	case s.FSType == mount.Btrfs:
		// The kernel takes two devices with one filesystem UUID for one filesystem.
		return fmt.Errorf("a btrfs cannot stand beside its copy on one node: %w", volume.ErrInvalid)
	case s.Record.SizeBytes > w.SizeBytes:
		return fmt.Errorf("the volume is asked for with %d bytes, and what it is to be a copy of has %d: %w", w.SizeBytes, s.Record.SizeBytes, volume.ErrInvalid)
	}
	return nil
}
