// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/quietqueue"
)

const (
	// claimDebounce lets the scheduler choose a node first, which it does at once
	// for a pod that fits.
	claimDebounce = 3 * time.Second
	// offerDebounce gathers the changes of pools and capacities.
	offerDebounce = 10 * time.Second
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// SetupWithManager runs the advisor in the manager's leader. It is driven by
// events: of claims, and, for the claims that wait, of the classes, PoolSets and
// capacities they wait for.
func (a *Advisor) SetupWithManager(mgr manager.Manager) error {
	return builder.ControllerManagedBy(mgr).
		Named("advisor").
		WithOptions(controller.Options{NewQueue: quietqueue.New}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { a.addClaim(e.Object, q) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { a.addClaim(e.ObjectNew, q) },
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, _ queue) {
				a.waiting.forget(client.ObjectKeyFromObject(e.Object))
			},
		}).
		Watches(&storagev1.StorageClass{}, a.onChange(func(obj client.Object) []types.NamespacedName {
			return a.waiting.of(obj.GetName())
		})).
		Watches(&storagev1.CSIStorageCapacity{}, a.onChange(func(obj client.Object) []types.NamespacedName {
			if offer, ok := obj.(*storagev1.CSIStorageCapacity); ok {
				return a.waiting.of(offer.StorageClassName)
			}
			return nil
		})).
		Watches(&berth.PoolSet{}, a.onChange(func(client.Object) []types.NamespacedName { return a.waiting.all() })).
		Complete(a)
}

func (a *Advisor) addClaim(obj client.Object, q queue) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return
	}
	key := client.ObjectKeyFromObject(claim)
	if !waits(claim) {
		a.waiting.forget(key)
		return
	}
	q.AddAfter(reconcile.Request{NamespacedName: key}, claimDebounce)
}

// onChange looks again at the claims that wait for a changed object.
func (a *Advisor) onChange(claims func(client.Object) []types.NamespacedName) handler.EventHandler {
	again := func(obj client.Object, q queue) {
		for _, key := range claims(obj) {
			q.AddAfter(reconcile.Request{NamespacedName: key}, offerDebounce)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { again(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { again(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { again(e.Object, q) },
	}
}

// waitingClaims are the claims that wait, by class, and what was said of each.
// The zero value is ready to use.
type waitingClaims struct {
	mu     sync.Mutex
	claims map[types.NamespacedName]*waitingClaim
}

type waitingClaim struct {
	uid   types.UID
	class string
	said  map[string]struct{}
}

func (w *waitingClaims) remember(key types.NamespacedName, class string, uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.claims == nil {
		w.claims = map[types.NamespacedName]*waitingClaim{}
	}
	if known := w.claims[key]; known == nil || known.uid != uid {
		w.claims[key] = &waitingClaim{uid: uid, class: class, said: map[string]struct{}{}}
	}
}

func (w *waitingClaims) forget(key types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.claims, key)
}

// isNew reports whether the problem was not told of this claim yet, and takes it
// as told.
func (w *waitingClaims) isNew(key types.NamespacedName, uid types.UID, problemKey string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	claim := w.claims[key]
	if claim == nil || claim.uid != uid {
		return false
	}
	if _, told := claim.said[problemKey]; told {
		return false
	}
	claim.said[problemKey] = struct{}{}
	return true
}

func (w *waitingClaims) of(class string) []types.NamespacedName {
	return w.matching(func(c *waitingClaim) bool { return c.class == class })
}

func (w *waitingClaims) all() []types.NamespacedName {
	return w.matching(func(*waitingClaim) bool { return true })
}

func (w *waitingClaims) matching(match func(*waitingClaim) bool) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []types.NamespacedName
	for key, claim := range w.claims {
		if match(claim) {
			keys = append(keys, key)
		}
	}
	return keys
}
