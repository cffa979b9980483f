// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// poolView is how a pool looks after a look at it.
type poolView struct {
	state   v1alpha1.PoolState
	ready   metav1.ConditionStatus
	reason  string
	message string
	// record of the pool; nil when there is none or it cannot be read.
	record *poolRecord
	// capacity is nil when it is not known.
	capacity *volume.Capacity
	// disks of the volume group, and how many of them are missing; 0 of both when that is
	// not known.
	disks, missingDisks int
	// thin is nil for pools that are not, and when it is not known.
	thin *v1alpha1.ThinPoolStatus
	// raid is nil for pools that are not redundant, and when it is not known.
	raid *v1alpha1.RaidStatus
	// quota is empty for pools that are no directories, and when it is not known.
	quota v1alpha1.PoolQuota
	// copies is empty likewise.
	copies v1alpha1.PoolCopies
	// evacuations of disks that are still part of the pool.
	evacuations []v1alpha1.DiskEvacuation
	// retained is what is kept of deleted volumes; nil for pools that are no directories, and
	// when it is not known.
	retained *retainedView
	// leftOvers is nil when the pool was not looked through this time.
	leftOvers *leftOverView
	// purges are what has come of spec.purge; nil when that is not known.
	purges *[]v1alpha1.PurgeStatus
	// again is when to look again at the latest; 0 leaves it to what happens.
	again time.Duration
}

func healthy() poolView {
	return poolView{state: v1alpha1.PoolHealthy, ready: metav1.ConditionTrue, reason: v1alpha1.ReasonPoolReady, message: "volumes can be made"}
}

func pending(reason, message string) poolView {
	return poolView{state: v1alpha1.PoolPending, ready: metav1.ConditionFalse, reason: reason, message: message}
}

func failed(reason, message string) poolView {
	return poolView{state: v1alpha1.PoolFailed, ready: metav1.ConditionFalse, reason: reason, message: message}
}

// bringUp makes the pool, or finds it, registers its backend and says how it looks.
// set is nil when no PoolSet wants the pool any more: then it is kept as it is. An
// error is one to try again soon; the view says it too.
func (r *PoolReconciler) bringUp(ctx context.Context, pool *v1alpha1.Pool, set *v1alpha1.PoolSet) (poolView, error) {
	name := pool.Spec.PoolSetName
	p := r.live(name)
	rec, fresh, err := r.recall(pool, set)
	if err != nil {
		r.Backends.Set(PoolBackend{Name: name, Reason: err.Error()})
		return failed(v1alpha1.ReasonPoolError, err.Error()), nil
	}
	if rec == nil {
		r.Backends.Forget(name)
		return failed(v1alpha1.ReasonNoPoolSet, noPoolSet(name)+"; it was never made: delete it"), nil
	}
	var reserveErr error
	if set != nil {
		reserveErr = errors.Join(p.reserve.set(set.Spec.Reserve), p.thin.set(set.Spec.Thin), p.snapshots.set(set.Spec.Snapshots))
	}
	var view poolView
	switch {
	case reserveErr != nil:
		view = failed(v1alpha1.ReasonPoolError, reserveErr.Error())
	case rec.Adoption != "":
		view, err = r.bringUpAdopted(ctx, pool, rec, p)
	case rec.Kind == v1alpha1.PoolLVM:
		view, err = r.bringUpGroup(ctx, pool, set, rec, fresh, p)
	default:
		view, err = r.bringUpRoot(ctx, pool, rec, p)
	}
	view.record = rec

	b := PoolBackend{Name: name, Mode: modeOf(rec.Kind), Backend: p.backend, Reason: view.message}
	if set == nil {
		b.Closed, b.Reason = true, noPoolSet(name)
		if view.ready == metav1.ConditionTrue {
			view.ready, view.reason, view.message = metav1.ConditionFalse, v1alpha1.ReasonNoPoolSet,
				noPoolSet(name)+"; delete the Pool when it is empty to give its disks back"
		}
	} else if p.backend != nil {
		b.Reason = ""
	}
	r.Backends.Set(b)
	return view, err
}

// takeUp decides about the record of a pool of kind hostpath whose Pool was deleted while nothing
// was in it: it goes on where the new one is of the same root, and is forgotten, with the root as
// it is, where it is not.
func (r *PoolReconciler) takeUp(rec *poolRecord, pool *v1alpha1.Pool, set *v1alpha1.PoolSet) (*poolRecord, error) {
	if pool.Spec.Kind != rec.Kind || set != nil && set.Spec.Hostpath != nil && set.Spec.Hostpath.Path != rec.Path {
		r.live(rec.PoolSet).reset()
		return nil, r.records.remove(rec.PoolSet)
	}
	rec.Removal = ""
	return rec, r.records.save(rec)
}

