// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/quietqueue"
	"github.com/berth-dev/berth/pkg/volume"
)

// hanging is a backend to whose filesystem no call comes back before it is put right.
type hanging struct {
	volume.Backend
	right chan struct{}
	hung  *atomic.Int32
}

func (b hanging) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	b.hung.Add(1)
	<-b.right // as a call to the kernel: no context ends it
	b.hung.Add(-1)
	return b.Backend.Create(ctx, spec)
}

// workers are those of a controller, without one.
func workers(t *testing.T, f reconcile.Func, queue *queueHandle) (stop func()) {
	t.Helper()
	q := quietqueue.New("", workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry))
	if err := queue.Start(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	for range volumeWorkers {
		go func() {
			for {
				req, shutdown := q.Get()
				if shutdown {
					return
				}
				switch result, err := f(t.Context(), req); {
				case err != nil:
					q.AddRateLimited(req)
				case result.RequeueAfter > 0:
					q.AddAfter(req, result.RequeueAfter)
				default:
					q.Forget(req)
				}
				q.Done(req)
			}
		}()
	}
	return q.ShutDown
}

func TestAPoolThatHangsStopsOnlyItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const dirs = 3 * volumeWorkers
		directory := func(name, pool string, id int) *v1alpha1.LocalVolume {
			return localVolume(func(lv *v1alpha1.LocalVolume) {
				lv.Name, lv.UID = name, types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", id))
				lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType, lv.Spec.SizeBytes = v1alpha1.ModeHostpath, pool, "", 1<<10
			})
		}
		objects := []client.Object{directory("good", "others", dirs)}
		for i := range dirs {
			objects = append(objects, directory(fmt.Sprintf("dir-%d", i), "dirs", i))
		}
		h := newHost(t, volume.ModeHostpath, objects...)
		right, hung := make(chan struct{}), &atomic.Int32{}
		h.backends.Set(PoolBackend{Name: "others", Mode: volume.ModeHostpath, Backend: h.memory})
		h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: hanging{h.memory, right, hung}})
		byPool := &lanes{}
		stop := workers(t, byPool.through(h.agent.ReconcileLive, h.agent.poolOf, &h.agent.live), &h.agent.live)
		ready := func(name string) bool {
			lv := &v1alpha1.LocalVolume{}
			if err := h.api.Get(t.Context(), client.ObjectKey{Name: name}, lv); err != nil {
				t.Fatal(err)
			}
			return isReady(lv)
		}
		for i := range dirs {
			h.agent.live.add(fmt.Sprintf("dir-%d", i))
		}
		synctest.Wait()
		if n := hung.Load(); n != laneWidth {
			t.Errorf("%d calls hang, want %d", n, laneWidth)
		}
		h.agent.live.add("good")
		synctest.Wait()
		if !ready("good") {
			t.Error("the volume of another pool is not made")
		}
		<-time.After(time.Hour)
		if n := hung.Load(); n != laneWidth {
			t.Errorf("after an hour %d calls hang, want %d", n, laneWidth)
		}
		ended := make(chan error)
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		go func() { ended <- byPool.Start(stopped) }()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("the manager does not wait for what goes on")
		default:
		}

		close(right)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		<-time.After(time.Minute)
		for i := range dirs {
			if name := fmt.Sprintf("dir-%d", i); !ready(name) {
				t.Errorf("%s is not made after the filesystem came back", name)
			}
		}
		if len(h.agent.Ledger.All()) != dirs+1 {
			t.Errorf("the ledger has %d volumes, want %d", len(h.agent.Ledger.All()), dirs+1)
		}
		stop()
		<-time.After(time.Minute)
	})
}

