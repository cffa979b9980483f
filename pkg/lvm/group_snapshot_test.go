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

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// groupWorld is a thin pool with two volumes of a group, 2 and 3.
type groupWorld struct {
	*world

	spec volume.GroupSnapshotSpec
}

func newGroupWorld(t *testing.T) *groupWorld {
	t.Helper()
	vg := lvmtest.NewThinVG(t, 32*extent)
	w := &world{VG: vg, backend: vg.Backend()}
	w.rec, w.bystander = w.create(t, 2), w.create(t, 3)
	return &groupWorld{w, groupOf(map[int]volume.Record{2: w.rec, 3: w.bystander})}
}

func groupOf(volumes map[int]volume.Record) volume.GroupSnapshotSpec {
	spec := volume.GroupSnapshotSpec{Name: "group"}
	for n := range 10 {
		if rec, ok := volumes[n]; ok {
			spec.Snapshots = append(spec.Snapshots, volume.SnapshotSpec{ID: id(10 + n), Name: fmt.Sprintf("snap-%d", n), VolumeID: id(n), Volume: rec})
		}
	}
	return spec
}

func (w *groupWorld) take(t *testing.T) volume.GroupSnapshot {
	t.Helper()
	group, err := w.backend.SnapshotGroup(t.Context(), w.spec)
	if err != nil {
		t.Fatal(err)
	}
	return group
}

// write puts a text at the beginning of a volume.
func (w *groupWorld) write(t *testing.T, n int, text string) {
	t.Helper()
	f, err := os.OpenFile(w.device(t, id(n), w.spec.Snapshots[n-2].Volume), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func (w *groupWorld) device(t *testing.T, id string, rec volume.Record) string {
	t.Helper()
	loc, err := w.backend.Locate(t.Context(), id, rec)
	if err != nil {
		t.Fatal(err)
	}
	return loc.Device
}

// read returns the beginning of what a snapshot of volume n holds.
func (w *groupWorld) read(t *testing.T, group volume.GroupSnapshot, n int) string {
	t.Helper()
	source := &volume.Source{ID: id(10 + n), Record: group.Records[n-2], Snapshot: true}
	spec := spec(20+n, source.Record.SizeBytes)
	spec.Source = source
	rec, err := w.backend.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(w.device(t, id(20+n), rec))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.backend.Delete(t.Context(), id(20+n), &rec, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(data[:32]), "\x00")
}

// It costs two processes of lvm, and no volume is copied that could be written to.
func TestGroupSnapshotStandsStill(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	copies := 0
	w.BetweenCopies(func(still bool) {
		if copies++; !still {
			t.Error("a volume that goes on is copied")
		}
	})
	before, commands := w.Processes(), len(w.Commands())
	w.take(t)
	if n := w.Processes() - before; n != 2 || copies != 2 {
		t.Errorf("%d processes and %d copies: %q", n, copies, w.Commands()[commands:])
	}
	before = w.Processes()
	w.take(t)
	if n := w.Processes() - before; n != 0 || copies != 2 {
		t.Errorf("found again by %d processes and %d copies", n, copies)
	}
	if still := w.Suspended(); len(still) > 0 {
		t.Errorf("%q stand still", still)
	}
}

// Every step goes wrong in every way: what is told is not taken again, repeated it
// converges, no volume is left standing still, and the snapshots are of one instant.
func TestGroupSnapshotFaults(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"lvcreate", lvmtest.InstantCommand, "lvchange", "lvs", "pvs"} {
		for _, mode := range lvmtest.Modes() {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s/restart %v", command, mode, restart), func(t *testing.T) {
					t.Parallel()
					w := newGroupWorld(t)
					w.write(t, 2, "before")
					w.write(t, 3, "before")
					w.Inject(lvmtest.Fault{Command: command, Mode: mode})
					told, err := w.backend.SnapshotGroup(t.Context(), w.spec)
					for _, claim := range []error{volume.ErrNotFound, volume.ErrNoSpace, volume.ErrInvalid, volume.ErrIdentity, volume.ErrExists} {
						if errors.Is(err, claim) && !ofTheGroup(err) {
							t.Errorf("a fault was taken for knowledge: %v", err)
						}
					}
					if restart {
						w.backend = w.Backend() // of the next process; the host goes on
					}
					want := "before"
					if err != nil {
						want = "after"
					}
					w.write(t, 2, "after")
					w.write(t, 3, "after")
					group := w.take(t)
					if still := w.Suspended(); len(still) > 0 {
						t.Errorf("%q stand still", still)
					}
					if err == nil && !group.TakenAt.Equal(told.TakenAt) {
						t.Errorf("it was told to be of %s, and is of %s", told.TakenAt, group.TakenAt)
					}
					first, second := w.read(t, group, 2), w.read(t, group, 3)
					if first != second {
						t.Errorf("the snapshots hold %q and %q", first, second)
					}
					if err == nil && first != want {
						t.Errorf("the snapshots hold %q, and were told when that was %q", first, want)
					}
					w.checkNodes(t)
					for _, s := range w.spec.Snapshots {
						if err := w.backend.DeleteSnapshot(t.Context(), s.ID, nil); err != nil {
							t.Errorf("delete: %v", err)
						}
					}
				})
			}
		}
	}
}

