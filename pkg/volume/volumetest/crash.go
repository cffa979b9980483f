// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"fmt"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// maxSteps bounds the steps of one call that the crash tests walk through.
const maxSteps = 300

// crashRun kills one call at each of its steps in turn, each time in a new place
// that holds a bystander, and then lets converge put it right after a reboot.
type crashRun struct {
	// prepare runs before the crash is armed.
	prepare func(t *testing.T, b *bench)
	// act is the call that is killed. Its error means something only when it was not.
	act func(t *testing.T, b *bench) error
	// converge repeats or undoes the call.
	converge func(t *testing.T, b *bench)
	// want says how large volume 1 must be in the end; 0 that it must not be.
	want func(b *bench) int64
}

func (s suite) crash(t *testing.T, run crashRun) {
	t.Helper()
	for n := range maxSteps {
		finished := true
		t.Run(fmt.Sprintf("step%d", n), func(t *testing.T) {
			b := s.place(t)
			if b.CrashAt == nil {
				t.Skip("the harness cannot kill the backend")
			}
			empty := b.capacity(t)
			bystander := b.create(t, 2)
			writeMark(t, b.locate(t, 2, bystander), "bystander")
			run.prepare(t, b)

			crashed := b.CrashAt(t, n)
			err := run.act(t, b)
			finished = !crashed()
			if finished && err != nil {
				t.Fatalf("nothing was killed, and yet: %v", err)
			}
			b.reboot(t)
			if have := b.list(t); !have[ID(2)].SameStorage(bystander) {
				t.Fatal("the bystander is gone after the crash")
			}
			run.converge(t, b)

			want := map[int]volume.Record{2: bystander}
			if size := run.want(b); size > 0 {
				rec, ok := b.list(t)[ID(1)]
				if !ok || rec.SizeBytes < size || rec.SameStorage(bystander) {
					t.Fatalf("volume 1 is %s (there: %v), want %d bytes", show(rec), ok, size)
				}
				want[1] = rec
				b.locate(t, 1, rec)
			}
			b.wantList(t, want)
			if !hasMark(t, b.locate(t, 2, bystander), "bystander") {
				t.Fatal("the bystander's bytes have changed")
			}
			for n, rec := range want {
				b.delete(t, n, &rec)
			}
			b.wantList(t, nil)
			if got := b.capacity(t); got != empty {
				t.Fatalf("something has leaked: Capacity is %+v, was %+v", got, empty)
			}
			for n := range b.Volumes {
				rec := b.create(t, 10+n)
				if loc := b.locate(t, 10+n, rec); hasMark(t, loc, "bystander") || hasMark(t, loc, "killed") {
					t.Fatal("the next owner can read the bytes of the last")
				}
			}
		})
		if finished || t.Failed() {
			if n == 0 && !t.Failed() && finished {
				// Skipped, or a call without a single step: say so rather than pass.
				t.Log("no step was found to crash at")
			}
			return
		}
	}
	t.Fatalf("the call has more than %d steps, or the harness never stops killing it", maxSteps)
}

// What a call has returned is not undone by a loss of power.
func (s suite) testPowerLoss(t *testing.T) {
	b := s.place(t)
	if b.LoseCaches == nil {
		t.Skip("the harness cannot lose what was not made durable")
	}
	lose := func() {
		t.Helper()
		b.LoseCaches(t)
		b.reboot(t)
	}
	kept, deleted := b.create(t, 1), b.create(t, 2)
	lose()
	b.wantList(t, map[int]volume.Record{1: kept, 2: deleted})
	b.delete(t, 2, &deleted)
	lose()
	b.wantList(t, map[int]volume.Record{1: kept})
	if !s.CanGrow {
		return
	}
	grown, err := b.Backend.Grow(t.Context(), ID(1), kept, 2*b.VolumeBytes)
	if err != nil {
		t.Fatalf("Grow: %v", err)
	}
	lose()
	b.wantList(t, map[int]volume.Record{1: grown})
}

