// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

func (inv *Inventory) work(ctx context.Context) {
	for {
		name, shutdown := inv.queue.Get()
		if shutdown {
			return
		}
		wait, err := inv.reconcile(ctx, name)
		switch {
		case err != nil && ctx.Err() == nil:
			inv.log.Error(err, "cannot bring the BlockDevice up to date; trying again", "blockDevice", name)
			if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
				inv.judged(name) // one object that is refused must not hold up the node
			}
			inv.queue.AddRateLimited(name)
		case wait > 0:
			inv.queue.Forget(name)
			inv.queue.AddAfter(name, wait)
		default:
			inv.queue.Forget(name)
		}
		inv.queue.Done(name)
	}
}

// reconcile judges one disk and writes its object if that says something else. It
// returns when to come back, 0 for not before something happens.
func (inv *Inventory) reconcile(ctx context.Context, name string) (again time.Duration, err error) {
	object, err := inv.current(ctx, name)
	if err != nil {
		return 0, err
	}
	claimed := inv.asRecorded(name, object)
	f, err := inv.gather(ctx, name, claimed)
	if err != nil {
		return 0, err
	}
	if object == nil && len(f.devices) == 0 {
		inv.drop(name)
		inv.judged(name)
		return 0, nil
	}
	if err := inv.addElsewhere(ctx, name, object, f); err != nil {
		return 0, err
	}
	v := judge(f)
	switch {
	case v.needsContent:
		if wait := inv.untilExamination(name, f.devices[0]); wait > 0 {
			return wait, nil
		}
		f.content = inv.examine(ctx, name, f.devices[0], false)
		v = judge(f)
		again = f.content.retry()
	case len(f.devices) == 1:
		f.content = inv.remembered(name, f.devices[0])
	}
	if wait := f.elsewhere.retry(); wait > 0 && (again == 0 || wait < again) {
		again = wait
	}
	desired := inv.desired(name, claimed, f, v)
	if object != nil && same(object, desired) {
		inv.judged(name)
		return again, nil
	}
	if wait := inv.untilWrite(name); wait > 0 {
		return wait, nil
	}
	written, err := inv.publish(ctx, name, object, desired)
	switch {
	case errors.Is(err, volume.ErrBusy), apierrors.IsConflict(err):
		return settle, nil // somebody else was at the object: judge anew
	case err != nil:
		return 0, err
	}
	inv.judged(name)
	if claimed != object {
		inv.log.Info("a disk is claimed again for the volume that has its data on it; its object was older than that",
			"blockDevice", name, "volume", written.Spec.ClaimRef.Name)
		if inv.opts.HolderChanged != nil {
			inv.opts.HolderChanged(*written.Spec.ClaimRef)
		}
	}
	inv.report(object, written)
	inv.reportHealth(object, written)
	return again, nil
}

// judged notes that the object of a disk says what is. Once every disk that there
// was at the start has come so far, the inventory is ready.
func (inv *Inventory) judged(name string) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if inv.unjudged == nil {
		return
	}
	delete(inv.unjudged, name)
	if len(inv.unjudged) == 0 {
		inv.becomeReady()
	}
}

// drop removes the entry of a disk that has neither a device nor an object.
func (inv *Inventory) drop(name string) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if d := inv.disks[name]; d != nil && d.object == nil && d.writing == nil && len(inv.index[name]) == 0 {
		delete(inv.disks, name)
	}
}

// gather puts the facts on one disk together from the mirror.
func (inv *Inventory) gather(ctx context.Context, name string, object *v1alpha1.BlockDevice) (*facts, error) {
	f := &facts{}
	if object != nil {
		f.spec, f.status = object.Spec, object.Status
	}
	inv.mu.Lock()
	f.filters, f.topology = inv.filters, inv.devices
	for _, kernelName := range inv.index[name] {
		d := inv.devices[kernelName]
		f.devices = append(f.devices, d)
		f.identity = inv.identify(d)
	}
	f.wiped = inv.disk(name).wiped
	inv.mu.Unlock()
	inv.addHealth(name, f)
	return f, inv.addUsage(ctx, f)
}

// uses is who uses the devices of a topology.
type uses struct {
	at      time.Time
	version uint64
	filters *Filters
	usage   *block.Usage
	system  map[string]block.SystemUse
}

// addUsage adds who uses the devices, where that matters: a disk that is claimed is
// ours whoever uses it. Disks that are judged in one go share what was read.
func (inv *Inventory) addUsage(ctx context.Context, f *facts) error {
	claimed := f.spec.ClaimRef != nil && f.status.ClaimState != v1alpha1.ClaimStateReleased
	if len(f.devices) != 1 || f.filters == nil || claimed {
		return nil
	}
	inv.mu.Lock()
	known := inv.uses
	if known != nil && (known.filters != f.filters || known.version != inv.version || time.Since(known.at) > settle) {
		known = nil
	}
	version := inv.version
	inv.mu.Unlock()
	if known == nil {
		var err error
		if known, err = inv.readUses(ctx, f.topology, f.filters); err != nil {
			return err
		}
		known.version = version
		inv.mu.Lock()
		inv.uses = known
		inv.mu.Unlock()
	}
	f.usage, f.system = known.usage, known.system
	return nil
}

