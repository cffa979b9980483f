// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// laneWidth is how many volumes, or snapshots, of a pool are worked on at once. The backends batch what
// arrives together, so that many cost little more than one.
const laneWidth = 16

// lanes gives each pool a lane of its own: a pool whose storage hangs, so that no call to it
// comes back, fills its lane and stops only itself. The workers of a controller, which all pools
// share, wait for a volume a while and go on with others then. The zero value is ready to use. It
// is a Runnable of the controller's manager.
type lanes struct {
	mu sync.Mutex
	// runs are what goes on now, by the name of the volume: one at a time for each.
	runs  map[string]*run
	pools map[string]*lane
}

// lane is what goes on in a pool.
type lane struct {
	running int
	// waiting are the volumes for which there was no place, first come first.
	waiting []string
}

// run is one call for a volume.
type run struct {
	done chan struct{}
	// left: the worker that began it does not wait for it any more.
	left bool
	// asked: somebody has asked for the volume since.
	asked bool
	// result and err may be read when it is done.
	result reconcile.Result
	err    error
}

// through returns a function that calls f in the lane of the volume's pool, once at a time for
// each volume. What f returns when nobody waits for it any more is the queue's to know.
func (l *lanes) through(f reconcile.Func, poolOf func(ctx context.Context, name string) string, queue *queueHandle) reconcile.Func {
	return func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		pool := poolOf(ctx, req.Name)
		job := l.enter(pool, req.Name)
		if job == nil {
			return reconcile.Result{}, nil // it is told of again when there is a place
		}
		go func() {
			job.result, job.err = guarded(ctx, f, req)
			for _, next := range l.leave(pool, req.Name, job) {
				queue.add(next)
			}
			if job.left {
				if job.err != nil && ctx.Err() == nil {
					log.FromContext(ctx).Error(job.err, "Reconciler error, of a call that took long")
				}
				queue.ended(req.Name, job.result, job.err)
			}
			if job.asked {
				queue.add(req.Name)
			}
		}()
		patience := time.NewTimer(workPatience)
		defer patience.Stop()
		select {
		case <-job.done:
		case <-patience.C:
			if l.goOn(job) {
				return reconcile.Result{}, nil
			}
		}
		return job.result, job.err
	}
}

// Start implements manager.Runnable: a manager that stops waits for what goes on, as it does for its
// workers, so that what a command has held up is let go.
func (l *lanes) Start(ctx context.Context) error {
	<-ctx.Done()
	for {
		job := l.any()
		if job == nil {
			return nil
		}
		<-job.done
	}
}

// any returns one of the runs; nil when there is none.
func (l *lanes) any() *run {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, job := range l.runs {
		return job
	}
	return nil
}

// guarded turns a panic of f into an error, as the controller does for its own workers.
func guarded(ctx context.Context, f reconcile.Func, req reconcile.Request) (result reconcile.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v [recovered]\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, req)
}

// enter begins a run. It returns nil where the volume has one already, or its pool has no place.
func (l *lanes) enter(pool, name string) *run {
	l.mu.Lock()
	defer l.mu.Unlock()
	if job := l.runs[name]; job != nil {
		job.asked = true
		return nil
	}
	if l.runs == nil {
		l.runs, l.pools = map[string]*run{}, map[string]*lane{}
	}
	in := l.pools[pool]
	if in == nil {
		in = &lane{}
		l.pools[pool] = in
	}
	if in.running >= laneWidth {
		if !slices.Contains(in.waiting, name) {
			in.waiting = append(in.waiting, name)
		}
		return nil
	}
	in.running++
	job := &run{done: make(chan struct{})}
	l.runs[name] = job
	return job
}

// leave ends a run, and returns the volumes that may come in now. One that is gone meanwhile, or
// has nothing to do any more, does not come: so all are called when the lane is empty, for then
// nobody else would call them.
func (l *lanes) leave(pool, name string, job *run) (next []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.runs, name)
	close(job.done)
	in := l.pools[pool]
	in.running--
	called := min(len(in.waiting), laneWidth-in.running)
	if in.running == 0 {
		called = len(in.waiting)
		delete(l.pools, pool)
	}
	next, in.waiting = slices.Clone(in.waiting[:called]), in.waiting[called:]
	return next
}

// goOn lets a worker leave a run that is not done, and reports whether it is not.
func (l *lanes) goOn(job *run) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-job.done:
		return false
	default:
		job.left = true
		return true
	}
}