// recall finds what is known of a pool: by the node's record, else by the status (the
// state directory was lost), else it begins. The record is durable when it returns.
func (r *PoolReconciler) recall(pool *v1alpha1.Pool, set *v1alpha1.PoolSet) (rec *poolRecord, fresh bool, err error) {
	name := pool.Spec.PoolSetName
	rec, err = r.records.load(name)
	if err != nil {
		return nil, false, err
	}
	if rec != nil && rec.Removal == removalDone && pool.DeletionTimestamp.IsZero() {
		// The object of the removed pool is gone; this one begins anew.
		if err := r.records.remove(name); err != nil {
			return nil, false, err
		}
		r.live(name).reset()
		rec = nil
	}
	if rec != nil && rec.Removal == removalLeft && pool.DeletionTimestamp.IsZero() {
		if rec, err = r.takeUp(rec, pool, set); err != nil {
			return nil, false, err
		}
	}
	if rec == nil {
		if set == nil && pool.Status.VGUUID == "" && pool.Status.RootID == "" {
			return nil, false, nil
		}
		if m := pool.Status.MachineID; m != "" && m != r.MachineID {
			return nil, false, madeElsewhere("pool "+name, m, r.MachineID)
		}
		rec = &poolRecord{PoolSet: name, Kind: pool.Spec.Kind, MachineID: r.MachineID, PoolUID: string(pool.UID)}
		switch {
		case pool.Spec.Kind == v1alpha1.PoolLVM:
			rec.VGName, rec.VGUUID, rec.Disks = groupName(name), pool.Status.VGUUID, pool.Status.BlockDevices
			rec.Layout, rec.Thin = layoutOf(pool, set)
			rec.adopts(pool, set)
			if pool.Status.VGName != "" {
				rec.VGName = pool.Status.VGName
			}
		case pool.Status.RootID != "":
			rec.Path, rec.RootID = pool.Status.Path, pool.Status.RootID
		case set != nil && set.Spec.Hostpath != nil:
			rec.Path = set.Spec.Hostpath.Path
		}
		fresh = rec.VGUUID == "" && rec.RootID == ""
		if err := r.records.save(rec); err != nil {
			return nil, false, err
		}
	}
	switch {
	case rec.MachineID != r.MachineID:
		return nil, false, madeElsewhere("pool "+rec.PoolSet, rec.MachineID, r.MachineID)
	case rec.Removal == removalBegun && pool.DeletionTimestamp.IsZero():
		return nil, false, errors.New("the removal of the node's pool of this name was cut short when its object was taken away by force; delete this Pool to finish it")
	case rec.Kind != pool.Spec.Kind, set != nil && set.Spec.Kind != rec.Kind:
		return nil, false, fmt.Errorf("the node has a pool %s of kind %s: give the new PoolSet another name, or delete the Pool when nothing is in it", name, rec.Kind)
	case rec.Kind == v1alpha1.PoolLVM && set != nil && set.Spec.Layout != "" && lvm.Layout(set.Spec.Layout) != rec.layout():
		return nil, false, fmt.Errorf("the node has the pool %s with layout %s: give the new PoolSet another name, or delete the Pool when nothing is in it", name, rec.layout())
	case rec.Kind == v1alpha1.PoolLVM && set != nil && (set.Spec.Thin != nil) != rec.Thin:
		return nil, false, fmt.Errorf("the node has the pool %s, which is of type %s: give the new PoolSet another name, or delete the Pool when nothing is in it", name, rec.typeName())
	case rec.Kind == v1alpha1.PoolLVM && set != nil && !rec.follows(set.Spec.Adopt):
		return nil, false, fmt.Errorf("the node has the pool %s in volume group %s (%s), and spec.adopt says otherwise: give the new PoolSet another name, or delete the Pool when nothing is in it", name, rec.where(), rec.VGUUID)
	case set != nil && set.Spec.Hostpath != nil && set.Spec.Hostpath.Path != rec.Path:
		return nil, false, fmt.Errorf("the node has the pool %s at %s: give the new PoolSet another name, or delete the Pool when nothing is in it", name, rec.Path)
	case rec.VGUUID != "" && pool.Status.VGUUID != "" && rec.VGUUID != pool.Status.VGUUID,
		rec.RootID != "" && pool.Status.RootID != "" && rec.RootID != pool.Status.RootID:
		return nil, false, fmt.Errorf("the node's record and the status name different storage (%s%s and %s%s): %w",
			rec.VGUUID, rec.RootID, pool.Status.VGUUID, pool.Status.RootID, volume.ErrIdentity)
	}
	return rec, fresh, nil
}

// layoutOf is that of the volumes that are there, or that the PoolSet wants.
func layoutOf(pool *v1alpha1.Pool, set *v1alpha1.PoolSet) (of v1alpha1.PoolLayout, isThin bool) {
	known := pool.Status.Type
	layout, thin := strings.CutPrefix(known, typeThin+"-")
	switch {
	case known == typeThin:
		return v1alpha1.LayoutLinear, true
	case thin:
		return v1alpha1.PoolLayout(layout), true
	case known != "":
		return v1alpha1.PoolLayout(known), false
	case set != nil:
		return set.Spec.Layout, set.Spec.Thin != nil
	}
	return "", false
}

// backendOf makes the backend of a pool that stands; nil while there is nothing yet.
func (r *PoolReconciler) backendOf(rec *poolRecord, p *livePool) (volume.Backend, error) {
	switch {
	case rec.Kind == v1alpha1.PoolLVM && rec.stands():
		return r.groupBackend(rec, p)
	case rec.Kind == v1alpha1.PoolHostpath && rec.RootID != "":
		return r.rootBackend(rec, p)
	}
	return nil, nil
}

// measure adds the room to a view.
func measure(ctx context.Context, b volume.Backend, view poolView, unavailable string) (poolView, error) {
	c, err := b.Capacity(ctx)
	switch {
	case err == nil:
		view.capacity = &c
		return view, nil
	case errors.Is(err, volume.ErrPoolUnavailable), errors.Is(err, volume.ErrIdentity), errors.Is(err, volume.ErrNotFound):
		return failed(unavailable, err.Error()), nil
	}
	return poolView{ready: metav1.ConditionUnknown, reason: v1alpha1.ReasonPoolError, message: err.Error()}, err
}

// devicePaths are where the disks of a volume group are right now. The backend asks
// for them in the middle of its work, so they are kept ready.
type devicePaths struct {
	mu    sync.Mutex
	paths []string
}

func (d *devicePaths) set(paths []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paths = paths
}

func (d *devicePaths) get() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.paths
}
