// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// delete gives a pool's disks back when nothing is in it. It is asked for by
// `kubectl delete pool`, never by the PoolSet's deletion.
//
// The root of a hostpath pool is left as it is, and its record too: a PoolSet of the same
// name and path takes it up again.
func (r *PoolReconciler) delete(ctx context.Context, pool *v1alpha1.Pool) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(pool, v1alpha1.AgentFinalizer) {
		return reconcile.Result{}, nil
	}
	name := pool.Spec.PoolSetName
	rec, _, err := r.recall(pool, nil)
	if err != nil {
		return r.publish(ctx, pool, failed(v1alpha1.ReasonPoolError, "the deletion waits: "+err.Error()))
	}
	if rec != nil {
		p := r.live(name)
		if p.backend == nil {
			if p.backend, err = r.backendOf(rec, p); err != nil { //nolint:contextcheck // its background work outlives this look
				return reconcile.Result{}, err
			}
		}
		r.Backends.Set(PoolBackend{Name: name, Mode: modeOf(rec.Kind), Backend: p.backend, Closed: true, Reason: "it is being deleted"})
		err := r.trace(ctx, rec, p)
		if err == nil {
			err = r.empty(ctx, rec, p)
		}
		if err != nil {
			view := failed(v1alpha1.ReasonPoolError, "the deletion waits: "+err.Error())
			view.record = rec
			r.purge(ctx, pool, &view) // what keeps it from being empty
			return r.publish(ctx, pool, view)
		}
		if r.Metadata != nil {
			r.Metadata.Stop(name) // a dump keeps the thin pool from being removed
		}
		err = r.dismantle(ctx, rec)
		if err == nil && r.Metadata != nil {
			err = r.Metadata.Forget(ctx, name, rec.VGUUID)
		}
		if err != nil {
			view := failed(v1alpha1.ReasonPoolError, "the deletion failed and is tried again: "+err.Error())
			view.record = rec
			_, publishErr := r.publish(ctx, pool, view)
			return reconcile.Result{}, errors.Join(err, publishErr)
		}
	}
	r.Backends.Forget(name)
	r.live(name).reset()
	base := pool.DeepCopy()
	controllerutil.RemoveFinalizer(pool, v1alpha1.AgentFinalizer)
	return reconcile.Result{}, client.IgnoreNotFound(r.patch(ctx, pool, base, false))
}

// trace notes where the disks of a pool are that is being deleted: its volumes are there until they
// are deleted, and a disk may come back under another name. Then those that wait for it are told,
// for the pool itself looks as before.
func (r *PoolReconciler) trace(ctx context.Context, rec *poolRecord, p *livePool) error {
	if rec.Kind != v1alpha1.PoolLVM || rec.VGUUID == "" || rec.Removal != "" {
		return nil
	}
	before := p.devices.get()
	if err := r.traceDevices(ctx, rec, p); err != nil {
		return err
	}
	if !slices.Equal(before, p.devices.get()) {
		r.Backends.changed()
	}
	return nil
}

func (r *PoolReconciler) traceDevices(ctx context.Context, rec *poolRecord, p *livePool) error {
	switch {
	case rec.Adoption != "":
		return r.findDevices(ctx, rec, p)
	case !r.Disks.Ready():
		return nil
	}
	claims, err := r.Disks.Claims(ctx)
	if err != nil {
		return fmt.Errorf("list its disks: %w", err)
	}
	p.devices.set(pathsOf(rec, membersOf(rec, claims)))
	return nil
}

// empty returns an error unless nothing is in the pool: no LocalVolume, no entry of
// the ledger, and nothing on the disks.
func (r *PoolReconciler) empty(ctx context.Context, rec *poolRecord, p *livePool) error {
	var volumes v1alpha1.LocalVolumeList
	if err := r.Client.List(ctx, &volumes); err != nil {
		return fmt.Errorf("list LocalVolumes: %w", err)
	}
	for i := range volumes.Items {
		if volumes.Items[i].Spec.Pool == rec.PoolSet {
			return fmt.Errorf("the volume %s is in it", volumes.Items[i].Name)
		}
	}
	if errs := r.Ledger.Damaged(); len(errs) > 0 {
		return errs[0]
	}
	for _, e := range r.Ledger.All() {
		if e.Pool == rec.PoolSet {
			return fmt.Errorf("the volume %s is in it, by the node's ledger", e.Name)
		}
	}
	if p.backend == nil || rec.Kind == v1alpha1.PoolLVM && rec.Removal != "" {
		return nil
	}
	found, err := p.backend.List(ctx)
	if err != nil {
		return fmt.Errorf("list its volumes: %w", err)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d volumes are in it, the first is %s", len(found), found[0].ID)
	}
	if s, ok := p.backend.(volume.Snapshotter); ok {
		found, err := s.ListSnapshots(ctx)
		if err != nil {
			return fmt.Errorf("list its snapshots: %w", err)
		}
		if len(found) > 0 {
			return fmt.Errorf("%d snapshots are in it, the first is %s", len(found), found[0].ID)
		}
	}
	if s, ok := p.backend.(thickSnapshots); ok {
		all, _, err := s.Deleted(ctx)
		if err != nil {
			return fmt.Errorf("look for what was deleted: %w", err)
		}
		if all > 0 {
			return fmt.Errorf("%d volumes that were deleted are being wiped", all)
		}
	}
	return nil
}

// ownPaths are where the claimed disks of a pool are; nil when none is known.
func ownPaths(rec *poolRecord, claims []device.Claimed) (paths []string) {
	for _, c := range claims {
		if c.Owner.UID == rec.PoolUID && c.Path != "" {
			paths = append(paths, c.Path)
		}
	}
	return paths
}

// dismantle removes the volume group, which lvm refuses while anybody's volume is in
// it, and gives its disks back. Each volume was wiped as its class asked, so only the
// disks' heads and tails remain to be cleaned.
func (r *PoolReconciler) dismantle(ctx context.Context, rec *poolRecord) error {
	switch {
	case rec.Kind == v1alpha1.PoolHostpath:
		rec.Removal = removalLeft
		return r.records.save(rec)
	case rec.Removal == removalDone:
		return nil
	}
	if rec.Adoption != "" {
		return r.letGroupGo(rec)
	}
	if !r.Disks.Ready() {
		return errors.New("the node's disks are being looked at")
	}
	if rec.VGUUID == "" {
		g, err := r.LVM.FindGroup(ctx, rec.PoolUID)
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return err
		}
		if g != nil {
			rec.VGUUID = g.UUID
		}
	}
	// From here on the group may be gone, so that its being empty cannot be asked again.
	rec.Removal = removalBegun
	if err := r.records.save(rec); err != nil {
		return err
	}
	claims, err := r.Disks.Claims(ctx)
	if err != nil {
		return fmt.Errorf("list its disks: %w", err)
	}
	if err := r.LVM.RemoveGroup(ctx, rec.VGUUID, rec.PoolUID, ownPaths(rec, claims)); err != nil {
		return err
	}
	for _, c := range claims {
		if c.Owner.UID != rec.PoolUID {
			continue
		}
		if _, err := r.Disks.Release(ctx, c.Name, rec.PoolUID, volume.WipeSignatures); err != nil {
			return fmt.Errorf("release disk %s: %w", c.Name, err)
		}
		r.Log.Info("Released a disk of a deleted pool", "pool", rec.PoolSet, "disk", c.Name)
	}
	rec.Removal = removalDone
	return r.records.save(rec)
}
