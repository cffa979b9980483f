// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// numbersInterval is the least time between two writes of a pool's numbers alone.
	numbersInterval = 10 * time.Second
	// poolRetry is how often a pool that cannot be used, or of which no event tells how
	// full it is, is looked at again.
	poolRetry = time.Minute
)

// publish writes the status if it says something new. Numbers alone are written at
// most every numbersInterval, unless they moved by a twentieth.
func (r *PoolReconciler) publish(ctx context.Context, pool *v1alpha1.Pool, view poolView) (reconcile.Result, error) {
	p := r.live(pool.Spec.PoolSetName)
	base := pool.DeepCopy()
	fillStatus(pool, view)
	words := !apiequality.Semantic.DeepEqual(base.Status, pool.Status)

	if view.capacity != nil {
		rounded := forPeople(*view.capacity)
		view.capacity = &rounded
	}
	if last := p.last.Swap(&view); last != nil && view.hasAnotherSizeThan(last) { // neither is changed from here on
		r.Backends.Touch(pool.Spec.PoolSetName) // nobody else tells that a disk has joined, or left
	}
	result := reconcile.Result{}
	if view.ready != metav1.ConditionTrue || view.thin != nil || view.raid != nil {
		result.RequeueAfter = poolRetry
	}
	if view.again > 0 {
		result.RequeueAfter = min(view.again, poolRetry)
	}
	if view.capacity != nil && (numbersDiffer(&pool.Status, *view.capacity) || retainedDiffers(&pool.Status, view.retained)) {
		wait := time.Until(p.numbersWritten.Add(numbersInterval))
		if words || wait <= 0 || movedMuch(&pool.Status, *view.capacity) {
			fillNumbers(&pool.Status, *view.capacity)
			fillRetained(&pool.Status, view.retained)
		} else if result.RequeueAfter == 0 || wait < result.RequeueAfter {
			result.RequeueAfter = wait
		}
	}
	if apiequality.Semantic.DeepEqual(base.Status, pool.Status) {
		return result, nil
	}
	if err := r.patch(ctx, pool, base, true); err != nil {
		return reconcile.Result{}, err
	}
	p.numbersWritten = time.Now()
	if words {
		r.announcePool(p, base, pool)
		if readiness(base) != readiness(pool) {
			r.Backends.Touch(pool.Spec.PoolSetName) // what is published of its room, and who waits for it
		}
		r.Log.Info("Pool", "pool", pool.Name, "state", pool.Status.State, "reason", view.reason, "message", view.message)
	}
	return result, nil
}

// hasAnotherSizeThan reports whether two looks have found the pool of different sizes.
func (v *poolView) hasAnotherSizeThan(other *poolView) bool {
	return v.capacity != nil && other.capacity != nil && v.capacity.TotalBytes != other.capacity.TotalBytes
}

// readiness is whether volumes can be made in a pool, and why not.
func readiness(pool *v1alpha1.Pool) string {
	c := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady)
	if c == nil {
		return ""
	}
	return string(c.Status) + " " + c.Reason
}

func (r *PoolReconciler) patch(ctx context.Context, pool, base *v1alpha1.Pool, status bool) error {
	before := pool.ResourceVersion
	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	var err error
	if status {
		err = r.Client.Status().Patch(ctx, pool, patch)
	} else {
		err = r.Client.Patch(ctx, pool, patch)
	}
	if err != nil {
		return fmt.Errorf("write Pool %s: %w", pool.Name, err)
	}
	r.written.wrote(pool, before)
	return nil
}

// fillStatus writes all but the numbers.
func fillStatus(pool *v1alpha1.Pool, view poolView) {
	s := &pool.Status
	if view.state != "" {
		s.State = view.state
	} else if s.State == "" {
		s.State = v1alpha1.PoolPending
	}
	if rec := view.record; rec != nil {
		s.Type, s.MachineID = rec.typeName(), rec.MachineID
		s.Path, s.RootID = rec.Path, rec.RootID
		s.VGName, s.VGUUID, s.BlockDevices, s.Adopted = "", "", nil, rec.Adoption != ""
		s.ThinPoolName, s.ThinPoolUUID = "", ""
		if rec.VGUUID != "" && rec.Adoption != adoptionAsked {
			s.VGName, s.VGUUID, s.BlockDevices = rec.VGName, rec.VGUUID, slices.Clone(rec.Disks)
			s.ThinPoolName, s.ThinPoolUUID = rec.ThinPoolName, rec.ThinPoolUUID
		}
	}
	if view.disks > 0 {
		s.DiskCount, s.MissingDiskCount = int32(min(view.disks, 1<<31-1)), int32(min(view.missingDisks, 1<<31-1))
	}
	if view.thin != nil {
		s.Thin = view.thin
	}
	if view.raid != nil {
		s.Raid = view.raid
	}
	if view.quota != "" {
		s.Quota = view.quota
	}
	if view.copies != "" {
		s.Copies = view.copies
	}
	s.Evacuations = view.evacuations
	if view.retained != nil {
		s.TakenBack = view.retained.takenBack
	}
	if view.leftOvers != nil {
		s.LeftOvers, s.LeftOverCount = view.leftOvers.all, view.leftOvers.count
	}
	if view.purges != nil {
		s.Purges = *view.purges
	}
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: v1alpha1.PoolReady, Status: view.ready, Reason: view.reason, Message: forStatus(view.message),
	})
}

// forPeople rounds large numbers down to MiB. The room of a filesystem that others use
// too moves by a few blocks all the time; that is neither worth a write nor readable.
func forPeople(c volume.Capacity) volume.Capacity {
	for _, n := range []*int64{&c.TotalBytes, &c.AllocatedBytes, &c.FreeBytes} {
		if *n >= 1<<30 {
			*n &^= 1<<20 - 1
		}
	}
	return c
}

func fillNumbers(s *v1alpha1.PoolStatus, c volume.Capacity) {
	s.Capacity = resource.NewQuantity(c.TotalBytes, resource.BinarySI)
	s.Allocated = resource.NewQuantity(c.AllocatedBytes, resource.BinarySI)
	s.Free = resource.NewQuantity(c.FreeBytes, resource.BinarySI)
	s.VolumeCount = int32(min(c.Volumes, 1<<31-1))
}

func numbersDiffer(s *v1alpha1.PoolStatus, c volume.Capacity) bool {
	return s.Capacity == nil || s.Allocated == nil || s.Free == nil ||
		s.Capacity.Value() != c.TotalBytes || s.Allocated.Value() != c.AllocatedBytes || s.Free.Value() != c.FreeBytes ||
		int(s.VolumeCount) != c.Volumes
}

// movedMuch reports whether a number moved by a twentieth of the pool.
func movedMuch(s *v1alpha1.PoolStatus, c volume.Capacity) bool {
	if s.Capacity == nil || s.Free == nil || s.Capacity.Value() != c.TotalBytes {
		return true
	}
	delta := s.Free.Value() - c.FreeBytes
	return max(delta, -delta) >= max(c.TotalBytes/20, 1)
}
