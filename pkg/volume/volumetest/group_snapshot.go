// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// grouper returns the backend as one that makes group snapshots, or skips the test.
func (b *bench) grouper(t *testing.T) volume.GroupSnapshotter {
	t.Helper()
	s, ok := b.Backend.(volume.GroupSnapshotter)
	if !ok || !b.groups {
		t.Skip("this backend makes no group snapshots")
	}
	return s
}

// groupSpec is of the volumes with these numbers; their snapshots have the numbers from 5 on.
func (b *bench) groupSpec(volumes map[int]volume.Record) volume.GroupSnapshotSpec {
	spec := volume.GroupSnapshotSpec{Name: "group"}
	for n := range maxSteps {
		if rec, ok := volumes[n]; ok {
			spec.Snapshots = append(spec.Snapshots, b.snapshotSpec(4+n, n, rec))
		}
	}
	return spec
}

func (b *bench) snapshotGroup(t *testing.T, spec volume.GroupSnapshotSpec) volume.GroupSnapshot {
	t.Helper()
	group, err := b.grouper(t).SnapshotGroup(t.Context(), spec)
	if err != nil {
		t.Fatalf("SnapshotGroup: %v", err)
	}
	if len(group.Records) != len(spec.Snapshots) || group.TakenAt.IsZero() {
		t.Fatalf("SnapshotGroup returns %+v", group)
	}
	return group
}

// Snapshots of a group hold what their volumes held at its instant; they are found again,
// and not taken again, and each stands for itself.
func (s suite) testGroupSnapshot(t *testing.T) {
	b := s.place(t)
	b.grouper(t)
	first, second := b.create(t, 1), b.create(t, 2)
	volumes := map[int]volume.Record{1: first, 2: second}
	for n, rec := range volumes {
		writeMark(t, b.locate(t, n, rec), fmt.Sprintf("before-%d", n))
	}
	began := time.Now()
	group := b.snapshotGroup(t, b.groupSpec(volumes))
	if age := time.Since(group.TakenAt); age < 0 || group.TakenAt.Before(began.Add(-time.Second)) {
		t.Errorf("it was taken at %s, and now it is %s", group.TakenAt, time.Now())
	}
	for n, rec := range volumes {
		writeMark(t, b.locate(t, n, rec), "after")
	}
	b.reboot(t)
	spec := b.groupSpec(volumes)
	again := b.snapshotGroup(t, spec)
	spec.TakenAt = again.TakenAt
	told := b.snapshotGroup(t, spec)
	if !again.TakenAt.Equal(group.TakenAt) || !reflect.DeepEqual(again.Records, group.Records) || !reflect.DeepEqual(told, again) {
		t.Fatalf("SnapshotGroup again returns %+v and %+v, first it was %+v", again, told, group)
	}
	b.wantSnapshots(t, map[int]volume.Record{5: group.Records[0], 6: group.Records[1]})
	b.delete(t, 1, &first)
	b.delete(t, 2, &second)
	for i := range 2 {
		source := volume.Source{ID: ID(5 + i), Record: group.Records[i], Snapshot: true}
		b.wantCopy(t, b.copyOf(3+i, source, b.VolumeBytes), fmt.Sprintf("before-%d", 1+i), "after")
	}
	// What was taken, and told, is not taken again.
	b.deleteSnapshot(t, 5, &group.Records[0])
	_, err := b.grouper(t).SnapshotGroup(t.Context(), spec)
	wantError(t, "SnapshotGroup of which a part is gone", err, volume.ErrIdentity)
	b.wantSnapshots(t, map[int]volume.Record{6: group.Records[1]})
}

// A group that cannot be taken is not begun.
func (s suite) testGroupSnapshotRefused(t *testing.T) {
	b := s.place(t)
	groups := b.grouper(t)
	first, second := b.create(t, 1), b.create(t, 2)
	twice := b.groupSpec(map[int]volume.Record{1: first})
	twice.Snapshots = append(twice.Snapshots, b.snapshotSpec(7, 1, first))
	b.unchanged(t, func() {
		_, err := groups.SnapshotGroup(t.Context(), volume.GroupSnapshotSpec{Name: "group"})
		wantError(t, "SnapshotGroup of nothing", err, volume.ErrInvalid)
		_, err = groups.SnapshotGroup(t.Context(), twice)
		wantError(t, "SnapshotGroup with a volume twice", err, volume.ErrInvalid)
	})
	third := b.create(t, 3)
	spec := b.groupSpec(map[int]volume.Record{1: first, 2: second, 3: third})
	_, err := groups.SnapshotGroup(t.Context(), spec)
	wantError(t, "SnapshotGroup without room", err, volume.ErrNoSpace)
	b.wantSnapshots(t, nil)
	b.delete(t, 3, &third)
	_, err = groups.SnapshotGroup(t.Context(), spec)
	wantError(t, "SnapshotGroup of what is gone", err, volume.ErrNotFound)
	b.wantSnapshots(t, nil)
}

// Killed at each of its steps, the group is whole when it is asked for again.
func (s suite) testCrashInGroupSnapshot(t *testing.T) {
	for n := range 3 * maxSteps {
		finished := true
		t.Run(fmt.Sprintf("step%d", n), func(t *testing.T) {
			b := s.place(t)
			b.grouper(t)
			if b.CrashAt == nil {
				t.Skip("the harness cannot kill the backend")
			}
			volumes := map[int]volume.Record{1: b.create(t, 1), 2: b.create(t, 2)}
			for number, rec := range volumes {
				writeMark(t, b.locate(t, number, rec), "before")
			}
			spec := b.groupSpec(volumes)
			crashed := b.CrashAt(t, n)
			group, err := b.grouper(t).SnapshotGroup(t.Context(), spec)
			finished = !crashed()
			if finished && err != nil {
				t.Fatalf("nothing was killed, and yet: %v", err)
			}
			b.reboot(t)
			mark := "before"
			if err != nil {
				// Nobody was told, so that what is written now is in all of them, or in none.
				for number, rec := range volumes {
					writeMark(t, b.locate(t, number, rec), "between")
				}
			}
			again := b.snapshotGroup(t, spec)
			if err == nil && !reflect.DeepEqual(again.Records, group.Records) {
				t.Fatalf("it is %+v, and was %+v", again, group)
			}
			b.wantSnapshots(t, map[int]volume.Record{5: again.Records[0], 6: again.Records[1]})
			b.wantList(t, volumes)
			for number, rec := range volumes {
				b.delete(t, number, &rec)
			}
			for i := range 2 {
				source := volume.Source{ID: ID(5 + i), Record: again.Records[i], Snapshot: true}
				rec, err := b.Backend.Create(t.Context(), b.copyOf(3+i, source, b.VolumeBytes))
				if err != nil {
					t.Fatalf("Create of a copy: %v", err)
				}
				if i == 0 && hasMark(t, b.locate(t, 3, rec), "between") {
					mark = "between"
				}
				if !hasMark(t, b.locate(t, 3+i, rec), mark) {
					t.Fatalf("the snapshots are of two instants: the one of volume %d does not have %q", 1+i, mark)
				}
			}
		})
		if finished || t.Failed() {
			return
		}
	}
	t.Fatalf("the call has more than %d steps, or the harness never stops killing it", 3*maxSteps)
}
