// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// Volumes finds the volumes of this node for the CSI node service. It answers from
// the ledger, so that pods start and stop while the API server is away; an object in
// the informers' cache can only make it refuse more.
type Volumes struct {
	Ledger    *ledger.Ledger
	Backends  *Backends
	MachineID string
	// Cache reads LocalVolumes from the informers' cache, once CacheSynced says that it
	// holds them. Before, a read would wait for the API server.
	Cache       client.Reader
	CacheSynced func() bool
	// Opened finds where an encrypted volume is open; nil where none is encrypted.
	Opened func(ctx context.Context, e ledger.Entry, device string) (volume.Location, error)
	// Quarantined reports whether somebody has asked to purge a volume that has no LocalVolume;
	// nil where nobody can.
	Quarantined func(uid string) bool
}

var _ csi.Volumes = (*Volumes)(nil)

// Locate implements csi.Volumes. It takes no lock: its caller holds the volume's.
func (k *Volumes) Locate(ctx context.Context, name string) (csi.Volume, error) {
	e, err := k.entry(ctx, name)
	if err != nil {
		return csi.Volume{}, err
	}
	b, err := k.Backends.ForExisting(e.Mode, e.Pool)
	if err != nil {
		if errors.Is(err, ErrPoolNotFound) {
			// The volume exists, so its pool did: it is not here now.
			err = fmt.Errorf("%w: %w", err, volume.ErrPoolUnavailable)
		}
		return csi.Volume{}, fmt.Errorf("volume %s: %w", name, err)
	}
	loc, err := b.Locate(ctx, e.UID, *e.Record)
	if err != nil {
		return csi.Volume{}, fmt.Errorf("volume %s: %w", name, err)
	}
	v := csi.Volume{
		Name: e.Name, UID: e.UID, Mode: e.Mode, Access: e.Access, FSType: e.FSType, FSUUID: e.FSUUID, Copied: e.Copied, Location: loc,
	}
	if e.Encryption == nil {
		return v, nil
	}
	v.Encryption = e.Encryption.Format
	if v.Opened, err = k.Opened(ctx, e, loc.Device); err != nil {
		return csi.Volume{}, fmt.Errorf("volume %s: %w", name, err)
	}
	return v, nil
}

// entry returns the ledger's entry of a volume that may be handed out.
func (k *Volumes) entry(ctx context.Context, name string) (ledger.Entry, error) {
	e, err := k.Ledger.ByName(name)
	known := err == nil
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		// Damaged: whether it is this volume's cannot be told.
		return e, fmt.Errorf("volume %s: %w: %w", name, err, volume.ErrIdentity)
	}
	lv := &v1alpha1.LocalVolume{}
	inCache := k.CacheSynced() && k.Cache.Get(ctx, client.ObjectKey{Name: name}, lv) == nil
	switch {
	case !known && inCache:
		return e, fmt.Errorf("volume %s is not ready yet: %w", name, volume.ErrBusy)
	case !known:
		return e, fmt.Errorf("volume %s is not on this node: %w", name, volume.ErrNotFound)
	case e.MachineID != k.MachineID:
		return e, madeElsewhere("volume "+name, e.MachineID, k.MachineID)
	case inCache && string(lv.UID) != e.UID:
		return e, fmt.Errorf("volume %s on this node has the UID %s, its object %s: %w", name, e.UID, lv.UID, volume.ErrIdentity)
	case inCache && lv.Status.MachineID != "" && lv.Status.MachineID != k.MachineID:
		return e, madeElsewhere("volume "+name, lv.Status.MachineID, k.MachineID)
	case inCache && !lv.DeletionTimestamp.IsZero(), e.State == ledger.Deleting:
		return e, fmt.Errorf("volume %s is being deleted: %w", name, volume.ErrBusy)
	case e.State != ledger.Ready:
		return e, fmt.Errorf("volume %s is not ready yet: %w", name, volume.ErrBusy)
	case k.Quarantined != nil && k.Quarantined(e.UID):
		return e, fmt.Errorf("volume %s is in quarantine, because somebody has asked to purge it as a left-over; with a PersistentVolume of its own it is let go within a minute: %w", name, volume.ErrBusy)
	}
	return e, nil
}
