// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	mib    = 1 << 20
	extent = lvmtest.ExtentBytes
)

func id(n int) string { return fmt.Sprintf("a0000000-0000-4000-8000-%012d", n) }

func spec(n int, sizeBytes int64) volume.Spec {
	return volume.Spec{ID: id(n), Name: fmt.Sprintf("pvc-%d", n), SizeBytes: sizeBytes, Access: volume.AccessFilesystem}
}

// world is one state of storage in which every operation has something to do:
// volume 1 is not there, 2 is, 3 is a bystander.
type world struct {
	*lvmtest.VG
	backend   *lvm.Backend
	rec       volume.Record
	bystander volume.Record
	// snapshot of volume 2, where one was prepared.
	snapshot volume.Record
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldIn(t, lvmtest.NewVG(t, 16*extent))
}

func newWorldIn(t *testing.T, vg *lvmtest.VG) *world {
	t.Helper()
	w := &world{VG: vg, backend: vg.Backend()}
	w.rec, w.bystander = w.create(t, 2), w.create(t, 3)
	w.write(t, 2, w.rec, "two")
	w.write(t, 3, w.bystander, "three")
	return w
}

// write marks a volume, and reads tells what it was marked with.
func (w *world) write(t *testing.T, n int, rec volume.Record, text string) {
	t.Helper()
	loc, err := w.backend.Locate(t.Context(), id(n), rec)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(loc.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func (w *world) reads(t *testing.T, n int, rec volume.Record) string {
	t.Helper()
	loc, err := w.backend.Locate(t.Context(), id(n), rec)
	if err != nil {
		t.Fatalf("locate %d: %v", n, err)
	}
	f, err := os.Open(loc.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := make([]byte, 16)
	if _, err := f.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(text), "\x00")
}

func (w *world) create(t *testing.T, n int) volume.Record {
	t.Helper()
	rec, err := w.backend.Create(t.Context(), spec(n, 2*extent))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func (w *world) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (w *world) snapshotOf(ctx context.Context, n int) error {
	_, err := w.backend.Snapshot(ctx, volume.SnapshotSpec{ID: id(n), Name: "snapshot", VolumeID: id(2), Volume: w.rec, Wipe: volume.WipeZero})
	return err
}

func (w *world) trySnapshot(t *testing.T, n int) error {
	t.Helper()
	return w.snapshotOf(t.Context(), n)
}

func (w *world) mustSnapshot(n int) { w.must(w.snapshotOf(context.Background(), n)) }

func (w *world) wantSnapshots(t *testing.T, ids ...string) {
	t.Helper()
	found, err := w.backend.ListSnapshots(t.Context())
	if err != nil || len(found) != len(ids) {
		t.Fatalf("the snapshots are %+v (%v), want %q", found, err, ids)
	}
	for i, f := range found {
		if f.ID != ids[i] || f.Record.SizeBytes != 2*extent {
			t.Errorf("there is %+v, want %s", f, ids[i])
		}
	}
}

// sizes returns the sizes of all volumes and snapshots.
func (w *world) sizes(t *testing.T) map[string]int64 {
	t.Helper()
	found, err := w.backend.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, f := range found {
		sizes[f.ID] = f.Record.SizeBytes
	}
	if found, err = w.backend.ListSnapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		sizes["snapshot "+f.ID] = f.Record.SizeBytes
	}
	return sizes
}

// Every command of every operation goes wrong in every way. The operation either
// has its effect or returns an error that does not claim to know better; and
// repeated, it converges.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	for name, vg := range map[string]func(t *testing.T) *lvmtest.VG{
		"linear":  func(t *testing.T) *lvmtest.VG { return lvmtest.NewVG(t, 16*extent) },
		"striped": func(t *testing.T) *lvmtest.VG { return lvmtest.NewStripedVG(t, 2, 16*extent) },
		"mirror":  func(t *testing.T) *lvmtest.VG { return lvmtest.NewRaidVG(t, lvm.LayoutMirror, 2, 16*extent) },
		"thin":    func(t *testing.T) *lvmtest.VG { return lvmtest.NewThinVG(t, 16*extent) },
	} {
		t.Run(name, func(t *testing.T) {
			if name != "linear" {
				skipUnderRace(t)
			}
			t.Parallel()
			runFaults(t, func(t *testing.T) *world { t.Helper(); return newWorldIn(t, vg(t)) }, faultedOperations)
		})
	}
}

