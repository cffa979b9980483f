// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

func (w *world) snapshotSpec() volume.SnapshotSpec {
	return volume.SnapshotSpec{ID: id(5), Name: "snap-5", VolumeID: id(2), Volume: w.rec}
}

func (w *world) prepareSnapshot(t *testing.T) {
	t.Helper()
	rec, err := w.backend.Snapshot(t.Context(), w.snapshotSpec())
	if err != nil {
		t.Fatal(err)
	}
	w.snapshot = rec
	// What is written afterwards is not in it.
	w.write(t, 2, w.rec, "later")
	w.write(t, 2, w.rec, "two\x00\x00")
}

// copyInto makes volume 1 as a copy, and fails if it is one of something else.
func (w *world) copyInto(t *testing.T, sizeBytes int64, source volume.Source) error {
	t.Helper()
	wish := spec(1, sizeBytes)
	wish.Source, wish.Fresh = &source, true
	rec, err := w.backend.Create(t.Context(), wish)
	if err == nil {
		if text := w.reads(t, 1, rec); text != "two" {
			return fmt.Errorf("the copy holds %q", text)
		}
	}
	return err
}

// The same for what is made of snapshots.
func TestFaultMatrixOfCopies(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	both := map[string]int64{id(2): 2 * extent, id(3): 2 * extent}
	with := func(name string, sizeBytes int64, snapshot bool) map[string]int64 {
		want := map[string]int64{name: sizeBytes}
		if snapshot {
			want["snapshot "+id(5)] = 2 * extent
		}
		maps.Copy(want, both)
		return want
	}
	snapshot := func(t *testing.T, w *world) { t.Helper(); w.prepareSnapshot(t) }
	restore := func(sizeBytes int64) func(t *testing.T, w *world) error {
		return func(t *testing.T, w *world) error {
			t.Helper()
			return w.copyInto(t, sizeBytes, volume.Source{ID: id(5), Record: w.snapshot, Snapshot: true})
		}
	}
	runFaults(t, func(t *testing.T) *world { t.Helper(); return newWorldIn(t, lvmtest.NewThinVG(t, 16*extent)) }, []faulted{
		{
			name: "snapshot", commands: []string{"lvcreate", "lvs", "pvs"},
			run: func(t *testing.T, w *world) error {
				rec, err := w.backend.Snapshot(t.Context(), w.snapshotSpec())
				if err == nil && rec.SizeBytes != 2*extent {
					t.Errorf("the snapshot is said to be %d bytes large", rec.SizeBytes)
				}
				return err
			},
			want: with("snapshot "+id(5), 2*extent, false),
		},
		{
			name: "delete snapshot", commands: []string{"lvremove", "lvs", "pvs"}, prepare: snapshot,
			run: func(t *testing.T, w *world) error {
				return w.backend.DeleteSnapshot(t.Context(), id(5), &w.snapshot)
			},
			want: both,
		},
		{
			name: "delete an origin", commands: []string{"lvremove", "lvs", "pvs"}, prepare: snapshot,
			run: func(t *testing.T, w *world) error {
				return w.backend.Delete(t.Context(), id(2), &w.rec, volume.WipeZero)
			},
			want: map[string]int64{id(3): 2 * extent, "snapshot " + id(5): 2 * extent},
		},
		{
			name: "restore", commands: []string{"lvcreate", "lvchange", "lvs", "pvs"}, prepare: snapshot,
			run: restore(2 * extent), want: with(id(1), 2*extent, true),
		},
		{
			name: "restore larger", commands: []string{"lvcreate", "lvchange", "lvextend", "lvs", "pvs"}, prepare: snapshot,
			run: restore(3 * extent), want: with(id(1), 3*extent, true), between: with(id(1), 2*extent, true),
		},
		{
			name: "clone", commands: []string{"lvcreate", "lvchange", "lvs", "pvs"},
			run: func(t *testing.T, w *world) error {
				t.Helper()
				return w.copyInto(t, 2*extent, volume.Source{ID: id(2), Record: w.rec})
			},
			want: with(id(1), 2*extent, false),
		},
	})
}
