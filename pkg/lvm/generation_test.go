// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// The way back costs one durable write for each change, and one more for a batch.
func TestKeptGenerations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := w.create(t, 1)
	for _, step := range []struct {
		name string
		want int
		run  func() error
	}{
		{"create", 1, func() error { _, err := w.backend.Create(t.Context(), spec(12, extent)); return err }},
		{"create again", 0, func() error { _, err := w.backend.Create(t.Context(), spec(12, extent)); return err }},
		{"locate", 0, func() error { _, err := w.backend.Locate(t.Context(), id(1), rec); return err }},
		{"grow", 1, func() error { _, err := w.backend.Grow(t.Context(), id(1), rec, 3*extent); return err }},
		{"delete", 1, func() error { return w.backend.Delete(t.Context(), id(1), &rec, volume.WipeZero) }},
		{"create after an operator's change", 2, func() error {
			w.Edit(w.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) })
			_, err := w.backend.Create(t.Context(), spec(13, extent))
			return err
		}},
	} {
		before := w.Journal().Writes()
		if err := step.run(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := w.Journal().Writes() - before; got != step.want {
			t.Errorf("%s kept %d generations, want %d", step.name, got, step.want)
		}
	}
	kept, found, err := w.Journal().Kept(w.UUID)
	if err != nil || !found || kept.Acting {
		t.Errorf("in the end %+v, %v, %v is kept", kept, found, err)
	}
}

// A batch that was cut short loses nothing from before it, however far it had come.
func TestBatchCutShort(t *testing.T) {
	t.Parallel()
	const volumes = 6
	for steps := range 2*volumes + 4 {
		w := newWorld(t)
		// The first process waits until the other calls are there.
		gate := make(chan struct{})
		w.OnProcess(func([]string) { <-gate })
		before := w.Processes()
		var all sync.WaitGroup
		for n := range volumes {
			all.Go(func() { _, _ = w.backend.Create(t.Context(), spec(10+n, extent)) })
			for w.Processes() == before {
				runtime.Gosched()
			}
		}
		for w.backend.Waiting() < volumes-1 {
			runtime.Gosched()
		}
		w.LosePower(steps)
		close(gate)
		all.Wait()
		w.OnProcess(nil)
		w.Tear()
		w.backend = w.Backend()
		sizes := w.sizes(t)
		if sizes[id(2)] != 2*extent || sizes[id(3)] != 2*extent {
			t.Errorf("after %d steps: %v", steps, sizes)
		}
	}
}

// A change of somebody else's that was cut short is not ours to undo, unless it is the
// one that follows what was kept: then nothing but it is lost.
func TestForeignChangeCutShort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		changes int
		want    error
	}{
		{"the next one", 1, nil},
		{"one after others", 3, volume.ErrPoolUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.create(t, 1)
			for range c.changes {
				w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetTags(id(1), "berth.dev/volume=pvc-1", "theirs") })
			}
			w.Tear()
			_, err := w.Backend().List(t.Context())
			if !errors.Is(err, c.want) {
				t.Errorf("List = %v, want %v", err, c.want)
			}
			if c.want != nil && !strings.Contains(err.Error(), "other changes") {
				t.Errorf("%q does not say why it is not undone", err)
			}
		})
	}
}

// A process that was killed in a batch leaves the journal saying that one is under way.
// The next one takes that back as soon as it sees the group, for what others change from
// then on is not part of it.
func TestKilledInABatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(t, 1)
	kept, _, err := w.Journal().Kept(w.UUID)
	if err != nil {
		t.Fatal(err)
	}
	kept.Acting = true
	if err := w.Journal().Keep(kept); err != nil {
		t.Fatal(err)
	}
	b := w.Backend()
	if _, err := b.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept, _, err = w.Journal().Kept(w.UUID); err != nil || kept.Acting {
		t.Errorf("kept is %+v, %v", kept, err)
	}
}

// So does this process with what it has begun itself and has not seen the end of: what
// somebody else changes afterwards, and a loss of power cuts short, is not undone with all that
// he has changed before.
func TestBatchOfUnknownOutcomeIsConcluded(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T) (*lvmtest.VG, *lvm.Backend){
		"the outcome was not seen": func(t *testing.T) (*lvmtest.VG, *lvm.Backend) {
			vg := lvmtest.NewThinVG(t, 100*thinMiB)
			b := vg.Backend()
			tend(t, b)
			vg.Inject(lvmtest.Fault{Command: "lvcreate", Mode: lvmtest.DieAfter})
			vg.Inject(lvmtest.Fault{Command: "lvs", Mode: lvmtest.DieBefore})
			if _, err := b.Create(t.Context(), spec(1, thinMiB)); err == nil {
				t.Fatal("it was made")
			}
			return vg, b
		},
		"a move was refused": func(t *testing.T) (*lvmtest.VG, *lvm.Backend) {
			r := evacuations["linear"](t)
			r.vg.Inject(lvmtest.Fault{Command: "pvmove", Mode: lvmtest.Refuse})
			if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; s.Waiting == "" {
				t.Fatalf("it was moved: %+v", s)
			}
			return r.vg, r.b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vg, b := begin(t)
			if left := vg.Faults(); len(left) > 0 {
				t.Fatalf("it did not come to %+v", left)
			}
			if _, err := b.Group(t.Context()); err != nil {
				t.Fatal(err)
			}
			if kept, _, err := vg.Journal().Kept(vg.UUID); err != nil || kept.Acting {
				t.Errorf("kept is %+v, %v", kept, err)
			}
			for range 3 {
				vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) })
			}
			vg.Tear()
			if _, err := vg.Backend().Group(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "other changes") {
				t.Errorf("somebody else's changes were undone: %v", err)
			}
		})
	}
}

// What cannot be written down is not begun.
func TestNothingIsChangedWithoutAWayBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.create(t, 1)
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) })
	w.Journal().SetFails(true)
	_, err := w.backend.Create(t.Context(), spec(12, extent))
	if err == nil || !strings.Contains(err.Error(), "not started") || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Create = %v, want that it was not started and why", err)
	}
	found, err := w.backend.List(t.Context())
	if err != nil || len(found) != 3 {
		t.Errorf("List = %+v, %v", found, err)
	}
	w.Journal().SetFails(false)
	if _, err := w.backend.Create(t.Context(), spec(12, extent)); err != nil {
		t.Error(err)
	}
	// A change that was made and cannot be written down is not told as made.
	w.Journal().SetFails(true)
	if _, err := w.backend.Create(t.Context(), spec(13, extent)); err == nil {
		t.Error("Create did not say that the way back could not be kept")
	}
	w.Journal().SetFails(false)
	if _, err := w.backend.Create(t.Context(), spec(13, extent)); err != nil {
		t.Error(err)
	}
}
