// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func (s suite) testDelete(t *testing.T) {
	b := s.place(t)
	empty := b.capacity(t)
	if err := b.Backend.Delete(t.Context(), ID(9), nil, volume.WipeZero); err != nil {
		t.Fatalf("Delete of a volume that never was: %v", err)
	}
	first, second := b.create(t, 1), b.create(t, 2)
	b.delete(t, 1, &first)
	b.wantList(t, map[int]volume.Record{2: second})
	_, err := b.Backend.Locate(t.Context(), ID(1), first)
	wantError(t, "Locate of a deleted volume", err, volume.ErrNotFound)
	b.unchanged(t, func() { b.delete(t, 1, &first) })
	b.unchanged(t, func() { b.delete(t, 1, nil) })
	b.locate(t, 2, second)
	b.delete(t, 2, &second)
	b.wantList(t, nil)
	if got := b.capacity(t); got != empty {
		t.Fatalf("Capacity is %+v after everything was deleted, was %+v", got, empty)
	}
	// An ID may be used again, and is a new volume then.
	again := b.create(t, 1)
	b.wantList(t, map[int]volume.Record{1: again})
}

// What was made but never recorded is found by its ID.
func (s suite) testDeleteWithoutRecord(t *testing.T) {
	b := s.place(t)
	empty := b.capacity(t)
	b.create(t, 1)
	b.reboot(t)
	b.delete(t, 1, nil)
	b.wantList(t, nil)
	if got := b.capacity(t); got != empty {
		t.Fatalf("Capacity is %+v after everything was deleted, was %+v", got, empty)
	}
}

func (s suite) testDeleteInUse(t *testing.T) {
	b := s.place(t)
	if b.Hold == nil {
		t.Skip("the harness cannot hold a volume")
	}
	rec := b.create(t, 1)
	loc := b.locate(t, 1, rec)
	writeMark(t, loc, "held")
	release := b.Hold(t, loc)
	b.unchanged(t, func() {
		wantError(t, "Delete of a held volume",
			b.Backend.Delete(t.Context(), ID(1), &rec, volume.WipeZero), volume.ErrInUse)
		wantError(t, "Delete of a held volume without a record",
			b.Backend.Delete(t.Context(), ID(1), nil, volume.WipeZero), volume.ErrInUse)
		b.settle(t)
	})
	release()
	if !hasMark(t, b.locate(t, 1, rec), "held") {
		t.Fatal("a Delete that was refused has touched the bytes")
	}
	b.delete(t, 1, &rec)
	b.wantList(t, nil)
}

// The next owners together get every byte there is, and find nothing of the last
// one's.
func (s suite) testDeleteErases(t *testing.T) {
	b := s.place(t)
	rec := b.create(t, 1)
	writeMark(t, b.locate(t, 1, rec), "secret")
	b.delete(t, 1, &rec)
	for n := range b.Volumes {
		rec := b.create(t, 10+n)
		if hasMark(t, b.locate(t, 10+n, rec), "secret") {
			t.Fatalf("the owner of volume %d can read what the deleted volume held", 10+n)
		}
	}
}
