// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// delete removes the snapshot from the disk, and then its finalizer.
func (r *SnapshotReconciler) delete(ctx context.Context, s, base *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(s, v1alpha1.AgentFinalizer) {
		return reconcile.Result{}, nil
	}
	if err := r.remove(ctx, s); err != nil {
		setSnapshotCondition(s, fmt.Errorf("the deletion waits: %w", err))
		return r.conclude(ctx, s, base, err)
	}
	controllerutil.RemoveFinalizer(s, v1alpha1.AgentFinalizer)
	err := r.patch(ctx, s, base, false)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	}
	return reconcile.Result{}, err
}

func (r *SnapshotReconciler) remove(ctx context.Context, s *v1alpha1.LocalSnapshot) error {
	if s.Status.MachineID != "" && s.Status.MachineID != r.MachineID {
		return madeElsewhere("LocalSnapshot "+s.Name, s.Status.MachineID, r.MachineID)
	}
	if err := r.works.end(ctx, string(s.UID)); err != nil {
		return err
	}
	snapshots, err := r.snapshotterOf(s)
	known := s.Status.LVM != nil || s.Status.Hostpath != nil
	if err != nil {
		if !known && (errors.Is(err, ErrPoolNotFound) || errors.Is(err, volume.ErrInvalid)) {
			return nil // there is no place where it could be
		}
		return err
	}
	var rec *volume.Record
	place := ""
	if s.Status.Hostpath != nil {
		place = placeOf(volume.ModeHostpath, s.Spec.Pool)
	}
	if known {
		made := recordOfSnapshot(s)
		rec = &made
	}
	// What a thick one has kept may be wiped for hours: apart from this worker.
	name, uid, group := s.Name, string(s.UID), s.Spec.Group
	_, err = r.works.doIn(ctx, place, uid+"/remove", "wiping", func() { r.queue.add(name) }, func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
		if group != nil {
			// Another one of the group may be taking all of them right now, and would make this
			// one after it was found not to be there.
			unlock, err := r.groups.Lock(ctx, group.Name)
			if err != nil {
				return ledger.Entry{}, err
			}
			defer unlock()
		}
		return ledger.Entry{}, snapshots.DeleteSnapshot(ctx, uid, rec)
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", name, err)
	}
	r.Backends.Touch(s.Spec.Pool)
	return nil
}
