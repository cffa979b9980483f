// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// thickWorld is a group of 64 extents with a volume of 16.
type thickWorld struct {
	*lvmtest.VG

	backend *lvm.Backend
	rec     volume.Record
}

func newThickWorld(t *testing.T, extents int64) *thickWorld {
	t.Helper()
	w := &thickWorld{VG: lvmtest.NewVG(t, extents*extent)}
	w.backend = w.Backend()
	rec, err := w.backend.Create(t.Context(), spec(1, 16*extent))
	if err != nil {
		t.Fatal(err)
	}
	w.rec = rec
	return w
}

func (w *thickWorld) snapshotSpec(n int) volume.SnapshotSpec {
	return volume.SnapshotSpec{ID: id(n), Name: fmt.Sprintf("snapshot-%d", n), VolumeID: id(1), Volume: w.rec, Wipe: volume.WipeZero}
}

func (w *thickWorld) snapshot(t *testing.T, n int) volume.Record {
	t.Helper()
	rec, err := w.backend.Snapshot(t.Context(), w.snapshotSpec(n))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// write writes something else to so many chunks of the volume.
func (w *thickWorld) write(t *testing.T, chunks int, with byte) {
	t.Helper()
	loc, err := w.backend.Locate(t.Context(), id(1), w.rec)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(loc.Device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(slices.Repeat([]byte{with}, chunks*4096)); err != nil {
		t.Fatal(err)
	}
}

func (w *thickWorld) tend(t *testing.T) []lvm.SnapshotState {
	t.Helper()
	states, next, err := w.backend.TendSnapshots(t.Context())
	if err != nil || (len(states) > 0) != (next > 0) {
		t.Fatalf("TendSnapshots: %+v, again after %s (%v)", states, next, err)
	}
	return states
}

// A snapshot gets more room before what it has is full, a bit of what there is in the end, and
// is lost when there is none. Its volume is not.
func TestThickSnapshotFills(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 16+3+3+1)
	rec := w.snapshot(t, 5)
	if state := w.tend(t)[0]; state.AreaBytes != 3*extent || state.UsedPercent > 2 || state.Extended || state.Lost || state.ID != id(5) {
		t.Fatalf("new: %+v", state)
	}
	before := w.Processes()
	w.tend(t)
	if n := w.Processes() - before; n != 0 {
		t.Errorf("to look took %d processes", n)
	}
	const perExtent = extent / 4096
	w.write(t, 5*perExtent/2, 'a')
	if state := w.tend(t)[0]; !state.Extended || state.AreaBytes != 6*extent || state.Waiting != "" || state.Lost {
		t.Fatalf("filled: %+v", state)
	}
	w.write(t, 5*perExtent, 'b')
	if state := w.tend(t)[0]; !state.Extended || state.AreaBytes != 7*extent {
		t.Fatalf("filled again: %+v", state)
	}
	if state := w.tend(t)[0]; state.Extended || state.Waiting != "the pool has no room left" || state.UsedPercent < 70 {
		t.Fatalf("without room: %+v", state)
	}
	w.write(t, 8*perExtent, 'c')
	if state := w.tend(t)[0]; !state.Lost || state.UsedPercent != 100 || state.Waiting != "" {
		t.Fatalf("overflown: %+v", state)
	}
	before = w.Processes()
	_, err := w.backend.Create(t.Context(), copySpec(2, 16*extent, volume.Source{ID: id(5), Record: rec, Snapshot: true}))
	if !errors.Is(err, volume.ErrLost) || !errors.Is(err, volume.ErrInvalid) || w.Processes() != before {
		t.Fatalf("restore of what is lost, by %d processes: %v", w.Processes()-before, err)
	}
	if _, err := w.backend.Locate(t.Context(), id(1), w.rec); err != nil {
		t.Fatal(err)
	}
	if err := w.backend.DeleteSnapshot(t.Context(), id(5), &rec); err != nil {
		t.Fatal(err)
	}
	if states := w.tend(t); len(states) != 0 {
		t.Fatalf("deleted: %+v", states)
	}
}

func copySpec(n int, sizeBytes int64, source volume.Source) volume.Spec {
	s := spec(n, sizeBytes)
	source.Wipe = volume.WipeZero
	s.Source = &source
	return s
}

// With all the room that it can use a snapshot cannot be full.
func TestThickSnapshotCannotOverflow(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	w.VG.Snapshots = &lvm.SnapshotPolicy{InitialPercent: 90, ThresholdPercent: 70, ExtendPercent: 100}
	w.backend = w.Backend()
	w.snapshot(t, 5)
	w.write(t, 12*256, 'a')
	if state := w.tend(t)[0]; !state.Extended || state.AreaBytes != 17*extent {
		t.Fatalf("it has %d bytes: %+v", state.AreaBytes, state)
	}
	w.write(t, 16*256, 'b')
	for range 2 {
		if state := w.tend(t)[0]; state.Extended || state.Lost || state.Waiting != "" || state.UsedPercent < 90 {
			t.Fatalf("all was overwritten: %+v", state)
		}
	}
}

// lvm is killed after it has given a snapshot the last that it can use, and before the kernel has
// it: the kernel gets it all the same.
func TestThickSnapshotThatLags(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	w.VG.Snapshots = &lvm.SnapshotPolicy{InitialPercent: 90, ThresholdPercent: 70, ExtendPercent: 100}
	w.backend = w.Backend()
	rec := w.snapshot(t, 5)
	w.write(t, 12*256, 'a')
	w.Inject(lvmtest.Fault{Command: "lvextend", Mode: lvmtest.DieWithin})
	w.tend(t)
	if left := w.Faults(); len(left) > 0 {
		t.Fatalf("it was not extended: %+v", left)
	}
	for range 2 {
		state := w.tend(t)[0]
		node := lvm.NodeID{GroupName: rec.LVM.VGName, GroupUUID: rec.LVM.VGUUID, Name: rec.LVM.LVName, UUID: rec.LVM.LVUUID}
		status, _, err := w.Nodes().Snapshot(t.Context(), node)
		if err != nil || state.AreaBytes != 17*extent || int64(status.TotalSectors*512) != state.AreaBytes {
			t.Fatalf("the kernel has %d sectors, lvm knows of %+v (%v)", status.TotalSectors, state, err)
		}
	}
}

// What keeps a snapshot from being lost may be taken from the reserve, and nothing else may.
func TestThickSnapshotUsesReserve(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, (16+3+4)*extent)
	b, err := lvm.NewBackend(lvm.NewClient(vg.Runner(), vg.Flush), lvm.Options{
		GroupName: vg.Name, GroupUUID: vg.UUID, Devices: func() []string { return vg.Devices }, Nodes: vg.Nodes(), Seqno: vg.Seqno,
		Reserve: func(int64) int64 { return 4 * extent }, Journal: vg.Journal(), Metadata: vg.Metadata(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &thickWorld{VG: vg, backend: b}
	if w.rec, err = b.Create(t.Context(), spec(1, 16*extent)); err != nil {
		t.Fatal(err)
	}
	w.snapshot(t, 5)
	if _, err := b.Snapshot(t.Context(), w.snapshotSpec(6)); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("a snapshot out of the reserve: %v", err)
	}
	w.write(t, 5*256/2, 'a')
	if state := w.tend(t)[0]; !state.Extended || state.AreaBytes != 6*extent {
		t.Fatalf("with a reserve only: %+v", state)
	}
}

// What lvm refuses is refused before, with what to do about it.
func TestThickOriginDoesNotGrow(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	rec := w.snapshot(t, 5)
	commands := len(w.Commands())
	_, err := w.backend.Grow(t.Context(), id(1), w.rec, 20*extent)
	if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "snapshot-5") || len(w.Commands()) != commands {
		t.Fatalf("Grow with a snapshot: %v", err)
	}
	if err := w.backend.DeleteSnapshot(t.Context(), id(5), &rec); err != nil {
		t.Fatal(err)
	}
	if _, err := w.backend.Grow(t.Context(), id(1), w.rec, 20*extent); err != nil {
		t.Fatal(err)
	}
}

// A volume with snapshots of somebody else is left alone.
func TestThickOriginOfOthers(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	w.snapshot(t, 5)
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.SetTags("snap-"+id(5), "theirs") })
	if err := w.backend.Delete(t.Context(), id(1), &w.rec, volume.WipeZero); !errors.Is(err, volume.ErrInUse) {
		t.Fatalf("Delete: %v", err)
	}
	if _, err := w.backend.Locate(t.Context(), id(1), w.rec); err != nil {
		t.Fatal(err)
	}
}

