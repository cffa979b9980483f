// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/capacity"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/volume"
)

// SelectingBackend is a backend whose room depends on the disks that a volume may
// have; *device.Backend is one.
type SelectingBackend interface {
	CapacityOf(ctx context.Context, selectDisk func(volume.Disk) bool) (volume.Capacity, error)
}

// LimitingBackend is a backend that may be able to keep volumes to their sizes;
// *hostpath.Backend is one.
type LimitingBackend interface {
	// Limits returns nil when it can, and why not otherwise.
	Limits(ctx context.Context) error
}

// Room returns what new volumes of a StorageClass may use on this node, from the same
// functions of the backends by which they admit one (I8). capacity.ErrNoPlace when
// none can be made here, also when the class's parameters are not valid: the
// provisioner says why.
func (r *VolumeReconciler) Room(ctx context.Context, parameters map[string]string) (volume.Capacity, error) {
	p, err := provision.ParseParameters(parameters)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
	}
	if !r.Carver.Backends.Synced() {
		return volume.Capacity{}, capacity.ErrNotYet
	}
	if p.Mode == v1alpha1.ModeDevice {
		return r.roomIn(ctx, p, "")
	}
	// The provisioner chooses one of the pools for each volume.
	var all volume.Capacity
	var nowhere []error
	for _, pool := range p.Pools {
		c, err := r.roomIn(ctx, p, pool)
		switch {
		case errors.Is(err, capacity.ErrNoPlace):
			nowhere = append(nowhere, err)
		case err != nil:
			return volume.Capacity{}, err
		}
		all = all.And(c)
	}
	if len(nowhere) == len(p.Pools) {
		return volume.Capacity{}, errors.Join(nowhere...)
	}
	return all, nil
}

// roomIn is what the volumes may use in one pool, or of the node's disks.
func (r *VolumeReconciler) roomIn(ctx context.Context, p provision.Parameters, pool string) (volume.Capacity, error) {
	b, err := r.Carver.Backends.ForNew(volume.Mode(p.Mode), pool)
	if err != nil {
		return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
	}
	if limits, ok := b.(LimitingBackend); p.RequireQuota && ok {
		if err := limits.Limits(ctx); err != nil {
			return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
		}
	}
	encryption := encryptionFormat(p.Encryption)
	if encryption != "" {
		if _, err := r.Carver.Tools.LookPath(ctx, luks.Tool); err != nil {
			return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
		}
	}
	c, err := func() (volume.Capacity, error) {
		selecting, ok := b.(SelectingBackend)
		if !ok || p.DeviceSelector == nil {
			return b.Capacity(ctx)
		}
		selects, err := r.SelectDisk(p.DeviceSelector)
		if err != nil {
			return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
		}
		return selecting.CapacityOf(ctx, selects)
	}()
	if errors.Is(err, volume.ErrPoolUnavailable) {
		return volume.Capacity{}, fmt.Errorf("%w: %w", capacity.ErrNoPlace, err)
	}
	return c.WithEncryption(encryption), err
}
