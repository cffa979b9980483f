// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/quietqueue"
)

const (
	// volumeWorkers is how many volumes are made at once, and how many deleted, before the
	// workers go on with others. More than one pool's, which may hang.
	volumeWorkers = 2 * laneWidth

	firstRetry = 500 * time.Millisecond
	lastRetry  = 2 * time.Minute
)

// SetupWithManager adds the two controllers of LocalVolumes. Deletions have workers
// of their own: a wipe takes minutes, and must not hold up a pod that waits for its
// volume.
func (r *VolumeReconciler) SetupWithManager(mgr manager.Manager) error {
	r.Carver.Backends.OnChange(r.PoolsChanged)
	r.Carver.Backends.OnTouch(r.roomChanged)
	r.Carver.Backends.OnJudge(r.poolJudged)
	for _, e := range r.Ledger.All() {
		// Also those whose object is gone, of which the informer does not tell.
		r.live.add(e.Name)
	}
	for _, c := range []struct {
		name      string
		reconcile reconcile.Func
		queue     *queueHandle
		deleted   bool
	}{
		{"volume", r.ReconcileLive, &r.live, false},
		{"volume-deletion", r.ReconcileDeleted, &r.deleted, true},
	} {
		byPool := &lanes{}
		if err := mgr.Add(byPool); err != nil {
			return fmt.Errorf("add the lanes of controller %s: %w", c.name, err)
		}
		ctrl, err := controller.New(c.name, mgr, controller.Options{
			Reconciler:              byPool.through(c.reconcile, r.poolOf, c.queue),
			MaxConcurrentReconciles: volumeWorkers,
			NeedLeaderElection:      new(false),
			NewQueue:                quietqueue.New,
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](
				firstRetry, lastRetry),
		})
		if err != nil {
			return fmt.Errorf("add controller %s: %w", c.name, err)
		}
		events := source.Kind(mgr.GetCache(), &v1alpha1.LocalVolume{},
			&handler.TypedEnqueueRequestForObject[*v1alpha1.LocalVolume]{},
			predicate.NewTypedPredicateFuncs(func(lv *v1alpha1.LocalVolume) bool {
				return lv.DeletionTimestamp.IsZero() != c.deleted
			}))
		if err := ctrl.Watch(events); err != nil {
			return fmt.Errorf("watch LocalVolumes: %w", err)
		}
		if err := ctrl.Watch(c.queue); err != nil {
			return fmt.Errorf("watch the agent's own events: %w", err)
		}
	}
	return nil
}

// poolOf returns the pool of a volume that has an object or an entry in the ledger, "" for none:
// whole disks are none of a pool.
func (r *VolumeReconciler) poolOf(ctx context.Context, name string) string {
	lv := &v1alpha1.LocalVolume{}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, lv); err == nil {
		return lv.Spec.Pool
	}
	e, _ := r.Ledger.ByName(name)
	return e.Pool
}