// What a snapshot has kept is not left to the next owner of its extents.
func TestThickSnapshotIsWiped(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	w.write(t, 4, 's')
	rec := w.snapshot(t, 5)
	w.write(t, 4, 'x')
	if err := w.backend.DeleteSnapshot(t.Context(), id(5), &rec); err != nil {
		t.Fatal(err)
	}
	if err := w.backend.Delete(t.Context(), id(1), &w.rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if w.DiskHolds(slices.Repeat([]byte{'s'}, 4096)) {
		t.Fatal("the disk holds what the snapshot has kept")
	}
}

// A copy holds up nobody: its source may be written to, deleted and snapshotted, and other
// volumes are made.
func TestThickCopyHoldsUpNobody(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 96)
	w.write(t, 4, 's')
	w.OnCopy(func() {
		w.OnCopy(nil)
		w.write(t, 4, 'x')
		if _, err := w.backend.Create(t.Context(), spec(3, extent)); err != nil {
			t.Errorf("another volume: %v", err)
		}
		found, err := w.backend.List(t.Context())
		if err != nil || len(found) != 2 {
			t.Errorf("what is being filled is shown: %+v (%v)", found, err)
		}
		if err := w.backend.Delete(t.Context(), id(1), &w.rec, volume.WipeZero); err != nil {
			t.Errorf("the source: %v", err)
		}
	})
	secured, told := false, int64(0)
	rec, err := w.backend.Create(t.Context(), copySpec(2, 20*extent, volume.Source{
		ID: id(1), Record: w.rec, Secured: func() { secured = true }, Progress: func(done, total int64) {
			if told = done; total != 16*extent {
				t.Errorf("%d of %d bytes", done, total)
			}
		},
	}))
	if err != nil || !secured || told != 16*extent || rec.SizeBytes != 20*extent {
		t.Fatalf("the copy: %+v, secured %v, told of %d bytes (%v)", rec, secured, told, err)
	}
	loc, err := w.backend.Locate(t.Context(), id(2), rec)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(loc.Device)
	if err != nil || content[0] != 's' || content[4*4096-1] != 's' {
		t.Fatalf("the copy holds %q (%v)", content[0], err)
	}
	if all, waiting, err := w.backend.Deleted(t.Context()); all != 1 || waiting != 0 || err != nil {
		t.Fatalf("deleted are %d, and %d wait (%v)", all, waiting, err)
	}
	if err := w.backend.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, _, err := w.backend.Deleted(t.Context()); all != 0 || err != nil {
		t.Fatalf("after the sweep there are %d (%v)", all, err)
	}
}

