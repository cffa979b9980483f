// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// told are the Events that were made.
type told struct {
	mu      sync.Mutex
	reasons []string
}

func (e *told) Eventf(_, _ runtime.Object, _, reason, _, _ string, _ ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reasons = append(e.reasons, reason)
}

// keepOnce looks at the pool as the SnapshotKeeper does, and has the snapshots told of.
func (h *copyHost) keepOnce(k *SnapshotKeeper) {
	h.t.Helper()
	k.look(h.t.Context(), "fast", func(end func()) { end() })
	h.settleCopies()
}

func (h *copyHost) newKeeper(events Announcer) *SnapshotKeeper {
	k := &SnapshotKeeper{Backends: h.backends, Changed: func(string) {}, Log: slog.New(slog.DiscardHandler)}
	h.snapshots.State, h.snapshots.Recorder = k.State, events
	return k
}

func (h *copyHost) wantValid(reason string) {
	h.t.Helper()
	c := meta.FindStatusCondition(h.snapshot().Status.Conditions, v1alpha1.LocalSnapshotValid)
	if reason == "" && c == nil {
		return
	}
	if c == nil || c.Reason != reason || c.Message == "" || !isTaken(h.snapshot()) {
		h.t.Fatalf("the condition Valid is %+v, want %q", c, reason)
	}
}

func (h *copyHost) overwrite(atBytes, lengthBytes int64, with byte) {
	h.t.Helper()
	f, err := os.OpenFile(h.deviceOf(lvUID), os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{with}, int(lengthBytes)), atBytes); err != nil {
		h.t.Fatal(err)
	}
}

// A snapshot says that it can get no more room before it is lost, that it is lost when it is,
// and nothing is restored from it then.
func TestSnapshotOverflows(t *testing.T) {
	t.Parallel()
	h := newCopyHost(t, lvmtest.NewVG(t, 12*mib), localVolume(), localSnapshot())
	h.settleCopies()
	events := &told{}
	k := h.newKeeper(events)
	h.keepOnce(k)
	h.wantValid("")
	for quarters := int64(3); quarters <= 9; quarters += 3 {
		h.overwrite(0, quarters*mib/4, byte(quarters))
		h.keepOnce(k)
		h.wantValid("") // it got more room
	}
	h.overwrite(0, 3*mib, 'b')
	h.keepOnce(k)
	h.keepOnce(k)
	h.wantValid(v1alpha1.ReasonNoRoomToExtend)
	h.overwrite(0, 6*mib, 'c')
	h.keepOnce(k)
	h.keepOnce(k)
	h.wantValid(v1alpha1.ReasonOverflowed)
	if want := []string{v1alpha1.ReasonNoRoomToExtend, v1alpha1.ReasonOverflowed}; strings.Join(events.reasons, " ") != strings.Join(want, " ") {
		t.Errorf("Events %q, want %q", events.reasons, want)
	}
	h.create(copyVolume(v1alpha1.SourceSnapshot, func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = 8 * mib }))
	h.settleCopies()
	if c := meta.FindStatusCondition(h.copied().Status.Conditions, v1alpha1.LocalVolumeReady); c == nil || c.Reason != v1alpha1.ReasonInvalid || !strings.Contains(c.Message, "overflowed") {
		t.Fatalf("a restore of what is lost: %+v", c)
	}
	h.wantOnDisk([]string{lvUID}, []string{snapUID})
	if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	h.wantOnDisk([]string{lvUID}, nil)
}

