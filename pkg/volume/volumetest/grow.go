// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func (s suite) testGrow(t *testing.T) {
	b := s.place(t)
	rec := b.create(t, 1)
	writeMark(t, b.locate(t, 1, rec), "grown")
	b.unchanged(t, func() {
		for _, size := range []int64{1, rec.SizeBytes - 1, rec.SizeBytes} {
			got, err := b.Backend.Grow(t.Context(), ID(1), rec, size)
			if err != nil {
				t.Fatalf("Grow from %d to %d bytes: %v", rec.SizeBytes, size, err)
			}
			wantSame(t, "Grow to no more than there is", got, rec)
		}
		spec := b.spec(1)
		spec.SizeBytes = 1
		got, err := b.Backend.Create(t.Context(), spec)
		if err != nil {
			t.Fatalf("Create of a smaller volume that exists: %v", err)
		}
		wantSame(t, "Create of a smaller volume that exists", got, rec)
	})
	if !s.CanGrow {
		b.unchanged(t, func() {
			_, err := b.Backend.Grow(t.Context(), ID(1), rec, rec.SizeBytes+1)
			wantError(t, "Grow of a volume that cannot grow", err, volume.ErrInvalid, volume.ErrNoSpace)
			spec := b.spec(1)
			spec.SizeBytes = rec.SizeBytes + 1
			_, err = b.Backend.Create(t.Context(), spec)
			wantError(t, "Create of a larger volume that exists", err, volume.ErrInvalid, volume.ErrNoSpace)
		})
		return
	}

	before := b.capacity(t)
	grown, err := b.Backend.Grow(t.Context(), ID(1), rec, 2*b.VolumeBytes)
	if err != nil {
		t.Fatalf("Grow: %v", err)
	}
	if !grown.SameStorage(rec) || grown.SizeBytes < 2*b.VolumeBytes {
		t.Fatalf("Grow to %d bytes returned %s", 2*b.VolumeBytes, show(grown))
	}
	after := b.capacity(t)
	if by := grown.SizeBytes - rec.SizeBytes; after.FreeBytes != before.FreeBytes-by || after.AllocatedBytes != before.AllocatedBytes+by {
		t.Fatalf("Capacity went from %+v to %+v by a growth of %d bytes", before, after, by)
	}
	// The call may be repeated with the record that the first one had.
	for _, r := range []volume.Record{rec, grown} {
		again, err := b.Backend.Grow(t.Context(), ID(1), r, 2*b.VolumeBytes)
		if err != nil {
			t.Fatalf("Grow again: %v", err)
		}
		wantSame(t, "Grow again", again, grown)
	}
	b.reboot(t)
	loc := b.locate(t, 1, grown)
	if !hasMark(t, loc, "grown") {
		t.Fatal("growth has changed the bytes")
	}
	b.locate(t, 1, rec)

	spec := b.spec(1)
	spec.SizeBytes = 3 * b.VolumeBytes
	more, err := b.Backend.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("Create of a larger volume that exists: %v", err)
	}
	if !more.SameStorage(rec) || more.SizeBytes < spec.SizeBytes {
		t.Fatalf("Create of a larger volume that exists returned %s", show(more))
	}
	wantSame(t, "Create of a smaller volume that exists", b.create(t, 1), more)
}

func (s suite) testGrowNoSpace(t *testing.T) {
	b := s.place(t)
	if !s.CanGrow {
		t.Skip("volumes of this backend do not grow")
	}
	rec := b.create(t, 1)
	for n := 2; n <= b.Volumes; n++ {
		b.create(t, n)
	}
	b.unchanged(t, func() {
		_, err := b.Backend.Grow(t.Context(), ID(1), rec, 2*b.VolumeBytes)
		wantError(t, "Grow in a full place", err, volume.ErrNoSpace)
		_, err = b.Backend.Grow(t.Context(), ID(1), rec, 1<<62)
		wantError(t, "Grow to 4 EiB", err, volume.ErrNoSpace)
	})
	if loc := b.locate(t, 1, rec); loc.SizeBytes != rec.SizeBytes {
		t.Fatalf("a Grow that was refused made %d bytes of %d", loc.SizeBytes, rec.SizeBytes)
	}
	_, err := b.Backend.Grow(t.Context(), ID(77), rec, 1)
	wantError(t, "Grow of an unknown volume", err, volume.ErrNotFound, volume.ErrIdentity)
}