// halfCopies fail with the power when they have written half of something else.
type halfCopies struct {
	lvm.Nodes

	cut func()
}

func (h halfCopies) Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) error {
	f, err := os.OpenFile(to.Device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Repeat([]byte{'h'}, int(from.SizeBytes/2)))
	h.cut()
	return errors.Join(err, f.Close(), h.Nodes.Copy(ctx, from, to, progress))
}

// The power fails while a copy is made, and the host activates all that there is when it boots.
// Half a copy is nobody's volume, and the copy begins anew: it holds what its source held when
// it was first asked for, whatever was written to that since.
func TestPowerLossInThickCopy(t *testing.T) {
	t.Parallel()
	for kind, restore := range map[string]bool{"clone": false, "restore": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newThickWorld(t, 96)
			w.write(t, 4096, 's')
			source := volume.Source{ID: id(1), Record: w.rec}
			if restore {
				source = volume.Source{ID: id(5), Record: w.snapshot(t, 5), Snapshot: true}
				w.write(t, 4, 'x')
			}
			half, err := lvm.NewBackend(lvm.NewClient(w.Runner(), w.Flush), lvm.Options{
				GroupName: w.Name, GroupUUID: w.UUID, Devices: func() []string { return w.Devices },
				Nodes: halfCopies{w.Nodes(), w.LoseCaches}, Seqno: w.Seqno, Journal: w.Journal(), Metadata: w.Metadata(),
			})
			if err != nil {
				t.Fatal(err)
			}
			wish := copySpec(2, 16*extent, source)
			if rec, err := half.Create(t.Context(), wish); err == nil {
				t.Fatalf("without power: %+v", rec)
			}
			w.Reboot()
			w.backend = w.Backend()
			for _, name := range []string{id(1), id(2)} {
				w.Activate(w.Name, name)
			}
			w.write(t, 4, 'y')
			w.noVolume(t, 2)
			rec, err := w.backend.Create(t.Context(), wish)
			if err != nil {
				t.Fatal(err)
			}
			loc, err := w.backend.Locate(t.Context(), id(2), rec)
			if err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(loc.Device)
			if err != nil || len(content) != 16*extent || slices.ContainsFunc(content, func(b byte) bool { return b != 's' }) {
				t.Errorf("the copy has %d bytes and begins with %q (%v)", len(content), content[0], err)
			}
		})
	}
}

