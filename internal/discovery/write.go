// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// conflictRetries bounds how often a claim is tried again because an operator
// edited the object at that moment.
const conflictRetries = 5

// current returns the copy of an object, nil if there is none, and reads it anew
// if the last write of it ended in doubt.
func (inv *Inventory) current(ctx context.Context, name string) (*v1alpha1.BlockDevice, error) {
	inv.mu.Lock()
	d := inv.disk(name)
	object, stale := d.object, d.stale
	inv.mu.Unlock()
	if stale {
		return inv.reload(ctx, name)
	}
	return object, nil
}

// reload reads an object past every cache.
func (inv *Inventory) reload(ctx context.Context, name string) (*v1alpha1.BlockDevice, error) {
	live := &v1alpha1.BlockDevice{}
	err := inv.opts.Reader.Get(ctx, key(name), live)
	if apierrors.IsNotFound(err) {
		live, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read BlockDevice %s: %w", name, err)
	}
	if live != nil && live.Spec.NodeName != inv.opts.NodeName {
		return nil, fmt.Errorf("BlockDevice %s belongs to node %s: %w", name, live.Spec.NodeName, volume.ErrIdentity)
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	d := inv.disk(name)
	d.object, d.stale = live, false
	return live, nil
}

// begin makes the caller the one writer of an object in this process. It returns
// volume.ErrBusy if another is at it and the caller does not want to wait for it.
// No mutex is held meanwhile, and correctness does not rest on it: the API server
// refuses a write that was made from an old copy.
func (inv *Inventory) begin(ctx context.Context, name string, wait bool) (end func(), err error) {
	for {
		inv.mu.Lock()
		d := inv.disk(name)
		writing := d.writing
		if writing == nil {
			d.writing = make(chan struct{})
			inv.mu.Unlock()
			return func() {
				inv.mu.Lock()
				defer inv.mu.Unlock()
				close(d.writing)
				d.writing = nil
			}, nil
		}
		inv.mu.Unlock()
		if !wait {
			return nil, fmt.Errorf("BlockDevice %s is being written: %w", name, volume.ErrBusy)
		}
		select {
		case <-writing:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for BlockDevice %s: %w: %w", name, volume.ErrBusy, ctx.Err())
		}
	}
}

// publish stores what discovery has found out, unless the object is another one by
// now than the copy it was made from.
func (inv *Inventory) publish(ctx context.Context, name string, old, desired *v1alpha1.BlockDevice) (*v1alpha1.BlockDevice, error) {
	end, err := inv.begin(ctx, name, false)
	if err != nil {
		return nil, err
	}
	defer end()
	inv.mu.Lock()
	changed := inv.disk(name).object != old
	inv.mu.Unlock()
	if changed {
		return nil, fmt.Errorf("BlockDevice %s has changed: %w", name, volume.ErrBusy)
	}
	return inv.store(ctx, name, old, desired)
}

// change applies an edit to an object and stores it, again if somebody else was
// quicker. edit gets a copy it may change, and reports whether it did.
func (inv *Inventory) change(ctx context.Context, name string, edit func(*v1alpha1.BlockDevice) (bool, error)) (*v1alpha1.BlockDevice, error) {
	if err := inv.waitReady(ctx); err != nil {
		return nil, err
	}
	end, err := inv.begin(ctx, name, true)
	if err != nil {
		return nil, err
	}
	defer end()
	defer inv.queue.Add(name)
	object, err := inv.current(ctx, name)
	for range conflictRetries {
		if err != nil {
			return nil, err
		}
		if object == nil {
			inv.mu.Lock()
			delete(inv.disks, name) // an unknown name leaves no entry behind
			inv.mu.Unlock()
			return nil, fmt.Errorf("BlockDevice %s: %w", name, volume.ErrNotFound)
		}
		desired := object.DeepCopy()
		changed, editErr := edit(desired)
		if editErr != nil || !changed {
			return object, editErr
		}
		written, writeErr := inv.store(ctx, name, object, desired)
		if writeErr == nil {
			inv.report(object, written)
			return written, nil
		}
		if !apierrors.IsConflict(writeErr) {
			return nil, writeErr
		}
		object, err = inv.reload(ctx, name)
	}
	return nil, fmt.Errorf("BlockDevice %s is edited all the time: %w", name, volume.ErrBusy)
}

// store writes an object. old is the copy it was made from, nil to create it. A
// write that fails leaves the copy marked stale: what stands there now is unknown.
//
// Only what differs is written, still as one write under the resourceVersion of the copy:
// a field that this version does not know stays as a newer one, or an operator who has its
// definitions, has set it.
func (inv *Inventory) store(ctx context.Context, name string, old, desired *v1alpha1.BlockDevice) (*v1alpha1.BlockDevice, error) {
	desired = desired.DeepCopy()
	var err error
	if old == nil {
		err = inv.opts.Client.Create(ctx, desired)
	} else {
		err = inv.opts.Client.Patch(ctx, desired, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{}))
	}
	if err := inv.stored(name, desired, err); err != nil {
		return nil, err
	}
	if inv.opts.HolderChanged != nil && desired.Spec.ClaimRef != nil && (old == nil || old.Status.State != desired.Status.State) {
		inv.opts.HolderChanged(*desired.Spec.ClaimRef)
	}
	if inv.opts.WipeDue != nil && wipeDue(desired) && (old == nil || !wipeDue(old)) {
		inv.opts.WipeDue()
	}
	if inv.opts.DiskChanged != nil && stateOf(desired) != device.StateClaimed {
		inv.opts.DiskChanged(desired.Name)
	}
	return desired, nil
}

// wipeDue reports whether a disk is there and may be wiped.
func wipeDue(bd *v1alpha1.BlockDevice) bool {
	s := &bd.Status
	return s.ClaimState == v1alpha1.ClaimStateReleased && s.State == v1alpha1.DeviceActive && s.Wipe != nil && s.Wipe.Token != ""
}

// stored takes in how a write has ended.
func (inv *Inventory) stored(name string, written *v1alpha1.BlockDevice, err error) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	d := inv.disk(name)
	d.lastWrite = time.Now()
	if err != nil {
		d.stale = true
		return fmt.Errorf("write BlockDevice %s: %w", name, err)
	}
	d.object, d.stale = written, false
	inv.notify()
	return nil
}

func (inv *Inventory) untilWrite(name string) time.Duration {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return max(0, writeInterval-time.Since(inv.disk(name).lastWrite))
}
