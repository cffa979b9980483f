// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// snapshotter returns the backend as one that makes snapshots, or skips the test.
func (b *bench) snapshotter(t *testing.T) volume.Snapshotter {
	t.Helper()
	s, ok := b.Backend.(volume.Snapshotter)
	if !ok || !b.snapshots {
		t.Skip("this backend makes no snapshots")
	}
	return s
}

func (b *bench) snapshotSpec(n, of int, rec volume.Record) volume.SnapshotSpec {
	return volume.SnapshotSpec{ID: ID(n), Name: fmt.Sprintf("snap-%d", n), VolumeID: ID(of), Volume: rec, Wipe: volume.WipeZero}
}

func (b *bench) snapshot(t *testing.T, n, of int, rec volume.Record) volume.Record {
	t.Helper()
	snap, err := b.snapshotter(t).Snapshot(t.Context(), b.snapshotSpec(n, of, rec))
	if err != nil {
		t.Fatalf("Snapshot(%d) of %d: %v", n, of, err)
	}
	return snap
}

func (b *bench) deleteSnapshot(t *testing.T, n int, rec *volume.Record) {
	t.Helper()
	if err := b.snapshotter(t).DeleteSnapshot(t.Context(), ID(n), rec); err != nil {
		t.Fatalf("DeleteSnapshot(%d): %v", n, err)
	}
}

func (b *bench) copyOf(n int, source volume.Source, sizeBytes int64) volume.Spec {
	spec := b.spec(n)
	spec.SizeBytes, spec.Source = sizeBytes, &source
	return spec
}

func (b *bench) wantSnapshots(t *testing.T, want map[int]volume.Record) {
	t.Helper()
	found, err := b.snapshotter(t).ListSnapshots(t.Context())
	if err != nil {
		t.Fatalf("ListSnapshots: %v", err)
	}
	if len(found) != len(want) {
		t.Fatalf("ListSnapshots shows %+v, want %d", found, len(want))
	}
	for _, f := range found {
		ok := false
		for n, rec := range want {
			ok = ok || f.ID == ID(n) && f.Record.SameStorage(rec)
		}
		if !ok {
			t.Fatalf("ListSnapshots shows %s %s", f.ID, show(f.Record))
		}
	}
}

// wantCopy makes a volume of a source and checks what it holds and what not.
func (b *bench) wantCopy(t *testing.T, spec volume.Spec, has, hasNot string) volume.Record {
	t.Helper()
	rec, err := b.Backend.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("Create of a copy: %v", err)
	}
	loc, err := b.Backend.Locate(t.Context(), spec.ID, rec)
	if err != nil {
		t.Fatal(err)
	}
	if rec.SizeBytes < spec.SizeBytes || loc.SizeBytes < spec.SizeBytes {
		t.Fatalf("the copy has %d and %d bytes, asked for were %d", rec.SizeBytes, loc.SizeBytes, spec.SizeBytes)
	}
	if !hasMark(t, loc, has) || hasNot != "" && hasMark(t, loc, hasNot) {
		t.Fatalf("the copy has not just what %q left", has)
	}
	return rec
}

// A snapshot holds what the volume held then; what is made of it, and of the volume,
// stands for itself, whatever is deleted and in which order.
func (s suite) testSnapshot(t *testing.T) {
	b := s.place(t)
	b.snapshotter(t)
	origin := b.create(t, 1)
	empty := b.capacity(t)
	writeMark(t, b.locate(t, 1, origin), "before")
	snap := b.snapshot(t, 5, 1, origin)
	if snap.SameStorage(origin) || snap.SizeBytes != origin.SizeBytes {
		t.Fatalf("the snapshot is %s", show(snap))
	}
	writeMark(t, b.locate(t, 1, origin), "after")
	wantSame(t, "Snapshot again", b.snapshot(t, 5, 1, origin), snap)
	b.wantSnapshots(t, map[int]volume.Record{5: snap})
	b.wantList(t, map[int]volume.Record{1: origin})

	ofSnapshot := b.copyOf(2, volume.Source{ID: ID(5), Record: snap, Snapshot: true}, b.VolumeBytes)
	restored := b.wantCopy(t, ofSnapshot, "before", "after")
	again, err := b.Backend.Create(t.Context(), ofSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "Create of the copy again", again, restored)
	clone := b.wantCopy(t, b.copyOf(3, volume.Source{ID: ID(1), Record: origin}, b.VolumeBytes), "after", "before")
	b.wantList(t, map[int]volume.Record{1: origin, 2: restored, 3: clone})

	b.delete(t, 1, &origin)
	b.reboot(t)
	if !hasMark(t, b.locate(t, 2, restored), "before") || !hasMark(t, b.locate(t, 3, clone), "after") {
		t.Fatal("a copy went with its origin")
	}
	b.deleteSnapshot(t, 5, &snap)
	b.deleteSnapshot(t, 5, &snap)
	b.deleteSnapshot(t, 5, nil)
	b.settle(t)
	b.wantSnapshots(t, nil)
	if !hasMark(t, b.locate(t, 2, restored), "before") {
		t.Fatal("a restored volume went with its snapshot")
	}
	b.delete(t, 2, &restored)
	b.delete(t, 3, &clone)
	b.create(t, 1)
	if got := b.capacity(t); got != empty {
		t.Fatalf("something has leaked: Capacity is %+v, was %+v", got, empty)
	}
}