// The same of snapshots and copies of thick volumes.
func TestFaultMatrixOfThickCopies(t *testing.T) {
	t.Parallel()
	for name, vg := range map[string]func(t *testing.T) *lvmtest.VG{
		"linear":  func(t *testing.T) *lvmtest.VG { return lvmtest.NewVG(t, 16*extent) },
		"striped": func(t *testing.T) *lvmtest.VG { return lvmtest.NewStripedVG(t, 2, 16*extent) },
	} {
		t.Run(name, func(t *testing.T) {
			skipUnderRace(t)
			t.Parallel()
			runFaults(t, func(t *testing.T) *world { t.Helper(); return newWorldIn(t, vg(t)) }, faultedThickOperations)
		})
	}
}

// faulted is an operation in whose commands something goes wrong.
type faulted struct {
	name     string
	commands []string
	prepare  func(t *testing.T, w *world)
	run      func(t *testing.T, w *world) error
	want     map[string]int64
	// between may be there too, before it is repeated.
	between map[string]int64
	// check looks at more than the volumes in the end.
	check func(t *testing.T, w *world)
}

var faultedOperations = []faulted{
	{
		name: "create", commands: []string{"lvcreate", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			_, err := w.backend.Create(t.Context(), spec(1, 4*extent))
			return err
		},
		want: map[string]int64{id(1): 4 * extent, id(2): 2 * extent, id(3): 2 * extent},
	},
	{
		name: "create larger", commands: []string{"lvextend", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			_, err := w.backend.Create(t.Context(), spec(2, 4*extent))
			return err
		},
		want: map[string]int64{id(2): 4 * extent, id(3): 2 * extent},
	},
	{
		name: "create inactive", commands: []string{"lvchange", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
		run: func(t *testing.T, w *world) error {
			_, err := w.backend.Create(t.Context(), spec(2, 2*extent))
			return err
		},
		want: map[string]int64{id(2): 2 * extent, id(3): 2 * extent},
	},
	{
		name: "grow", commands: []string{"lvextend", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			_, err := w.backend.Grow(t.Context(), id(2), w.rec, 4*extent)
			return err
		},
		want: map[string]int64{id(2): 4 * extent, id(3): 2 * extent},
	},
	{
		name: "locate inactive", commands: []string{"lvchange", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
		run: func(t *testing.T, w *world) error {
			loc, err := w.backend.Locate(t.Context(), id(2), w.rec)
			if err == nil && loc.SizeBytes != 2*extent {
				return fmt.Errorf("located %+v", loc)
			}
			return err
		},
		want: map[string]int64{id(2): 2 * extent, id(3): 2 * extent},
	},
	{
		name: "take over", commands: []string{"lvrename", "lvchange", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			from := volume.LeftOver{ID: id(2), Identity: w.rec.LVM.VGUUID + "/" + w.rec.LVM.LVUUID}
			_, err := w.backend.TakeOver(t.Context(), spec(1, 2*extent), from, func(context.Context) error { return nil })
			return err
		},
		want:    map[string]int64{id(1): 2 * extent, id(3): 2 * extent},
		between: map[string]int64{id(2): 2 * extent},
		check: func(t *testing.T, w *world) {
			if x, err := w.backend.Examine(t.Context(), id(1)); err != nil || x.Name != spec(1, extent).Name {
				t.Errorf("it is %+v (%v)", x, err)
			}
		},
	},
	{
		name: "delete", commands: []string{"lvremove", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero)
		},
		want: map[string]int64{id(3): 2 * extent},
	},
	{
		name: "delete inactive", commands: []string{"lvchange", "lvremove", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
		run: func(t *testing.T, w *world) error {
			return w.backend.Delete(t.Context(), id(2), nil, volume.WipeZero)
		},
		want: map[string]int64{id(3): 2 * extent},
	},
}

// runFaults has each command of each operation go wrong in each way.
func runFaults(t *testing.T, newWorld func(t *testing.T) *world, operations []faulted) {
	t.Helper()
	for _, op := range operations {
		for _, command := range op.commands {
			for _, mode := range lvmtest.Modes() {
				for _, restart := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s %s/restart %v", op.name, command, mode, restart), func(t *testing.T) {
						t.Parallel()
						w := newWorld(t)
						if op.prepare != nil {
							op.prepare(t, w)
						}
						// lvm is asked for a report where the metadata cannot be read below it.
						w.SetTextless(command == "lvs" || command == "pvs")
						before := w.sizes(t)
						w.Inject(lvmtest.Fault{Command: command, Mode: mode})
						err := op.run(t, w)
						if len(w.Faults()) > 0 {
							// A command that this operation has no need of in this world (a report from the
							// cache) has not gone wrong; the rest must hold nevertheless.
							t.Logf("%s was not run", command)
						}
						for _, claim := range []error{volume.ErrNotFound, volume.ErrNoSpace, volume.ErrInvalid, volume.ErrIdentity, volume.ErrExists} {
							if errors.Is(err, claim) && !ofTheGroup(err) {
								t.Errorf("a fault was taken for knowledge: %v", err)
							}
						}
						if restart {
							w.Reboot()
							w.backend = w.Backend()
						}
						believing := w.backend
						if mode == lvmtest.WrongSizes {
							// Sizes that lvm tells are believed until the next look. What counts is what is there.
							w.backend = w.Backend()
						}
						if now := w.sizes(t); err == nil && !equal(now, op.want) {
							t.Errorf("success was reported, and there is %v", now)
						} else if !equal(now, op.want) && !equal(now, before) && !equal(now, op.between) {
							t.Errorf("half of it was done: %v", now)
						}
						w.backend = believing
						for range 2 {
							if err := op.run(t, w); err != nil && !(op.name == "delete" && errors.Is(err, volume.ErrNotFound)) {
								t.Fatalf("repeated: %v", err)
							}
						}
						if mode == lvmtest.WrongSizes {
							w.backend = w.Backend()
						}
						if now := w.sizes(t); !equal(now, op.want) {
							t.Errorf("in the end there is %v, want %v", now, op.want)
						}
						if text := w.reads(t, 3, w.bystander); text != "three" {
							t.Errorf("the bystander holds %q", text)
						}
						if op.want[id(2)] > 0 && w.reads(t, 2, w.rec) != "two" {
							t.Errorf("the volume holds %q", w.reads(t, 2, w.rec))
						}
						w.checkNodes(t)
						if op.check != nil {
							op.check(t, w)
						}
					})
				}
			}
		}
	}
}