// A volume that is deleted before its snapshot is gone for everybody at once, and its room is
// given back when the snapshot is deleted, also by an agent that was killed at any step.
func TestDeleteVolumeBeforeSnapshotKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newCopyHost(t, lvmtest.NewVG(t, 64*mib))
		empty, err := h.backend.Capacity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h.create(localVolume())
		h.create(localSnapshot())
		h.settleCopies()
		if err := h.api.Delete(t.Context(), h.get()); err != nil {
			t.Fatal(err)
		}
		h.killer.arm(n)
		for range 3 {
			_ = h.reconcileCopies()
		}
		died := h.killer.died()
		h.startCopies()
		h.settleCopies()
		h.wantOnDisk(nil, []string{snapUID})
		if len(h.agent.Ledger.All()) != 0 {
			t.Fatalf("step %d: the ledger has %+v", n, h.agent.Ledger.All())
		}
		k := h.newKeeper(&told{})
		h.keepOnce(k)
		h.create(copyVolume(v1alpha1.SourceSnapshot))
		h.settleCopies()
		h.wantCopyReady()
		for _, o := range []interface{ GetName() string }{h.copied(), h.snapshot()} {
			switch o := o.(type) {
			case *v1alpha1.LocalVolume:
				err = h.api.Delete(t.Context(), o)
			case *v1alpha1.LocalSnapshot:
				err = h.api.Delete(t.Context(), o)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		h.settleCopies()
		h.keepOnce(k)
		if got, err := h.backend.Capacity(t.Context()); err != nil || got != empty {
			t.Fatalf("step %d: the pool has %+v, had %+v (%v)", n, got, empty, err)
		}
		if !died {
			if n < 2 {
				t.Fatalf("only %d steps", n)
			}
			return
		}
	}
}

// The keeper looks at a pool as soon as something has happened there, and ends with its
// context.
func TestSnapshotKeeperRuns(t *testing.T) {
	t.Parallel()
	h := newCopyHost(t, lvmtest.NewVG(t, 64*mib), localVolume(), localSnapshot())
	h.settleCopies()
	changed := make(chan string, 10)
	k := &SnapshotKeeper{Backends: h.backends, Changed: func(uid string) { changed <- uid }, Log: slog.New(slog.DiscardHandler)}
	k.Setup()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	if uid := <-changed; uid != snapUID {
		t.Errorf("told of %s", uid)
	}
	if s, ok := k.State(snapUID); !ok || s.Lost || s.AreaBytes == 0 {
		t.Errorf("it is %+v (%v)", s, ok)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(k)
	metricstest.CheckSeries(t, registry, "berth_snapshot_room_used_ratio")
	if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	for h.backends.Touch("fast"); ; {
		if _, ok := k.State(snapUID); !ok {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A worker goes on with other volumes while a copy takes its time, the status says how far it
// is, and a deletion ends it.
func TestCopyTakesLong(t *testing.T) {
	t.Parallel()
	h := newCopyHost(t, lvmtest.NewVG(t, 64*mib), localVolume())
	h.settleCopies()
	begun, goOn := make(chan struct{}), make(chan struct{})
	h.vg.OnCopy(func() {
		close(begun)
		<-goOn
	})
	h.create(copyVolume(v1alpha1.SourceVolume))
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: copyName}}
	result, err := h.agent.ReconcileLive(t.Context(), request)
	<-begun
	if err != nil || result.RequeueAfter != workInterval {
		t.Fatalf("the worker was held up: %+v (%v)", result, err)
	}
	if _, err := h.agent.ReconcileLive(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if c := meta.FindStatusCondition(h.copied().Status.Conditions, v1alpha1.LocalVolumeReady); c == nil || c.Reason != v1alpha1.ReasonInProgress || !strings.Contains(c.Message, "copying, 25 %") && !strings.Contains(c.Message, "copying, 50 %") {
		t.Fatalf("the condition is %+v", c)
	}
	h.overwrite(0, mib, 'x') // and grown, staged: its lock is free
	unlock, free := h.agent.Carver.Locks.TryLock(lvName)
	if !free {
		t.Fatal("the source is locked")
	}
	unlock()
	if err := h.api.Delete(t.Context(), h.copied()); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	h.settleCopies()
	h.wantOnDisk([]string{lvUID}, nil)
	if capacity, err := h.backend.Capacity(t.Context()); err != nil || capacity.AllocatedBytes != 8*mib {
		t.Fatalf("something is left: %+v (%v)", capacity, err)
	}
}

// So it does while what a snapshot has kept is wiped.
func TestSnapshotIsWipedForLong(t *testing.T) {
	t.Parallel()
	h := newCopyHost(t, lvmtest.NewVG(t, 64*mib), localVolume(func(lv *v1alpha1.LocalVolume) { lv.Spec.Wipe = v1alpha1.WipeZero }), localSnapshot())
	h.settleCopies()
	begun, goOn := make(chan struct{}), make(chan struct{})
	h.vg.OnWipe(func(volume.WipePolicy) {
		close(begun)
		<-goOn
	})
	if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
		t.Fatal(err)
	}
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: snapName}}
	returned := make(chan error, 1)
	go func() {
		_, err := h.snapshots.Reconcile(context.Background(), request)
		returned <- err
	}()
	<-begun
	select {
	case err := <-returned:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * workPatience):
		t.Error("the worker is held up")
	}
	if c := meta.FindStatusCondition(h.snapshot().Status.Conditions, v1alpha1.LocalSnapshotReady); c == nil || c.Reason != v1alpha1.ReasonInProgress || !strings.Contains(c.Message, "wiping") {
		t.Errorf("the condition is %+v", c)
	}
	h.vg.OnWipe(nil)
	close(goOn)
	h.settleCopies()
	h.wantOnDisk([]string{lvUID}, nil)
}

