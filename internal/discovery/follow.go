// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// udevPatience is how long a new disk waits for udev to finish with it, so that
	// its object is written once, with its links.
	udevPatience = 500 * time.Millisecond
	// weakPatience is the same for a disk that says nothing of itself: its name may
	// depend on what udev finds out.
	weakPatience = 3 * time.Second
	// udevRetry is when a device is looked at again that has waited longer than that, and waits
	// on; udev's record of it is seen before, unless that was missed.
	udevRetry = 10 * time.Second
	// restFactor is how many times longer than the last look the next one waits, and
	// longestRest the most it waits for that: events of volumes that are made and
	// deleted must not have a slow node look at its disks all the time.
	restFactor  = 4
	longestRest = 2 * time.Second
	// tableSettle is how long changes of the mount table are collected: a pod that
	// starts makes a dozen.
	tableSettle = 500 * time.Millisecond
)

// follow takes the hints of the watcher, collects those of one moment, and looks
// again at what they name. tables says that the mounts or the swap areas may be others. again is
// when to come back for devices that udev had not finished with so far, 0 if there are none.
func (inv *Inventory) follow(ctx context.Context, watcher *block.Watcher, tables <-chan struct{}, again time.Duration) error {
	// back is for what waits for udev. It holds nothing else up.
	var timer, back, tableTimer <-chan time.Time
	var rested time.Time
	dirty := map[string]bool{} // kernel name to "content may be new"
	all := false
	told := map[string]bool{}
	comeBack := func(again time.Duration) {
		if again == 0 {
			return
		}
		back = time.After(again)
		for name := range inv.unsettled() {
			dirty[name] = dirty[name] || false
			if again == udevRetry && !told[name] {
				told[name] = true
				inv.log.Info("A disk is not shown before udev has finished with it, which may give it another name", "device", name)
			}
		}
	}
	look := func() {
		timer, back = nil, nil
		began := time.Now()
		var again time.Duration
		var err error
		if all {
			again, err = inv.rescan(ctx)
		} else {
			again, err = inv.refresh(ctx, dirty)
		}
		if err != nil && ctx.Err() == nil {
			inv.log.Error(err, "cannot look at the block devices; trying again")
			all, again = true, time.Second
		} else {
			all = false
			clear(dirty)
			if again == 0 {
				clear(told)
			}
		}
		rested = time.Now().Add(min(restFactor*time.Since(began), longestRest))
		comeBack(again)
	}
	comeBack(again)
	for {
		select {
		case change, open := <-watcher.Changes():
			if !open {
				if ctx.Err() != nil {
					return nil //nolint:nilerr // the end of the context is the normal end
				}
				return fmt.Errorf("watch the block devices: %w", watcher.Err())
			}
			inv.metrics.uevents.Inc()
			if change.Rescan {
				all = true
			} else {
				dirty[change.KernelName] = dirty[change.KernelName] || !change.Udev
			}
			if timer == nil {
				timer = time.After(max(settle, time.Until(rested)))
			}
		case <-tables:
			if tableTimer == nil {
				tableTimer = time.After(max(tableSettle, time.Until(rested)))
			}
		case <-tableTimer:
			tableTimer = nil
			began := time.Now()
			if err := inv.refreshUses(ctx); err != nil && ctx.Err() == nil {
				inv.log.Error(err, "cannot look at who uses the block devices; trying again")
				tableTimer = time.After(longestRest)
			}
			rested = time.Now().Add(min(restFactor*time.Since(began), longestRest))
		case <-timer:
			look()
		case <-back:
			look()
		case <-ctx.Done():
			return nil
		}
	}
}