// An lvm that is killed while it makes a plain snapshot leaves the volume suspended. It goes
// on at once, or, when the agent was killed with it, with the first look of the next one.
func TestSuspendedByKilledLVM(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		w := newGroupWorld(t)
		resumed := 0
		open := func() *lvm.Backend {
			b, err := lvm.NewBackend(lvm.NewClient(w.Runner(), w.Flush), lvm.Options{
				GroupName: w.Name, GroupUUID: w.UUID, Devices: func() []string { return w.Devices }, Thin: w.Policy(),
				Nodes: w.Nodes(), Seqno: w.Seqno, Instants: w.Instants(), Resumed: func(n int) { resumed += n },
			})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		b := open()
		if both {
			w.Suspend(id(2))
		} else {
			w.Inject(lvmtest.Fault{Command: "lvcreate", Mode: lvmtest.DieWithin})
			if _, err := b.Snapshot(t.Context(), w.spec.Snapshots[0]); err != nil {
				t.Fatalf("it is there: %v", err)
			}
		}
		if both {
			if len(w.Suspended()) != 1 {
				t.Fatalf("%q stand still, and one should", w.Suspended())
			}
			if _, err := open().Group(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if still := w.Suspended(); len(still) > 0 || resumed != 1 {
			t.Errorf("both killed %v: %q stand still, %d resumed", both, still, resumed)
		}
	}
}

// wrongInstants hands the instant to a test and returns what that wants.
type wrongInstants func(lvm.Instant) error

func (f wrongInstants) Take(_ context.Context, i lvm.Instant) error { return f(i) }

// An instant that took too long is none: the error says so, and nothing is marked.
func TestGroupSnapshotTakesTooLong(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	b, err := lvm.NewBackend(lvm.NewClient(w.Runner(), w.Flush), lvm.Options{
		GroupName: w.Name, GroupUUID: w.UUID, Devices: func() []string { return w.Devices }, Thin: w.Policy(), Nodes: w.Nodes(), Seqno: w.Seqno,
		Instants: wrongInstants(func(lvm.Instant) error {
			w.Suspend(id(2)) // and was killed
			return fmt.Errorf("take: %w", dm.ErrInstantOver)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.SnapshotGroup(t.Context(), w.spec); !errors.Is(err, dm.ErrInstantOver) {
		t.Errorf("SnapshotGroup = %v", err)
	}
	if still := w.Suspended(); len(still) > 0 {
		t.Errorf("%q stand still", still)
	}
	for _, command := range w.Commands() {
		if strings.Contains(command, lvm.TagInstant) {
			t.Errorf("%s", command)
		}
	}
	w.take(t) // and then it goes well
}

// A volume that has grown since an attempt that was cut short has a snapshot of its size.
func TestGroupSnapshotOfGrownVolume(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	w.Inject(lvmtest.Fault{Command: lvmtest.InstantCommand, Mode: lvmtest.DieBefore})
	if _, err := w.backend.SnapshotGroup(t.Context(), w.spec); err == nil {
		t.Fatal("nothing was killed")
	}
	grown, err := w.backend.Grow(t.Context(), id(2), w.rec, 4*extent)
	if err != nil {
		t.Fatal(err)
	}
	w.spec.Snapshots[0].Volume = grown
	if group := w.take(t); group.Records[0].SizeBytes != 4*extent {
		t.Errorf("it has %d bytes", group.Records[0].SizeBytes)
	}
}

// What only has the name of a snapshot is not touched.
func TestGroupSnapshotTouchesNothingElse(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*lvmtest.Editor){
		"another volume of the snapshot's name": func(e *lvmtest.Editor) { e.SetTags("snap-"+id(12), "theirs") },
		"a snapshot without its origin":         func(e *lvmtest.Editor) { e.Replace(id(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newGroupWorld(t)
			w.Inject(lvmtest.Fault{Command: lvmtest.InstantCommand, Mode: lvmtest.DieBefore})
			if _, err := w.backend.SnapshotGroup(t.Context(), w.spec); err == nil {
				t.Fatal("nothing was killed")
			}
			w.Edit(w.Name, edit)
			copies := 0
			w.BetweenCopies(func(bool) { copies++ })
			if _, err := w.backend.SnapshotGroup(t.Context(), w.spec); err == nil || copies > 0 {
				t.Errorf("SnapshotGroup = %v, %d copies", err, copies)
			}
		})
	}
}