// What takes long is begun once, told of while it lasts, and its outcome is given once.
func TestWorks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w works
		goOn, finished, runs := make(chan struct{}), make(chan struct{}), 0
		do := func() error {
			_, err := w.do(t.Context(), "key", "working", func() { close(finished) }, func(_ context.Context, progress func(int64, int64)) (ledger.Entry, error) {
				runs++
				progress(2, 5)
				<-goOn
				return ledger.Entry{}, volume.ErrNoSpace
			})
			return err
		}
		began := time.Now()
		if err := do(); !isWorking(err) || !strings.Contains(err.Error(), "working, 40 %") || time.Since(began) != workPatience {
			t.Fatalf("first: %v after %s", err, time.Since(began))
		}
		if err := do(); !isWorking(err) || time.Since(began) != workPatience {
			t.Fatalf("second: %v", err)
		}
		close(goOn)
		<-finished
		if err := do(); err != volume.ErrNoSpace || runs != 1 { //nolint:errorlint // it is the very same
			t.Fatalf("the outcome is %v, of %d runs", err, runs)
		}
	})
}

// A thick volume that has a snapshot says so when it is to grow, and grows when that is gone.
func TestThickGrowthWaitsForSnapshots(t *testing.T) {
	t.Parallel()
	h := newCopyHost(t, lvmtest.NewVG(t, 64*mib), localVolume(), localSnapshot())
	h.settleCopies()
	lv := h.get()
	lv.Spec.SizeBytes = 16 * mib
	lv.Generation++
	if err := h.api.Update(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	c := meta.FindStatusCondition(h.get().Status.Conditions, v1alpha1.LocalVolumeResized)
	if c == nil || c.Reason != v1alpha1.ReasonHasSnapshots || !strings.Contains(c.Message, snapName) || !isReady(h.get()) {
		t.Fatalf("the condition Resized is %+v", c)
	}
	if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
		t.Fatal(err)
	}
	h.settleCopies()
	h.settleCopies()
	if lv = h.get(); lv.Status.Capacity.Value() != 16*mib || meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeResized) != nil {
		t.Fatalf("it has not grown: %+v", lv.Status)
	}
}

// busyPool has a volume that somebody is wiping.
type busyPool struct {
	volume.Backend

	sweeps atomic.Int32
}

func (*busyPool) TendSnapshots(context.Context) ([]lvm.SnapshotState, time.Duration, error) {
	return nil, 0, nil
}
func (*busyPool) Deleted(context.Context) (all, waiting int, err error) { return 1, 0, nil }

func (p *busyPool) Sweep(context.Context) error {
	p.sweeps.Add(1)
	return nil
}

// What cannot be ended is tried again after a while, and not at once.
func TestSweepIsNotHurried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pool := &busyPool{}
		backends := NewBackends(nil)
		k := &SnapshotKeeper{Backends: backends, Log: slog.New(slog.DiscardHandler)}
		k.Setup()
		backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: pool})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute+time.Second)
		defer cancel()
		if err := k.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if n := pool.sweeps.Load(); n != 11 {
			t.Errorf("%d sweeps in ten minutes", n)
		}
	})
}

var _ thickSnapshots = (*lvm.Backend)(nil)
