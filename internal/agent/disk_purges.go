// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// mostDiskPurges is how many a BlockDevice can show: the one that is asked for, and what goes on
// without its request.
const mostDiskPurges = 4

// DiskPurgesOptions of DiskPurges.
type DiskPurgesOptions struct {
	Purger *Purger
	// Disks are the node's, and who alone writes their BlockDevices.
	Disks PurgedDisks
	// Changed gets a value when a BlockDevice has changed.
	Changed <-chan struct{}
	// Backend of the volumes that are whole disks.
	Backend volume.Backend
	// PoolOf returns the pool that a disk is part of by the node's records; empty for none.
	PoolOf   func(diskName string) (string, error)
	Recorder Announcer
	Log      *slog.Logger
}

// PurgedDisks are the BlockDevices of this node.
type PurgedDisks interface {
	// Purges are those that ask for one or say what has come of it, and those of these names that there
	// are: complete, or there is an error.
	Purges(ctx context.Context, names ...string) ([]*v1alpha1.BlockDevice, error)
	// TellPurges writes status.purges.
	TellPurges(ctx context.Context, name string, purges []v1alpha1.PurgeStatus) (*v1alpha1.BlockDevice, error)
}

// DiskPurges does what spec.purge of BlockDevices asks for, by the Purger that does so for Pools. It
// costs nothing as long as nobody asks.
type DiskPurges struct {
	DiskPurgesOptions

	again chan struct{}
}

// NewDiskPurges does nothing before Start.
func NewDiskPurges(o DiskPurgesOptions) *DiskPurges {
	d := &DiskPurges{DiskPurgesOptions: o, again: make(chan struct{}, 1)}
	o.Purger.DiskTouched, o.Purger.PlaceOfDisk = func(string) { d.lookAgain() }, d.place
	return d
}

// NeedLeaderElection is false: every node has its own disks.
func (d *DiskPurges) NeedLeaderElection() bool { return false }

func (d *DiskPurges) lookAgain() {
	select {
	case d.again <- struct{}{}:
	default:
	}
}

// Start runs until the context ends.
func (d *DiskPurges) Start(ctx context.Context) error {
	for {
		var later <-chan time.Time
		wait, err := d.tend(ctx)
		if err != nil && ctx.Err() == nil {
			d.Log.Error("Cannot say what has come of the purge of a disk; trying again", "error", err)
			wait = purgeInterval
		}
		if wait > 0 {
			later = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.Changed:
		case <-d.again:
		case <-later:
		}
	}
}

// tend brings every request one step further, and returns when to look again; 0 for not before
// something happens.
func (d *DiskPurges) tend(ctx context.Context) (wait time.Duration, err error) {
	// Of a disk whose request is not known a quarantine would be ended, so that all are read first.
	// Those that do not ask any more say still why a disk is to be kept.
	disks, err := d.Disks.Purges(ctx, d.Purger.records.disks()...)
	if err != nil {
		return 0, fmt.Errorf("look which disks are to be purged: %w", err)
	}
	asked := map[string]bool{}
	var errs []error
	for _, bd := range disks {
		asked[bd.Name] = true
		all, next := d.Purger.Tend(ctx, d.place(bd), bd.Spec.Purge)
		wait, all = max(wait, next), all[:min(len(all), mostDiskPurges)]
		now, err := d.Disks.TellPurges(ctx, bd.Name, all)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		announcePurges(d.Recorder, now, bd.Status.Purges, all)
	}
	// Those whose BlockDevice is gone.
	for _, name := range d.Purger.records.disks() {
		if asked[name] {
			continue
		}
		bd := &v1alpha1.BlockDevice{}
		bd.Name = name
		_, next := d.Purger.Tend(ctx, d.place(bd), nil)
		wait = max(wait, next)
	}
	return wait, errors.Join(errs...)
}

func (d *DiskPurges) place(bd *v1alpha1.BlockDevice) PurgePlace {
	place := PurgePlace{PoolSet: placeOfDisk(bd.Name), Mode: volume.ModeDevice, Backend: d.Backend, Again: d.lookAgain}
	for _, link := range bd.Status.DevLinks {
		// Of the other links each node has the same ones.
		if strings.HasPrefix(link, "/dev/disk/by-id/") {
			place.Links = append(place.Links, link)
		}
	}
	switch pool, err := d.PoolOf(bd.Name); {
	case err != nil:
		place.Kept = fmt.Sprintf("the disk may be part of a pool: %v", err)
	case pool != "":
		place.Kept = fmt.Sprintf("the disk is part of pool %s, by the records of the node", pool)
	case bd.Spec.Reserved != "":
		place.Kept = fmt.Sprintf("the disk is reserved: %s", bd.Spec.Reserved)
	}
	return place
}