func (inv *Inventory) readUses(ctx context.Context, topology block.Topology, filters *Filters) (*uses, error) {
	devices := make([]block.Device, 0, len(topology))
	for _, d := range topology {
		devices = append(devices, *d)
	}
	usage, err := inv.sysfs.Usage(ctx, devices)
	if err != nil {
		return nil, err
	}
	return &uses{
		at: time.Now(), filters: filters, usage: usage,
		system: topology.SystemDevices(usage, filters.SystemMountPoints()),
	}, nil
}

// examine returns what is on a disk, from memory if nothing has happened to it
// since it was last read, unless fresh is wanted.
func (inv *Inventory) examine(ctx context.Context, name string, d *block.Device, fresh bool) *examination {
	if !fresh {
		if e := inv.remembered(name, d); e != nil && e.err == nil {
			return e
		}
	}
	of := inv.contentKey(d)
	e := inv.examiner.examine(ctx, d)
	inv.metrics.probes.Inc()
	inv.mu.Lock()
	defer inv.mu.Unlock()
	entry := inv.disk(name)
	entry.content, entry.contentOf, entry.examined = e, of, time.Now()
	return e
}

// untilExamination keeps a disk that changes all the time from being read all the
// time.
func (inv *Inventory) untilExamination(name string, d *block.Device) time.Duration {
	if e := inv.remembered(name, d); e != nil && e.err == nil {
		return 0
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return max(0, writeInterval-time.Since(inv.disk(name).examined))
}

func (inv *Inventory) remembered(name string, d *block.Device) *examination {
	of := inv.contentKey(d)
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if entry := inv.disk(name); entry.content != nil && entry.contentOf == of {
		return entry.content
	}
	return nil
}

func (inv *Inventory) contentKey(d *block.Device) contentKey {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return contentKey{kernelName: d.KernelName, diskSeq: d.DiskSeq, sizeBytes: d.SizeBytes, generation: inv.generation[d.KernelName]}
}

// desired is the object as it should be.
func (inv *Inventory) desired(name string, object *v1alpha1.BlockDevice, f *facts, v verdict) *v1alpha1.BlockDevice {
	desired := newObject(name, inv.opts.NodeName)
	if object != nil {
		desired = object.DeepCopy()
	}
	parent := ""
	if len(f.devices) > 0 && f.devices[0].Parent != "" {
		if disk := f.topology[f.devices[0].Parent]; disk != nil {
			parent = block.Name(inv.opts.NodeName, block.Identify(disk))
		}
	}
	describe(desired, f, v, inv.opts.MachineID, parent)
	if f.status.ClaimState == v1alpha1.ClaimStateReleased && f.cleanedByHand() && v.claimable() {
		unclaim(desired)
	}
	return desired
}

func same(a, b *v1alpha1.BlockDevice) bool {
	return equality.Semantic.DeepEqual(a.Spec, b.Spec) && equality.Semantic.DeepEqual(a.Status, b.Status) &&
		equality.Semantic.DeepEqual(a.Finalizers, b.Finalizers) && equality.Semantic.DeepEqual(a.Labels, b.Labels)
}

// report tells of news that an operator should not have to look for.
func (inv *Inventory) report(old, bd *v1alpha1.BlockDevice) {
	was := ""
	if old != nil {
		if c := condition(&old.Status); c != nil {
			was = c.Reason
		}
	}
	c := condition(&bd.Status)
	if c == nil || c.Reason == was {
		return
	}
	inv.log.Info("disk", "blockDevice", bd.Name, "path", bd.Status.Path, "reason", c.Reason, "message", c.Message)
	switch {
	case c.Reason == v1alpha1.ReasonConflicted, c.Reason == v1alpha1.ReasonWipeFailed, c.Reason == v1alpha1.ReasonUnreadable,
		c.Reason == v1alpha1.ReasonGone && bd.Spec.ClaimRef != nil:
		inv.opts.Recorder.Eventf(bd, nil, corev1.EventTypeWarning, c.Reason, "Discover", "%s", c.Message)
	}
}

// hasUdev tells whether the host runs udev at all.
func (inv *Inventory) hasUdev() bool {
	_, err := os.Stat(inv.sysfs.UdevDirectory())
	return err == nil
}

// udevRuns tells whether somebody answers where udev's daemon does, so that it will come to a
// device with which it has not finished.
func (inv *Inventory) udevRuns() bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(inv.sysfs.UdevDirectory()), "control"))
	return err == nil
}
