// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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
}

func newWorld(t *testing.T) *world {
	t.Helper()
	vg := lvmtest.NewVG(t, 16*extent)
	w := &world{VG: vg, backend: vg.Backend()}
	w.rec, w.bystander = w.create(t, 2), w.create(t, 3)
	return w
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

func (w *world) snapshot(t *testing.T, n int) error {
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

// sizes returns the sizes of all volumes.
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
	return sizes
}

// Every command of every operation goes wrong in every way. The operation either
// has its effect or returns an error that does not claim to know better; and
// repeated, it converges.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	operations := []struct {
		name     string
		commands []string
		prepare  func(w *world)
		run      func(t *testing.T, w *world) error
		want     map[string]int64
		// check looks at more than the volumes in the end.
		check func(t *testing.T, w *world)
	}{
		{
			name: "snapshot", commands: []string{"lvcreate", "lvremove", "lvconvert", "lvchange", "lvs", "pvs"},
			run:   func(t *testing.T, w *world) error { return w.snapshot(t, 5) },
			want:  map[string]int64{id(2): 2 * extent, id(3): 2 * extent},
			check: func(t *testing.T, w *world) { w.wantSnapshots(t, id(5)) },
		},
		{
			name: "delete snapshot", commands: []string{"lvconvert", "lvchange", "lvremove", "lvs", "pvs"},
			prepare: func(w *world) { w.mustSnapshot(5) },
			run:     func(t *testing.T, w *world) error { return w.backend.DeleteSnapshot(t.Context(), id(5), nil) },
			want:    map[string]int64{id(2): 2 * extent, id(3): 2 * extent},
			check:   func(t *testing.T, w *world) { w.wantSnapshots(t) },
		},
		{
			name: "delete before snapshot", commands: []string{"lvchange", "lvrename", "lvs", "pvs"},
			prepare: func(w *world) { w.mustSnapshot(5) },
			run: func(t *testing.T, w *world) error {
				return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero)
			},
			want: map[string]int64{id(3): 2 * extent},
			check: func(t *testing.T, w *world) {
				w.wantSnapshots(t, id(5))
				if all, waiting, err := w.backend.Deleted(t.Context()); all != 1 || waiting != 1 || err != nil {
					t.Errorf("%d are deleted, and %d wait (%v)", all, waiting, err)
				}
			},
		},
		{
			name: "sweep", commands: []string{"lvremove", "lvs", "pvs"},
			prepare: func(w *world) {
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
				_, err := w.backend.Create(t.Context(), copySpec(1, 3*extent, volume.Source{ID: id(2), Record: w.rec}))
				return err
			},
			want: map[string]int64{id(1): 3 * extent, id(2): 2 * extent, id(3): 2 * extent},
			check: func(t *testing.T, w *world) {
				if c, err := w.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != 7*extent {
					t.Errorf("something is left of the copy: %+v (%v)", c, err)
				}
			},
		},
		{
			name: "restore", commands: []string{"lvcreate", "lvchange", "lvs", "pvs"},
			prepare: func(w *world) { w.mustSnapshot(5) },
			run: func(t *testing.T, w *world) error {
				found, err := w.backend.ListSnapshots(t.Context())
				if err != nil || len(found) != 1 {
					return fmt.Errorf("the snapshots are %+v: %w", found, err)
				}
				_, err = w.backend.Create(t.Context(), copySpec(1, 2*extent, volume.Source{ID: id(5), Record: found[0].Record, Snapshot: true}))
				return err
			},
			want: map[string]int64{id(1): 2 * extent, id(2): 2 * extent, id(3): 2 * extent},
		},
		{
			name: "create", commands: []string{"lvcreate", "lvs", "pvs"},
			run: func(t *testing.T, w *world) error {
				_, err := w.backend.Create(t.Context(), spec(1, 3*extent))
				return err
			},
			want: map[string]int64{id(1): 3 * extent, id(2): 2 * extent, id(3): 2 * extent},
		},
		{
			name: "create larger", commands: []string{"lvextend", "lvs", "pvs"},
			run: func(t *testing.T, w *world) error {
				_, err := w.backend.Create(t.Context(), spec(2, 3*extent))
				return err
			},
			want: map[string]int64{id(2): 3 * extent, id(3): 2 * extent},
		},
		{
			name: "create inactive", commands: []string{"lvchange", "lvs", "pvs"},
			prepare: func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
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
			prepare: func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
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
			name: "delete", commands: []string{"lvremove", "lvs", "pvs"},
			run: func(t *testing.T, w *world) error {
				return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero)
			},
			want: map[string]int64{id(3): 2 * extent},
		},
		{
			name: "delete inactive", commands: []string{"lvchange", "lvremove", "lvs", "pvs"},
			prepare: func(w *world) { w.Edit(w.Name, func(e *lvmtest.Editor) { e.Deactivate(id(2)) }) },
			run: func(t *testing.T, w *world) error {
				return w.backend.Delete(t.Context(), id(2), nil, volume.WipeZero)
			},
			want: map[string]int64{id(3): 2 * extent},
		},
	}
	for _, op := range operations {
		for _, command := range op.commands {
			for _, mode := range lvmtest.Modes() {
				for _, restart := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s %s/restart %v", op.name, command, mode, restart), func(t *testing.T) {
						t.Parallel()
						w := newWorld(t)
						if op.prepare != nil {
							op.prepare(w)
						}
						before := w.sizes(t)
						w.Inject(lvmtest.Fault{Command: command, Mode: mode})
						err := op.run(t, w)
						if len(w.Faults()) > 0 {
							// A command that this operation has no need of in this world (a report from the
							// cache) has not gone wrong; the rest must hold nevertheless.
							t.Logf("%s was not run", command)
						}
						for _, claim := range []error{volume.ErrNotFound, volume.ErrNoSpace, volume.ErrInvalid, volume.ErrIdentity, volume.ErrExists} {
							if errors.Is(err, claim) {
								t.Errorf("a fault was taken for knowledge: %v", err)
							}
						}
						if restart {
							w.Reboot()
							w.backend = w.Backend()
						}
						if now := w.sizes(t); err == nil && !equal(now, op.want) {
							t.Errorf("success was reported, and there is %v", now)
						} else if !equal(now, op.want) && !equal(now, before) {
							t.Errorf("half of it was done: %v", now)
						}
						for range 2 {
							if err := op.run(t, w); err != nil && !(op.name == "delete" && errors.Is(err, volume.ErrNotFound)) {
								t.Fatalf("repeated: %v", err)
							}
						}
						if now := w.sizes(t); !equal(now, op.want) {
							t.Errorf("in the end there is %v, want %v", now, op.want)
						}
						if _, err := w.backend.Locate(t.Context(), id(3), w.bystander); err != nil {
							t.Errorf("the bystander: %v", err)
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
