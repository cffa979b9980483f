// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"fmt"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func (s suite) testCapacityFull(t *testing.T) {
	b := s.place(t)
	made := map[int]volume.Record{}
	for n := range b.Volumes {
		if c := b.capacity(t); !c.Fits(b.VolumeBytes) {
			t.Fatalf("%d volumes made, Capacity %+v says that there is no room for another", n, c)
		}
		made[n] = b.create(t, n)
	}
	if c := b.capacity(t); c.Fits(b.VolumeBytes) {
		t.Fatalf("Capacity %+v says that there is room in a full place", c)
	}
	b.unchanged(t, func() {
		_, err := b.Backend.Create(t.Context(), b.spec(99))
		wantError(t, "Create in a full place", err, volume.ErrNoSpace)
	})
	// What stands is found without any room.
	wantSame(t, "Create again in a full place", b.create(t, 0), made[0])
	rec := made[1]
	b.delete(t, 1, &rec)
	made[1] = b.create(t, 1)
	b.wantList(t, made)
}

// Fits and Create decide alike at the boundary, at every level of filling (I8).
func (s suite) testCapacityBoundary(t *testing.T) {
	for level := range 3 {
		// Each with a place of its own, of which a real disk has room for one.
		t.Run(fmt.Sprintf("level%d", level), func(t *testing.T) { s.testCapacityBoundaryAt(t, level) })
	}
}

func (s suite) testCapacityBoundaryAt(t *testing.T, level int) {
	t.Helper()
	b := s.place(t)
	for n := range level {
		b.create(t, n)
	}
	c := b.capacity(t)
	if c.Fits(c.MaxVolumeBytes+1) || c.Fits(0) || c.Fits(-1) {
		t.Fatalf("%+v fits more than its largest volume, or nothing at all", c)
	}
	b.unchanged(t, func() {
		spec := b.spec(50)
		spec.SizeBytes = c.MaxVolumeBytes + 1
		_, err := b.Backend.Create(t.Context(), spec)
		wantError(t, "Create of one byte more than fits", err, volume.ErrNoSpace)
		spec.SizeBytes = 1 << 62
		_, err = b.Backend.Create(t.Context(), spec)
		wantError(t, "Create of 4 EiB", err, volume.ErrNoSpace)
	})
	if !c.Fits(c.MaxVolumeBytes) {
		t.Fatalf("the largest volume does not fit into %+v", c)
	}
	spec := b.spec(51)
	spec.SizeBytes = c.MaxVolumeBytes
	rec, err := b.Backend.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("Create of the largest volume that fits %+v: %v", c, err)
	}
	b.locate(t, 51, rec)
	after := b.capacity(t)
	if after.FreeBytes > c.FreeBytes-c.MaxVolumeBytes || after.AllocatedBytes < c.AllocatedBytes+c.MaxVolumeBytes {
		t.Fatalf("Capacity went from %+v to %+v by a volume of %d bytes", c, after, c.MaxVolumeBytes)
	}
}