func (s suite) testSnapshotRefused(t *testing.T) {
	b := s.place(t)
	origin := b.create(t, 1)
	snap := b.snapshot(t, 5, 1, origin)
	snapshots := b.snapshotter(t)
	other := snap
	switch {
	case snap.LVM != nil:
		foreign := *snap.LVM
		foreign.LVUUID = "ZZZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZ-ZZZZZZ"
		other.LVM = &foreign
	case snap.Hostpath != nil:
		foreign := *snap.Hostpath
		foreign.RootID = "another"
		other.Hostpath = &foreign
	}
	wantError(t, "DeleteSnapshot with another's record", snapshots.DeleteSnapshot(t.Context(), ID(5), &other), volume.ErrIdentity)
	b.wantSnapshots(t, map[int]volume.Record{5: snap})

	small := b.copyOf(2, volume.Source{ID: ID(5), Record: snap, Snapshot: true}, b.VolumeBytes/2)
	_, err := b.Backend.Create(t.Context(), small)
	wantError(t, "Create of a copy that is too small", err, volume.ErrInvalid)
	b.deleteSnapshot(t, 5, &snap)
	_, err = b.Backend.Create(t.Context(), b.copyOf(2, volume.Source{ID: ID(5), Record: snap, Snapshot: true}, b.VolumeBytes))
	wantError(t, "Create of what is gone", err, volume.ErrNotFound)
	b.delete(t, 1, &origin)
	_, err = snapshots.Snapshot(t.Context(), b.snapshotSpec(6, 1, origin))
	wantError(t, "Snapshot of what is gone", err, volume.ErrNotFound)
	b.wantList(t, nil)
	b.wantSnapshots(t, nil)
}

// A copy may be larger than its source. One for which there is no room is not begun.
func (s suite) testCopyGrows(t *testing.T) {
	b := s.place(t)
	b.snapshotter(t)
	origin := b.create(t, 1)
	writeMark(t, b.locate(t, 1, origin), "before")
	snap := b.snapshot(t, 5, 1, origin)
	source := volume.Source{ID: ID(5), Record: snap, Snapshot: true}
	b.unchanged(t, func() {
		_, err := b.Backend.Create(t.Context(), b.copyOf(2, source, int64(b.Volumes)*b.VolumeBytes))
		wantError(t, "Create of a copy without room", err, volume.ErrNoSpace)
	})
	b.wantCopy(t, b.copyOf(2, source, 2*b.VolumeBytes), "before", "")
	for n, room := 10, true; room; n++ {
		_, err := b.Backend.Create(t.Context(), b.spec(n))
		if room = err == nil; !room {
			wantError(t, "Create without room", err, volume.ErrNoSpace)
		}
	}
	// Where volumes are striped, there may be room for what is not.
	taken := map[int]volume.Record{5: snap}
	for n := 20; ; n++ {
		capacity := b.capacity(t)
		more, err := b.snapshotter(t).Snapshot(t.Context(), b.snapshotSpec(n, 1, origin))
		if err == nil {
			taken[n] = more
			continue
		}
		wantError(t, "Snapshot without room", err, volume.ErrNoSpace)
		if got := b.capacity(t); got != capacity {
			t.Errorf("Capacity moved from %+v to %+v", capacity, got)
		}
		break
	}
	b.wantSnapshots(t, taken)
}

// A volume that is deleted before its snapshots is gone for everybody, and its snapshots are
// not.
func (s suite) testDeleteBeforeSnapshot(t *testing.T) {
	b := s.place(t)
	b.snapshotter(t)
	empty := b.capacity(t)
	origin := b.create(t, 1)
	writeMark(t, b.locate(t, 1, origin), "before")
	first := b.snapshot(t, 5, 1, origin)
	writeMark(t, b.locate(t, 1, origin), "after")
	second := b.snapshot(t, 6, 1, origin)
	b.delete(t, 1, &origin)
	for range 2 {
		b.wantList(t, nil)
		b.wantSnapshots(t, map[int]volume.Record{5: first, 6: second})
		_, err := b.Backend.Locate(t.Context(), ID(1), origin)
		wantError(t, "Locate of a deleted volume", err, volume.ErrNotFound)
		_, err = b.snapshotter(t).Snapshot(t.Context(), b.snapshotSpec(7, 1, origin))
		wantError(t, "Snapshot of a deleted volume", err, volume.ErrNotFound)
		b.delete(t, 1, &origin)
		b.delete(t, 1, nil)
		b.reboot(t)
	}
	restored := b.wantCopy(t, b.copyOf(2, volume.Source{ID: ID(5), Record: first, Snapshot: true}, b.VolumeBytes), "before", "after")
	b.delete(t, 2, &restored)
	b.deleteSnapshot(t, 5, &first)
	restored = b.wantCopy(t, b.copyOf(2, volume.Source{ID: ID(6), Record: second, Snapshot: true}, b.VolumeBytes), "after", "before")
	b.delete(t, 2, &restored)
	b.deleteSnapshot(t, 6, &second)
	b.settle(t)
	if got := b.capacity(t); got != empty {
		t.Fatalf("something has leaked: Capacity is %+v, was %+v", got, empty)
	}
}