// rescan reads every device. It returns when to come back for devices that udev has not finished
// with, 0 if there are none.
func (inv *Inventory) rescan(ctx context.Context) (again time.Duration, err error) {
	began := time.Now()
	devices, err := inv.sysfs.Devices(ctx)
	inv.metrics.scanned(time.Since(began), err)
	if err != nil {
		return 0, err
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	came := began
	if len(inv.devices) == 0 {
		// What was there before us has had its time with udev.
		came = began.Add(-weakPatience)
	}
	mirror := block.NewTopology(devices)
	for name := range mirror {
		inv.generation[name]++
	}
	for name := range inv.devices {
		if mirror[name] == nil {
			inv.forget(name)
		}
	}
	for name, d := range mirror {
		if old := inv.devices[name]; old == nil || old.DiskSeq != d.DiskSeq {
			inv.seen[name] = came
		}
	}
	inv.mirror(mirror)
	again = inv.reindex(nil)
	for name := range inv.disks {
		inv.queue.Add(name)
	}
	return again, nil
}

// refresh reads the devices that are named and their parents and parts, and of those
// that they stand on who holds them: nobody tells a disk that it got a holder. It
// returns when to come back for devices that udev has not finished with, 0 if there
// are none.
func (inv *Inventory) refresh(ctx context.Context, dirty map[string]bool) (again time.Duration, err error) {
	read := map[string]*block.Device{}
	around := relatives{family: map[string]bool{}, held: map[string]bool{}}
	inv.mu.Lock()
	known := inv.devices // replaced, never changed
	inv.mu.Unlock()
	for name := range dirty {
		if old := known[name]; old != nil {
			around.add(old)
		}
		if err := inv.readInto(ctx, read, name); err != nil {
			return 0, err
		}
		if d := read[name]; d != nil {
			around.add(d)
		}
	}
	for name := range around.family {
		if _, done := read[name]; done {
			continue
		}
		if err := inv.readInto(ctx, read, name); err != nil {
			return 0, err
		}
	}
	for name := range around.held {
		if _, done := read[name]; done {
			continue
		}
		if known[name] == nil {
			if err := inv.readInto(ctx, read, name); err != nil {
				return 0, err
			}
			continue
		}
		d := *known[name]
		d.Holders, err = inv.sysfs.Holders(ctx, name)
		switch {
		case errors.Is(err, volume.ErrNotFound):
			read[name] = nil
		case err != nil:
			return 0, err
		default:
			read[name] = &d
		}
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	now := time.Now()
	mirror := maps.Clone(inv.devices)
	for name, d := range read {
		if d == nil {
			delete(mirror, name)
			inv.forget(name)
			continue
		}
		old := inv.devices[name]
		if old == nil || old.DiskSeq != d.DiskSeq {
			inv.seen[name] = now
		}
		if dirty[name] || old == nil {
			inv.generation[name]++
		}
		mirror[name] = d
	}
	inv.mirror(mirror)
	return inv.reindex(read), nil
}

// mirror replaces the mirror of sysfs. inv.mu is held.
func (inv *Inventory) mirror(devices block.Topology) {
	inv.devices = devices
	inv.version++
}

func (inv *Inventory) forget(name string) {
	delete(inv.seen, name)
	inv.generation[name]++
}

// readInto reads a device; nil stands for one that the kernel does not show.
func (inv *Inventory) readInto(ctx context.Context, read map[string]*block.Device, name string) error {
	d, err := inv.sysfs.Device(ctx, name)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		read[name] = nil
	case err != nil:
		return err
	default:
		read[name] = &d
	}
	return nil
}

// relatives are the devices that a change of another one may concern.
type relatives struct {
	// family are disks of partitions and partitions of disks.
	family map[string]bool
	// held are those that others stand on.
	held map[string]bool
}

func (r relatives) add(d *block.Device) {
	if d.Parent != "" {
		r.family[d.Parent] = true
	}
	for _, name := range d.Partitions {
		r.family[name] = true
	}
	for _, name := range d.Slaves {
		r.held[name] = true
	}
}

// reindex works out which device belongs to which object, and queues the objects
// of the devices that were read and those whose devices are others now. inv.mu is
// held.
func (inv *Inventory) reindex(read map[string]*block.Device) (again time.Duration) {
	old := inv.index
	inv.index = make(map[string][]string, len(old))
	now := time.Now()
	for kernelName, d := range inv.devices {
		if !inv.published(d) {
			continue
		}
		identity := inv.identify(d)
		if wait := inv.patience(d, identity, now); wait > 0 {
			if again == 0 || wait < again {
				again = wait
			}
			continue
		}
		name := block.Name(inv.opts.NodeName, identity)
		inv.index[name] = append(inv.index[name], kernelName)
	}
	for name, kernelNames := range inv.index {
		slices.Sort(kernelNames)
		inv.disk(name)
		touched := slices.ContainsFunc(kernelNames, func(k string) bool { _, found := read[k]; return found })
		if touched || !slices.Equal(kernelNames, old[name]) {
			inv.queue.Add(name)
		}
	}
	for name := range old {
		if inv.index[name] == nil {
			inv.queue.Add(name)
		}
	}
	return again
}

// patience is how long a device still waits for udev: without end where udev runs and may know
// something that gives the device another identity. Under the one that it has before that, a disk
// that holds data of Berth's would be shown as a new one. A disk that is claimed by that name is
// shown all the same, though not at once.
func (inv *Inventory) patience(d *block.Device, identity block.Identity, now time.Time) time.Duration {
	if d.UdevInitialized || !inv.hasUdev() {
		return 0
	}
	limit := udevPatience
	if identity.Weak {
		limit = weakPatience
	}
	if left := limit - now.Sub(inv.seen[d.KernelName]); left > 0 {
		return left
	}
	if block.MayChange(d, identity) && inv.udevRuns() && !inv.isClaimed(block.Name(inv.opts.NodeName, identity)) {
		return udevRetry
	}
	return 0
}

// isClaimed reports whether somebody holds, or held, the disk of a name. inv.mu is held.
func (inv *Inventory) isClaimed(name string) bool {
	d := inv.disks[name]
	return d != nil && d.object != nil && d.object.Spec.ClaimRef != nil
}

// unsettled are the devices that still wait for udev.
func (inv *Inventory) unsettled() map[string]bool {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	names := map[string]bool{}
	now := time.Now()
	for name, d := range inv.devices {
		if inv.published(d) && inv.patience(d, inv.identify(d), now.Add(-time.Millisecond)) > 0 {
			names[name] = true
		}
	}
	return names
}

// identify finds the identity of a device of the mirror. inv.mu is held.
func (inv *Inventory) identify(d *block.Device) block.Identity {
	if d.Type == block.TypePartition {
		if parent := inv.devices[d.Parent]; parent != nil {
			return block.IdentifyPartition(d, parent)
		}
	}
	return block.Identify(d)
}

// published says which devices have an object: hardware disks and their
// partitions always; what is made by software only if the filters keep it, for
// every logical volume would be one. inv.mu is held.
func (inv *Inventory) published(d *block.Device) bool {
	if d.Hidden || d.SizeBytes == 0 {
		return false
	}
	switch d.Type {
	case block.TypeDisk:
		return true
	case block.TypePartition:
		parent := inv.devices[d.Parent]
		return parent != nil && parent.Type == block.TypeDisk
	case block.TypeLVM, block.TypeVolume:
		return false
	}
	return inv.filters != nil && !volatile.MatchString(d.KernelName) && !inv.filters.Decide(d, nil).Drop
}