// noVolume fails the test if anybody can have what is under the ID. By its record it could be
// found, which nobody has before it is handed out.
func (w *thickWorld) noVolume(t *testing.T, n int) {
	t.Helper()
	found, err := w.backend.List(t.Context())
	if err != nil || slices.ContainsFunc(found, func(f volume.Found) bool { return f.ID == id(n) }) {
		t.Errorf("it is shown: %+v (%v)", found, err)
	}
	if rec, err := w.backend.Create(t.Context(), spec(n, 16*extent)); !errors.Is(err, volume.ErrExists) {
		t.Errorf("it is handed out as a volume that begins blank: %+v (%v)", rec, err)
	}
	if x, err := w.backend.Examine(t.Context(), id(n)); !errors.Is(err, volume.ErrExists) {
		t.Errorf("it can be a left-over: %+v (%v)", x, err)
	}
	g, err := w.backend.Group(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lv := g.Volume(id(n))
	if lv == nil {
		t.Fatal("nothing is there")
	}
	rec := volume.Record{Mode: volume.ModeLVM, SizeBytes: lv.SizeBytes, LVM: &volume.LVMRecord{VGName: g.Name, VGUUID: g.UUID, LVName: lv.Name, LVUUID: lv.UUID}}
	from := volume.LeftOver{ID: id(n), Identity: g.UUID + "/" + lv.UUID}
	if _, err := w.backend.TakeOver(t.Context(), spec(3, 16*extent), from, func(context.Context) error { return nil }); !errors.Is(err, volume.ErrNotAdoptable) {
		t.Errorf("it can be adopted: %v", err)
	}
	if _, err := w.backend.Snapshot(t.Context(), volume.SnapshotSpec{ID: id(6), Name: "half", VolumeID: id(n), Volume: rec, Wipe: volume.WipeZero}); err == nil {
		t.Error("it can be snapshotted")
	}
}

// A source that is written to more than the pool can keep is copied again, from another
// snapshot.
func TestThickCopyOutrun(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	w.OnCopy(func() {
		w.OnCopy(nil)
		w.write(t, 8*256, 'x')
	})
	source := volume.Source{ID: id(1), Record: w.rec}
	if _, err := w.backend.Create(t.Context(), copySpec(2, 16*extent, source)); !errors.Is(err, volume.ErrBusy) {
		t.Fatalf("outrun: %v", err)
	}
	rec, err := w.backend.Create(t.Context(), copySpec(2, 16*extent, source))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.backend.Delete(t.Context(), id(2), &rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if all, err := w.backend.List(t.Context()); err != nil || len(all) != 1 {
		t.Fatalf("left are %+v (%v)", all, err)
	}
}

// A large volume is no volume any more as soon as it begins to be zeroed, and its zeroing
// holds up nobody.
func TestLargeVolumeIsQuarantined(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 1100*extent)
	b := vg.Backend()
	rec, err := b.Create(t.Context(), spec(1, 1024*extent))
	if err != nil {
		t.Fatal(err)
	}
	looked := false
	vg.OnWipe(func(policy volume.WipePolicy) {
		if policy != volume.WipeZero {
			return
		}
		looked = true
		if found, err := b.List(t.Context()); err != nil || len(found) != 0 {
			t.Errorf("while it is zeroed there is %+v (%v)", found, err)
		}
		if _, err := b.Locate(t.Context(), id(1), rec); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("while it is zeroed it is found: %v", err)
		}
		if _, err := b.Create(t.Context(), spec(2, extent)); err != nil {
			t.Errorf("another volume: %v", err)
		}
	})
	before := vg.Processes()
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeZero); err != nil || !looked {
		t.Fatalf("Delete: %v (looked: %v)", err, looked)
	}
	if n := vg.Processes() - before; n != 3 {
		t.Errorf("it took %d processes, of which one is the other volume's", n)
	}
}

// What a killed lvm has left suspended goes on, whatever it is of ours: a volume that was
// deleted before its snapshots, on which they lie, the snapshot that a volume is copied from,
// and what it is copied to. An owner's volume stays as it is.
func TestSuspendedThickVolumesGoOn(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 96)
	w.snapshot(t, 5)
	if _, err := w.backend.Create(t.Context(), spec(3, extent)); err != nil {
		t.Fatal(err)
	}
	w.OnCopy(func() {
		w.OnCopy(nil)
		w.Edit(w.Name, func(e *lvmtest.Editor) {
			e.SetTags(id(3), "theirs")
			for _, name := range []string{id(1), id(2), id(3), "copy-" + id(2), "snap-" + id(5)} {
				e.Suspend(name)
			}
		})
		w.onlyTheirsSuspended(t)
	})
	if _, err := w.backend.Create(t.Context(), copySpec(2, 16*extent, volume.Source{ID: id(1), Record: w.rec})); err != nil {
		t.Fatal(err)
	}
	if err := w.backend.Delete(t.Context(), id(1), &w.rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	w.Edit(w.Name, func(e *lvmtest.Editor) { e.Suspend("deleted-" + id(1)) })
	w.onlyTheirsSuspended(t)
}

// onlyTheirsSuspended has an agent that has just begun look at the group.
func (w *thickWorld) onlyTheirsSuspended(t *testing.T) {
	t.Helper()
	if _, err := w.Backend().Group(t.Context()); err != nil {
		t.Error(err)
	}
	if got := w.Suspended(); !slices.Equal(got, []string{id(3)}) {
		t.Errorf("suspended are %q", got)
	}
}