// The same for what is made of snapshots and of volumes.
func (s suite) testPowerLossOfCopies(t *testing.T) {
	b := s.place(t)
	if b.LoseCaches == nil {
		t.Skip("the harness cannot lose what was not made durable")
	}
	b.snapshotter(t)
	volumes, snapshots := map[int]volume.Record{1: b.create(t, 1)}, map[int]volume.Record{}
	lose := func() {
		t.Helper()
		b.LoseCaches(t)
		b.reboot(t)
		b.wantList(t, volumes)
		b.wantSnapshots(t, snapshots)
	}
	snap := b.snapshot(t, 5, 1, volumes[1])
	snapshots[5] = snap
	lose()
	for n, source := range map[int]volume.Source{
		2: {ID: ID(5), Record: snap, Snapshot: true},
		3: {ID: ID(1), Record: volumes[1]},
	} {
		rec, err := b.Backend.Create(t.Context(), b.copyOf(n, source, b.VolumeBytes))
		if err != nil {
			t.Fatalf("Create of a copy: %v", err)
		}
		volumes[n] = rec
		lose()
	}
	b.deleteSnapshot(t, 5, &snap)
	delete(snapshots, 5)
	lose()
	origin := volumes[1]
	b.delete(t, 1, &origin)
	delete(volumes, 1)
	lose()
}

func nothing(*testing.T, *bench) {}

func (s suite) testCrashInCreate(t *testing.T) {
	s.crash(t, crashRun{
		prepare:  nothing,
		act:      func(t *testing.T, b *bench) error { _, err := b.Backend.Create(t.Context(), b.spec(1)); return err },
		converge: func(t *testing.T, b *bench) { b.create(t, 1) },
		want:     func(b *bench) int64 { return b.VolumeBytes },
	})
}

// A caller that knows that the volume was not there before it asked gets it cleared,
// also when it was made by a call that was killed before it had cleared it.
func (s suite) testCrashInCreateOverRemains(t *testing.T) {
	if !s.has(volume.AccessBlock) {
		t.Skip("directories have no ends")
	}
	handsOut := false
	t.Run("probe", func(t *testing.T) { // its place is gone before the next one is made
		probe := s.place(t)
		empty := probe.capacity(t)
		probe.leaveRemains(t)
		handsOut = probe.capacity(t) == empty
	})
	if !handsOut {
		t.Skip("the backend hands out no place that was not wiped")
	}
	create := func(t *testing.T, b *bench) error {
		spec := b.spec(1)
		spec.Fresh = true
		rec, err := b.Backend.Create(t.Context(), spec)
		if err == nil {
			wantBlankEnds(t, b.locate(t, 1, rec))
		}
		return err
	}
	s.crash(t, crashRun{
		prepare: func(t *testing.T, b *bench) { b.leaveRemains(t) },
		act:     create,
		converge: func(t *testing.T, b *bench) {
			if err := create(t, b); err != nil {
				t.Fatalf("Create after the crash: %v", err)
			}
		},
		want: func(b *bench) int64 { return b.VolumeBytes },
	})
}

func (s suite) testCrashInCreateThenDelete(t *testing.T) {
	s.crash(t, crashRun{
		prepare:  nothing,
		act:      func(t *testing.T, b *bench) error { _, err := b.Backend.Create(t.Context(), b.spec(1)); return err },
		converge: func(t *testing.T, b *bench) { b.delete(t, 1, nil) },
		want:     func(*bench) int64 { return 0 },
	})
}

func (s suite) testCrashInGrow(t *testing.T) {
	if !s.CanGrow {
		t.Skip("volumes of this backend do not grow")
	}
	var rec volume.Record
	s.crash(t, crashRun{
		prepare: func(t *testing.T, b *bench) { rec = b.create(t, 1) },
		act: func(t *testing.T, b *bench) error {
			_, err := b.Backend.Grow(t.Context(), ID(1), rec, 2*b.VolumeBytes)
			return err
		},
		converge: func(t *testing.T, b *bench) {
			if _, err := b.Backend.Grow(t.Context(), ID(1), rec, 2*b.VolumeBytes); err != nil {
				t.Fatalf("Grow after the crash: %v", err)
			}
		},
		want: func(b *bench) int64 { return 2 * b.VolumeBytes },
	})
}

func (s suite) testCrashInDelete(t *testing.T) {
	var rec volume.Record
	s.crash(t, crashRun{
		prepare: func(t *testing.T, b *bench) {
			rec = b.create(t, 1)
			writeMark(t, b.locate(t, 1, rec), "killed")
		},
		act: func(t *testing.T, b *bench) error {
			err := b.Backend.Delete(t.Context(), ID(1), &rec, volume.WipeZero)
			b.settle(t)
			return err
		},
		converge: func(t *testing.T, b *bench) { b.delete(t, 1, &rec) },
		want:     func(*bench) int64 { return 0 },
	})
}
