// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// A snapshot tells of which volume it is as long as that is there, and a volume which snapshots it
// has. Looking activates nothing.
func TestExamineSnapshot(t *testing.T) {
	t.Parallel()
	for name, vg := range map[string]*lvmtest.VG{"thick": lvmtest.NewVG(t, 64*extent), "thin": lvmtest.NewThinVG(t, 64*extent)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := vg.Backend()
			rec, err := b.Create(t.Context(), spec(1, 8*extent))
			if err != nil {
				t.Fatal(err)
			}
			snapshot, err := b.Snapshot(t.Context(), volume.SnapshotSpec{ID: id(5), Name: "snapshot-5", VolumeID: id(1), Volume: rec})
			if err != nil {
				t.Fatal(err)
			}
			e, err := b.ExamineSnapshot(t.Context(), id(5))
			if err != nil || e.Record != snapshot && !e.Record.SameStorage(snapshot) || e.Name != "snapshot-5" || e.NameCut || e.Of != id(1) || e.OfName != spec(1, extent).Name || !e.Made.IsZero() {
				t.Fatalf("ExamineSnapshot = %+v, %v", e, err)
			}
			if v, err := b.Examine(t.Context(), id(1)); err != nil || !slices.Equal(v.Snapshots, []string{id(5) + " (snapshot-5)"}) || v.Of != "" {
				t.Errorf("Examine = %+v, %v", v, err)
			}
			for _, other := range []string{id(1), id(6)} {
				if e, err := b.ExamineSnapshot(t.Context(), other); !errors.Is(err, volume.ErrNotFound) {
					t.Errorf("ExamineSnapshot(%s) = %+v, %v", other, e, err)
				}
			}
			if _, err := b.ExamineSnapshot(t.Context(), "../5"); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("ExamineSnapshot of no ID: %v", err)
			}

			// What nobody has activated nobody has, and it is not activated to look.
			vg.Reboot()
			b = vg.Backend()
			if err := b.ProveSnapshotUnused(t.Context(), id(5), snapshot); err != nil {
				t.Errorf("ProveSnapshotUnused = %v", err)
			}
			if e, err = b.ExamineSnapshot(t.Context(), id(5)); err != nil || e.Device != "" {
				t.Errorf("it has been activated: %+v, %v", e, err)
			}
			vg.Activate(vg.Name, "snap-"+id(5))
			if e, err = b.ExamineSnapshot(t.Context(), id(5)); err != nil || e.Device == "" {
				t.Fatalf("ExamineSnapshot = %+v, %v", e, err)
			}
			release := vg.Hold(e.Device)
			if err := b.ProveSnapshotUnused(t.Context(), id(5), snapshot); !errors.Is(err, volume.ErrInUse) {
				t.Errorf("ProveSnapshotUnused = %v", err)
			}
			release()
			other := snapshot
			of := *snapshot.LVM
			of.LVUUID = rec.LVM.LVUUID
			other.LVM = &of
			if err := b.ProveSnapshotUnused(t.Context(), id(5), other); !errors.Is(err, volume.ErrIdentity) {
				t.Errorf("ProveSnapshotUnused of another = %v", err)
			}

			vg.Edit(vg.Name, func(e *lvmtest.Editor) {
				e.SetTags("snap-"+id(5), lvm.TagSnapshot+"snapshot-5", lvm.TagInstant+"20261127T150405.000000001Z")
			})
			if e, err := b.ExamineSnapshot(t.Context(), id(5)); err != nil || e.Made.Year() != 2026 {
				t.Errorf("one of a group: %+v, %v", e, err)
			}
			vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.SetTags("snap-"+id(5), "theirs") })
			if e, err := b.ExamineSnapshot(t.Context(), id(5)); !errors.Is(err, volume.ErrExists) {
				t.Errorf("without our mark: %+v, %v", e, err)
			}
			if v, err := b.Examine(t.Context(), id(1)); err != nil || len(v.Snapshots) > 0 {
				t.Errorf("Examine = %+v, %v", v, err)
			}
		})
	}
}

// What is left of a snapshot whose removal was cut short is none.
func TestExamineWhatIsLeftOfASnapshot(t *testing.T) {
	t.Parallel()
	w := newThickWorld(t, 64)
	rec := w.snapshot(t, 5)
	for n := 0; ; n++ {
		lost := w.LosePower(n)
		err := w.backend.DeleteSnapshot(t.Context(), id(5), &rec)
		died := lost()
		w.Reboot()
		w.backend = w.Backend()
		found, listErr := w.backend.ListSnapshots(t.Context())
		if listErr != nil {
			t.Fatal(listErr)
		}
		_, examErr := w.backend.ExamineSnapshot(t.Context(), id(5))
		if len(found) == 1 && examErr != nil || len(found) == 0 && !errors.Is(examErr, volume.ErrNotFound) {
			t.Fatalf("killed at step %d (%v): %d snapshots are listed, ExamineSnapshot = %v", n, err, len(found), examErr)
		}
		if !died {
			return
		}
	}
}