// crashSnapshots kills act at each of its steps; converge must then bring the place to what want says
// of the snapshot 5 and the volume 3.
func (s suite) crashSnapshots(t *testing.T, prepared, wantSnapshot, wantCopy bool, act func(t *testing.T, b *bench, origin, snap volume.Record) error) {
	t.Helper()
	for n := range maxSteps {
		finished := true
		t.Run(fmt.Sprintf("step%d", n), func(t *testing.T) {
			b := s.place(t)
			b.snapshotter(t)
			if b.CrashAt == nil {
				t.Skip("the harness cannot kill the backend")
			}
			origin := b.create(t, 1)
			writeMark(t, b.locate(t, 1, origin), "before")
			var snap volume.Record
			if prepared {
				snap = b.snapshot(t, 5, 1, origin)
			}
			crashed := b.CrashAt(t, n)
			err := act(t, b, origin, snap)
			finished = !crashed()
			if finished && err != nil {
				t.Fatalf("nothing was killed, and yet: %v", err)
			}
			b.reboot(t)
			if err := act(t, b, origin, snap); err != nil {
				t.Fatalf("again after the crash: %v", err)
			}
			volumes, snapshots := map[int]volume.Record{1: origin}, map[int]volume.Record{}
			if wantCopy {
				copied, ok := b.list(t)[ID(3)]
				if !ok || !hasMark(t, b.locate(t, 3, copied), "before") {
					t.Fatalf("the copy is %s (there: %v)", show(copied), ok)
				}
				volumes[3] = copied
			}
			if wantSnapshot {
				snap = b.snapshot(t, 5, 1, origin)
				snapshots[5] = snap
			}
			b.wantList(t, volumes)
			b.wantSnapshots(t, snapshots)
			if !hasMark(t, b.locate(t, 1, origin), "before") {
				t.Fatal("the origin's bytes have changed")
			}
		})
		if finished || t.Failed() {
			return
		}
	}
	t.Fatalf("the call has more than %d steps, or the harness never stops killing it", maxSteps)
}

func (s suite) testCrashInSnapshot(t *testing.T) {
	s.crashSnapshots(t, false, true, false, func(t *testing.T, b *bench, origin, _ volume.Record) error {
		_, err := b.snapshotter(t).Snapshot(t.Context(), b.snapshotSpec(5, 1, origin))
		return err
	})
}

func (s suite) testCrashInCopy(t *testing.T) {
	s.crashSnapshots(t, true, true, true, func(t *testing.T, b *bench, _, snap volume.Record) error {
		spec := b.copyOf(3, volume.Source{ID: ID(5), Record: snap, Snapshot: true}, 2*b.VolumeBytes)
		spec.Fresh = true
		_, err := b.Backend.Create(t.Context(), spec)
		return err
	})
}

func (s suite) testCrashInClone(t *testing.T) {
	s.crashSnapshots(t, true, true, true, func(t *testing.T, b *bench, origin, _ volume.Record) error {
		spec := b.copyOf(3, volume.Source{ID: ID(1), Record: origin, Wipe: volume.WipeZero}, b.VolumeBytes)
		_, err := b.Backend.Create(t.Context(), spec)
		return err
	})
}

// A copy that is given up leaves nothing, and its source as it is.
func (s suite) testCrashInCloneThenDelete(t *testing.T) {
	s.crashSnapshots(t, true, true, false, func(t *testing.T, b *bench, origin, _ volume.Record) error {
		spec := b.copyOf(3, volume.Source{ID: ID(1), Record: origin, Wipe: volume.WipeZero}, b.VolumeBytes)
		rec, err := b.Backend.Create(t.Context(), spec)
		if err != nil {
			return err
		}
		return b.Backend.Delete(t.Context(), ID(3), &rec, volume.WipeZero)
	})
}

func (s suite) testCrashInDeleteSnapshot(t *testing.T) {
	s.crashSnapshots(t, true, false, false, func(t *testing.T, b *bench, _, snap volume.Record) error {
		err := b.snapshotter(t).DeleteSnapshot(t.Context(), ID(5), &snap)
		if errors.Is(err, volume.ErrNotFound) {
			t.Errorf("what is gone is deleted: %v", err)
		}
		return err
	})
}
