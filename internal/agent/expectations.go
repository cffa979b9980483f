// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// expectations remembers which versions of objects our own writes have replaced.
// The cache may still hold such a version when the next event comes; acting on it
// would repeat the work and the write. The event of the write itself is on its way,
// so an object that is behind is simply skipped.
type expectations struct {
	mu       sync.Mutex
	replaced map[string]replacement
}

type replacement struct {
	uid types.UID
	// version that our write replaced.
	version string
}

// wrote notes that the object, which had the version before, was written.
func (x *expectations) wrote(obj client.Object, before string) {
	if before == "" || obj.GetResourceVersion() == before {
		return // nothing was changed, so no event will come
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.replaced == nil {
		x.replaced = map[string]replacement{}
	}
	x.replaced[obj.GetName()] = replacement{uid: obj.GetUID(), version: before}
}

// isBehind reports whether the object is a version that our write has replaced.
func (x *expectations) isBehind(obj client.Object) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.replaced[obj.GetName()]
	if !ok {
		return false
	}
	if r.uid == obj.GetUID() && r.version == obj.GetResourceVersion() {
		return true
	}
	delete(x.replaced, obj.GetName())
	return false
}

func (x *expectations) forget(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.replaced, name)
}

// queueHandle is the work queue of a controller, once it runs. It implements
// source.Source, through which the controller hands the queue over.
type queueHandle struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	// early are the names added before the controller ran.
	early []string
}

// Start implements source.Source.
func (q *queueHandle) Start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = queue
	for _, name := range q.early {
		queue.Add(requestFor(name))
	}
	q.early = nil
	return nil
}

func (q *queueHandle) add(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue == nil {
		q.early = append(q.early, name)
		return
	}
	q.queue.Add(requestFor(name))
}

// addAfter adds the name after the delay; what is added meanwhile is one with it.
func (q *queueHandle) addAfter(name string, delay time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue != nil {
		q.queue.AddAfter(requestFor(name), delay)
	}
}

// ended does for a call whose controller did not wait for its end what the controller would have
// done.
func (q *queueHandle) ended(name string, result reconcile.Result, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.queue == nil {
		return
	}
	if err != nil {
		q.queue.AddRateLimited(requestFor(name))
		return
	}
	q.queue.Forget(requestFor(name))
	if result.RequeueAfter > 0 {
		q.queue.AddAfter(requestFor(name), result.RequeueAfter)
	}
}

func requestFor(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
}