// What a call returns for which no worker has waited is dealt with all the same.
func TestLanesTellTheQueueWhatCameLate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		late  func() (reconcile.Result, error)
		asked bool
		// calls after a second and after an hour
		soon, later int32
	}{
		"done":                {func() (reconcile.Result, error) { return reconcile.Result{}, nil }, false, 1, 1},
		"an error":            {func() (reconcile.Result, error) { return reconcile.Result{}, errors.New("no") }, false, 2, 2},
		"a panic":             {func() (reconcile.Result, error) { panic("no") }, false, 2, 2},
		"to look again":       {func() (reconcile.Result, error) { return reconcile.Result{RequeueAfter: time.Minute}, nil }, false, 1, 2},
		"asked for meanwhile": {func() (reconcile.Result, error) { return reconcile.Result{}, nil }, true, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var calls, atOnce atomic.Int32
				queue := &queueHandle{}
				stop := workers(t, new(lanes).through(func(context.Context, reconcile.Request) (reconcile.Result, error) {
					if atOnce.Add(1) > 1 {
						t.Error("two calls for one volume at once")
					}
					defer atOnce.Add(-1)
					if calls.Add(1) > 1 {
						return reconcile.Result{}, nil
					}
					<-time.After(2 * workPatience)
					return tc.late()
				}, func(context.Context, string) string { return "dirs" }, queue), queue)
				queue.add(lvName)
				<-time.After(workPatience + time.Second)
				if tc.asked {
					queue.add(lvName)
				}
				<-time.After(workPatience)
				if n := calls.Load(); n != tc.soon {
					t.Errorf("%d calls, want %d", n, tc.soon)
				}
				<-time.After(time.Hour)
				if n := calls.Load(); n != tc.later {
					t.Errorf("%d calls after an hour, want %d", n, tc.later)
				}
				stop()
				<-time.After(time.Minute)
			})
		})
	}
}

// Volumes that wait for a place and are gone when they are called leave it to those behind them.
func TestLaneDoesNotWaitForWhoIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		var calls atomic.Int32
		right := make(chan struct{})
		queue := &queueHandle{}
		poolOf := func(_ context.Context, name string) string {
			if gone.Load() && name[0] == 'w' {
				return ""
			}
			return "dirs"
		}
		stop := workers(t, new(lanes).through(func(_ context.Context, req reconcile.Request) (reconcile.Result, error) {
			<-right
			if req.Name[0] == 'b' {
				calls.Add(1)
			}
			return reconcile.Result{}, nil
		}, poolOf, queue), queue)
		add := func(kind string, n int) {
			for i := range n {
				queue.add(fmt.Sprintf("%s-%d", kind, i))
			}
			<-time.After(time.Minute)
		}
		const behind = 3 * laneWidth
		add("first", laneWidth)
		add("waits", 2*laneWidth)
		add("behind", behind)
		gone.Store(true)
		close(right)
		<-time.After(time.Minute)
		if n := calls.Load(); n != behind {
			t.Errorf("%d of %d were called", n, behind)
		}
		stop()
		<-time.After(time.Minute)
	})
}

// Deletions in a pool that hangs cost the process no more threads than one lane has, and the others
// are told when one comes back.
func TestDeletionsInAPoolThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w works
		right := make(chan struct{})
		var hung, most atomic.Int32
		const volumes = 10 * laneWidth
		queue := make(chan int, 10*volumes)
		remove := func(i int) error {
			_, err := w.doIn(t.Context(), "dirs", fmt.Sprint(i), "wiping", func() { queue <- i },
				func(context.Context, func(int64, int64)) (ledger.Entry, error) {
					most.Store(max(most.Load(), hung.Add(1)))
					<-right
					hung.Add(-1)
					return ledger.Entry{}, nil
				})
			return err
		}
		for i := range volumes {
			if err := remove(i); !isWorking(err) {
				t.Errorf("deleted from what hangs: %v", err)
			}
		}
		if hung.Load() != laneWidth {
			t.Errorf("%d calls hang", hung.Load())
		}
		if _, err := w.doIn(t.Context(), "others", "other", "wiping", func() {}, func(context.Context, func(int64, int64)) (ledger.Entry, error) { return ledger.Entry{}, nil }); err != nil {
			t.Errorf("in another pool: %v", err)
		}
		close(right)
		for done := map[int]bool{}; len(done) < volumes; {
			i := <-queue
			if err := remove(i); err == nil {
				done[i] = true
			} else if !isWorking(err) {
				t.Fatal(err)
			}
		}
		if most.Load() > laneWidth {
			t.Errorf("%d at once", most.Load())
		}
	})
}
