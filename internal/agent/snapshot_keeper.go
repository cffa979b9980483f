// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-dev/berth/pkg/lvm"
)

// thickSnapshots is what the SnapshotKeeper needs of a backend; *lvm.Backend is it.
type thickSnapshots interface {
	// TendSnapshots gives snapshots more room, and says how they are and when to look again.
	TendSnapshots(ctx context.Context) ([]lvm.SnapshotState, time.Duration, error)
	// Deleted returns how many volumes were deleted and are there still, and how many of them
	// wait for their snapshots; Sweep ends the others.
	Deleted(ctx context.Context) (all, waiting int, err error)
	Sweep(ctx context.Context) error
}

const (
	// keeperIdle is when a pool without snapshots is looked at though nothing has happened
	// there, and keeperRetry when one that could not be looked at is tried again.
	keeperIdle  = 10 * time.Minute
	keeperRetry = 10 * time.Second
	// sweepRetry is when volumes are swept again that could not be ended: somebody may be
	// wiping them.
	sweepRetry = time.Minute
)

// SnapshotKeeper keeps the snapshots of thick volumes from running full, and ends volumes that
// were deleted before their snapshots. Each pool is looked after by itself.
type SnapshotKeeper struct {
	Backends *Backends
	// Changed is called with the UID of a LocalSnapshot of which something else is to be told.
	// It must return at once.
	Changed func(uid string)
	Log     *slog.Logger

	mu sync.Mutex
	// states of the snapshots by UID, of which those of a pool are replaced together.
	states map[string]map[string]lvm.SnapshotState
	wakers map[string]chan struct{}
	begin  func(pool string)
}

// Setup follows the pools. Call it before anything runs.
func (k *SnapshotKeeper) Setup() {
	k.Backends.OnChange(func() { k.wake("") })
	k.Backends.OnTouch(k.wake)
}

// Start implements manager.Runnable: it runs until the context ends.
func (k *SnapshotKeeper) Start(ctx context.Context) error {
	var pools sync.WaitGroup
	k.mu.Lock()
	k.begin = func(pool string) {
		waker := k.wakers[pool]
		pools.Go(func() { k.keep(ctx, pool, waker) })
	}
	k.mu.Unlock()
	k.wake("")
	<-ctx.Done()
	pools.Wait()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: each node has its own.
func (k *SnapshotKeeper) NeedLeaderElection() bool { return false }

// wake has a pool looked at, or all. Nothing happens before Start.
func (k *SnapshotKeeper) wake(pool string) {
	found := k.Backends.Pools()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.begin == nil {
		return
	}
	for _, p := range found {
		if _, thick := p.Backend.(thickSnapshots); !thick || pool != "" && p.Name != pool {
			continue
		}
		waker := k.wakers[p.Name]
		if waker == nil {
			if k.wakers == nil {
				k.wakers = map[string]chan struct{}{}
			}
			waker = make(chan struct{}, 1)
			k.wakers[p.Name] = waker
			k.begin(p.Name) // it looks at once
			continue
		}
		select {
		case waker <- struct{}{}:
		default:
		}
	}
}

// keep looks after one pool until the context ends.
func (k *SnapshotKeeper) keep(ctx context.Context, pool string, waker <-chan struct{}) {
	var sweep sync.WaitGroup
	defer sweep.Wait()
	sweeping := make(chan struct{}, 1)
	for {
		next := k.look(ctx, pool, func(end func()) {
			select {
			case sweeping <- struct{}{}:
				sweep.Go(func() {
					defer func() { <-sweeping }()
					end()
				})
			default: // it is under way
			}
		})
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-waker:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// look looks at a pool once, and returns when to do so again. What takes long it has
// inBackground do.
func (k *SnapshotKeeper) look(ctx context.Context, pool string, inBackground func(func())) time.Duration {
	b := k.backend(pool)
	if b == nil {
		return keeperIdle
	}
	states, next, err := b.TendSnapshots(ctx)
	if err != nil {
		return keeperRetry // the pool's condition says what is wrong
	}
	for _, s := range states {
		if s.Extended {
			k.Log.Info("A snapshot got more room", "pool", pool, "snapshot", s.ID, "bytes", s.AreaBytes)
		}
	}
	k.tell(pool, states)
	if next == 0 {
		next = keeperIdle
	}
	if all, waiting, err := b.Deleted(ctx); err == nil && all > waiting {
		next = min(next, sweepRetry)
		inBackground(func() {
			if err := b.Sweep(ctx); err != nil && ctx.Err() == nil {
				k.Log.Error("Volumes that were deleted cannot be ended; it is tried again", "pool", pool, "error", err)
			}
			// Only what is new: each touch is a reason to look again.
			if left, _, err := b.Deleted(ctx); err == nil && left < all {
				k.Backends.Touch(pool)
			}
		})
	}
	return next
}

func (k *SnapshotKeeper) backend(pool string) thickSnapshots {
	for _, p := range k.Backends.Pools() {
		if p.Name == pool {
			b, _ := p.Backend.(thickSnapshots)
			return b
		}
	}
	return nil
}

// tell remembers how the snapshots of a pool are.
func (k *SnapshotKeeper) tell(pool string, states []lvm.SnapshotState) {
	now := map[string]lvm.SnapshotState{}
	var changed []string
	k.mu.Lock()
	for _, s := range states {
		if s.ID == "" {
			continue
		}
		now[s.ID] = s
		if before, known := k.states[pool][s.ID]; !known || before.Lost != s.Lost || (before.Waiting == "") != (s.Waiting == "") {
			changed = append(changed, s.ID)
		}
	}
	if k.states == nil {
		k.states = map[string]map[string]lvm.SnapshotState{}
	}
	k.states[pool] = now
	k.mu.Unlock()
	for _, uid := range changed {
		k.Changed(uid)
	}
}

// State returns how a snapshot was when it was looked at last; false for one that is not
// thick, or was not looked at.
func (k *SnapshotKeeper) State(uid string) (lvm.SnapshotState, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, states := range k.states {
		if s, ok := states[uid]; ok {
			return s, true
		}
	}
	return lvm.SnapshotState{}, false
}

var snapshotUsedDesc = prometheus.NewDesc("berth_snapshot_room_used_ratio",
	"Share of what a snapshot of a thick volume has for what is overwritten that is in use; 1 for one that has overflowed.", []string{"pool", "uid"}, nil)

// Describe implements prometheus.Collector.
func (k *SnapshotKeeper) Describe(ch chan<- *prometheus.Desc) { ch <- snapshotUsedDesc }

// Collect implements prometheus.Collector: how each snapshot was when it was looked at last.
func (k *SnapshotKeeper) Collect(ch chan<- prometheus.Metric) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for pool, states := range k.states {
		for uid, s := range states {
			ch <- prometheus.MustNewConstMetric(snapshotUsedDesc, prometheus.GaugeValue, float64(s.UsedPercent)/100, pool, uid)
		}
	}
}
