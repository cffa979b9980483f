// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// ID returns the n-th of a row of valid volume IDs.
func ID(n int) string {
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", n)
}

// bench is a place and the short words of the tests.
type bench struct {
	*Place
	access    volume.Access
	snapshots bool
	groups    bool
}

func (s suite) place(t *testing.T) *bench {
	t.Helper()
	p := s.New(t)
	switch {
	case p.Backend == nil || p.Reboot == nil:
		t.Fatal("the harness must set Backend and Reboot")
	case p.VolumeBytes <= 0 || p.Volumes < 3:
		t.Fatal("the harness must offer room for at least 3 volumes")
	}
	return &bench{Place: p, access: s.access(), snapshots: s.CanSnapshot, groups: s.CanSnapshotGroup}
}

func (b *bench) spec(n int) volume.Spec {
	return volume.Spec{ID: ID(n), Name: fmt.Sprintf("pvc-%d", n), SizeBytes: b.VolumeBytes, Access: b.access}
}

// create makes the n-th volume and checks what every record must hold.
func (b *bench) create(t *testing.T, n int) volume.Record {
	t.Helper()
	rec, err := b.Backend.Create(t.Context(), b.spec(n))
	if err != nil {
		t.Fatalf("Create(%d): %v", n, err)
	}
	if rec.SizeBytes < b.VolumeBytes {
		t.Fatalf("Create(%d) made %d bytes, asked for %d", n, rec.SizeBytes, b.VolumeBytes)
	}
	return rec
}

func (b *bench) locate(t *testing.T, n int, rec volume.Record) volume.Location {
	t.Helper()
	loc, err := b.Backend.Locate(t.Context(), ID(n), rec)
	if err != nil {
		t.Fatalf("Locate(%d): %v", n, err)
	}
	if loc.SizeBytes < rec.SizeBytes {
		t.Fatalf("Locate(%d) says %d bytes, the record %d", n, loc.SizeBytes, rec.SizeBytes)
	}
	return loc
}

func (b *bench) delete(t *testing.T, n int, rec *volume.Record) {
	t.Helper()
	if err := b.Backend.Delete(t.Context(), ID(n), rec, volume.WipeZero); err != nil {
		t.Fatalf("Delete(%d): %v", n, err)
	}
	b.settle(t)
}

// leaveRemains makes a volume, fills it and deletes it without wiping it.
func (b *bench) leaveRemains(t *testing.T) {
	t.Helper()
	rec := b.create(t, 9)
	writeMark(t, b.locate(t, 9, rec), "remains")
	if err := b.Backend.Delete(t.Context(), ID(9), &rec, volume.WipeNone); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	b.settle(t)
}

func (b *bench) settle(t *testing.T) {
	t.Helper()
	if b.Settle != nil {
		b.Settle(t)
	}
}

func (b *bench) reboot(t *testing.T) {
	t.Helper()
	b.Backend = b.Reboot(t)
}

// capacity returns the capacity after checking what always holds of it.
func (b *bench) capacity(t *testing.T) volume.Capacity {
	t.Helper()
	c, err := b.Backend.Capacity(t.Context())
	if err != nil {
		t.Fatalf("Capacity: %v", err)
	}
	if c.FreeBytes < 0 || c.MaxVolumeBytes < 0 || c.AllocatedBytes < 0 ||
		c.MaxVolumeBytes > c.FreeBytes || c.AllocatedBytes+c.FreeBytes > c.TotalBytes {
		t.Fatalf("Capacity contradicts itself: %+v", c)
	}
	if n := len(b.list(t)); c.Volumes != n {
		t.Fatalf("Capacity counts %d volumes, List %d", c.Volumes, n)
	}
	return c
}

// list returns what List finds, by ID, none twice.
func (b *bench) list(t *testing.T) map[string]volume.Record {
	t.Helper()
	found, err := b.Backend.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	records := make(map[string]volume.Record, len(found))
	for _, f := range found {
		if _, twice := records[f.ID]; twice {
			t.Fatalf("List shows volume %s twice", f.ID)
		}
		records[f.ID] = f.Record
	}
	return records
}

// wantList checks that exactly these volumes are there.
func (b *bench) wantList(t *testing.T, want map[int]volume.Record) {
	t.Helper()
	have := b.list(t)
	for n, rec := range want {
		got, ok := have[ID(n)]
		if !ok {
			t.Errorf("List misses volume %d", n)
			continue
		}
		if !got.SameStorage(rec) || got.SizeBytes != rec.SizeBytes {
			t.Errorf("List shows volume %d as %s, want %s", n, show(got), show(rec))
		}
		delete(have, ID(n))
	}
	for id, rec := range have {
		t.Errorf("List shows a volume that should not be: %s %s", id, show(rec))
	}
	if t.Failed() {
		t.FailNow()
	}
}

// unchanged runs f and checks that neither List nor Capacity moved.
func (b *bench) unchanged(t *testing.T, f func()) {
	t.Helper()
	capacity, list := b.capacity(t), b.list(t)
	f()
	if got := b.capacity(t); got != capacity {
		t.Errorf("Capacity moved from %+v to %+v", capacity, got)
	}
	got := b.list(t)
	if len(got) != len(list) {
		t.Errorf("List moved from %d volumes to %d", len(list), len(got))
	}
	for id, rec := range list {
		if !got[id].SameStorage(rec) || got[id].SizeBytes != rec.SizeBytes {
			t.Errorf("volume %s moved from %s to %s", id, show(rec), show(got[id]))
		}
	}
}

func wantError(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Fatalf("%s = %v, want %v", what, err, want)
}

func wantSame(t *testing.T, what string, got, want volume.Record) {
	t.Helper()
	if !got.SameStorage(want) || got.SizeBytes != want.SizeBytes {
		t.Fatalf("%s returned %s, want %s", what, show(got), show(want))
	}
}

func show(r volume.Record) string {
	switch {
	case r.LVM != nil:
		return fmt.Sprintf("%s %d %+v", r.Mode, r.SizeBytes, *r.LVM)
	case r.Device != nil:
		return fmt.Sprintf("%s %d %+v", r.Mode, r.SizeBytes, *r.Device)
	case r.Hostpath != nil:
		return fmt.Sprintf("%s %d %+v", r.Mode, r.SizeBytes, *r.Hostpath)
	}
	return fmt.Sprintf("%s %d, no storage named", r.Mode, r.SizeBytes)
}