// ofTheGroup is true for an error that says that the volume group is another one, which
// is no knowledge about a volume.
func ofTheGroup(err error) bool {
	return errors.Is(err, volume.ErrPoolUnavailable) && errors.Is(err, volume.ErrIdentity)
}

// checkNodes checks that each active volume has the size that the metadata says.
func (w *world) checkNodes(t *testing.T) {
	t.Helper()
	found, err := w.backend.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		loc, err := w.backend.Locate(t.Context(), f.ID, f.Record)
		if err != nil {
			t.Errorf("locate %s: %v", f.ID, err)
			continue
		}
		if info, err := os.Stat(loc.Device); err != nil || info.Size() != f.Record.SizeBytes {
			t.Errorf("%s has %d bytes (%v), recorded are %d", f.ID, info.Size(), err, f.Record.SizeBytes)
		}
	}
}

func equal(a, b map[string]int64) bool {
	if len(a) != len(b) {
		return false
	}
	for id, size := range a {
		if other, ok := b[id]; !ok || other != size {
			return false
		}
	}
	return true
}

// Snapshots and copies of volumes that have their extents for themselves.
var faultedThickOperations = []faulted{
	{
		name: "snapshot", commands: []string{"lvcreate", "lvremove", "lvconvert", "lvchange", "lvs", "pvs"},
		run:   func(t *testing.T, w *world) error { return w.trySnapshot(t, 5) },
		want:  map[string]int64{"snapshot " + id(5): 2 * extent, id(2): 2 * extent, id(3): 2 * extent},
		check: func(t *testing.T, w *world) { w.wantSnapshots(t, id(5)) },
	},
	{
		name: "delete snapshot", commands: []string{"lvconvert", "lvchange", "lvremove", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.mustSnapshot(5) },
		run:     func(t *testing.T, w *world) error { return w.backend.DeleteSnapshot(t.Context(), id(5), nil) },
		want:    map[string]int64{id(2): 2 * extent, id(3): 2 * extent},
		check:   func(t *testing.T, w *world) { w.wantSnapshots(t) },
	},
	{
		name: "delete before snapshot", commands: []string{"lvchange", "lvrename", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.mustSnapshot(5) },
		run: func(t *testing.T, w *world) error {
			return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero)
		},
		want: map[string]int64{"snapshot " + id(5): 2 * extent, id(3): 2 * extent},
		check: func(t *testing.T, w *world) {
			w.wantSnapshots(t, id(5))
			if all, waiting, err := w.backend.Deleted(t.Context()); all != 1 || waiting != 1 || err != nil {
				t.Errorf("%d are deleted, and %d wait (%v)", all, waiting, err)
			}
		},
	},
	{
		name: "sweep", commands: []string{"lvremove", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) {
			w.mustSnapshot(5)
			w.must(w.backend.Delete(context.Background(), id(2), &w.rec, volume.WipeZero))
			w.must(w.backend.DeleteSnapshot(context.Background(), id(5), nil))
		},
		run:  func(t *testing.T, w *world) error { return w.backend.Sweep(t.Context()) },
		want: map[string]int64{id(3): 2 * extent},
		check: func(t *testing.T, w *world) {
			if c, err := w.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != 2*extent {
				t.Errorf("something is left: %+v (%v)", c, err)
			}
		},
	},
	{
		name: "clone", commands: []string{"lvcreate", "lvconvert", "lvchange", "lvremove", "lvs", "pvs"},
		run: func(t *testing.T, w *world) error {
			_, err := w.backend.Create(t.Context(), copySpec(1, 4*extent, volume.Source{ID: id(2), Record: w.rec}))
			return err
		},
		want: map[string]int64{id(1): 4 * extent, id(2): 2 * extent, id(3): 2 * extent},
		check: func(t *testing.T, w *world) {
			if c, err := w.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != 8*extent {
				t.Errorf("something is left of the copy: %+v (%v)", c, err)
			}
		},
	},
	{
		name: "restore", commands: []string{"lvcreate", "lvchange", "lvs", "pvs"},
		prepare: func(_ *testing.T, w *world) { w.mustSnapshot(5) },
		run: func(t *testing.T, w *world) error {
			found, err := w.backend.ListSnapshots(t.Context())
			if err != nil || len(found) != 1 {
				return fmt.Errorf("the snapshots are %+v: %w", found, err)
			}
			_, err = w.backend.Create(t.Context(), copySpec(1, 2*extent, volume.Source{ID: id(5), Record: found[0].Record, Snapshot: true}))
			return err
		},
		want: map[string]int64{"snapshot " + id(5): 2 * extent, id(1): 2 * extent, id(2): 2 * extent, id(3): 2 * extent},
	},
}
