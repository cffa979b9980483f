// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/quietqueue"
)

const (
	// poolWorkers is how many pools are looked at together, before the workers go on with others:
	// a volume group on a dying disk holds up no other pool.
	poolWorkers = 4
	// eventDelay is how long a thin pool waits for more events before it is looked at.
	eventDelay = 100 * time.Millisecond
)

// SetupWithManager adds the controller of the pools. disksChanged tells of changes of
// the node's disks.
func (r *PoolReconciler) SetupWithManager(mgr manager.Manager, disksChanged <-chan struct{}) error {
	r.Backends.OnTouch(func(pool string) {
		if pool != "" {
			r.queue.addAfter(pool, r.touches.after(pool, time.Now()))
		}
	})
	r.Backends.OnOrphan(r.lookThrough)
	r.queue.add("") // so that a node without any PoolSet is known to have none
	byPool := &lanes{}
	if err := mgr.Add(byPool); err != nil {
		return fmt.Errorf("add the lanes of controller pool: %w", err)
	}
	itself := func(_ context.Context, name string) string { return name }
	ctrl, err := controller.New("pool", mgr, controller.Options{
		Reconciler:              byPool.through(r.Reconcile, itself, &r.queue),
		MaxConcurrentReconciles: poolWorkers,
		NeedLeaderElection:      new(false),
		NewQueue:                quietqueue.New,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
	})
	if err != nil {
		return fmt.Errorf("add controller pool: %w", err)
	}
	cache := mgr.GetCache()
	for _, s := range []source.Source{
		source.Kind(cache, &v1alpha1.PoolSet{}, &handler.TypedEnqueueRequestForObject[*v1alpha1.PoolSet]{}),
		source.Kind(cache, &v1alpha1.Pool{}, handler.TypedEnqueueRequestsFromMapFunc(
			func(_ context.Context, p *v1alpha1.Pool) []reconcile.Request {
				return []reconcile.Request{requestFor(p.Spec.PoolSetName)}
			})),
		source.Kind(cache, discovery.NodeMetadata(), handler.TypedEnqueueRequestsFromMapFunc(
			func(context.Context, *metav1.PartialObjectMetadata) []reconcile.Request {
				r.enqueueAll()
				return nil
			}), predicate.TypedLabelChangedPredicate[*metav1.PartialObjectMetadata]{}),
		&r.queue,
	} {
		if err := ctrl.Watch(s); err != nil {
			return fmt.Errorf("watch for the controller pool: %w", err)
		}
	}
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-disksChanged:
				r.enqueueAll()
			}
		}
	}))
}

// enqueueAll looks at every pool again.
func (r *PoolReconciler) enqueueAll() {
	r.mu.Lock()
	names := make([]string, 0, len(r.pools))
	for name := range r.pools {
		names = append(names, name)
	}
	r.mu.Unlock()
	for _, name := range names {
		r.queue.add(name)
	}
}
