// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// examiner skips the test where volumes cannot be examined.
func (b *bench) examiner(t *testing.T) volume.Examiner {
	t.Helper()
	x, ok := b.Backend.(volume.Examiner)
	if !ok {
		t.Skip("the backend does not examine its volumes")
	}
	return x
}

func (b *bench) examine(t *testing.T, n int) volume.Examination {
	t.Helper()
	e, err := b.examiner(t).Examine(t.Context(), ID(n))
	if err != nil {
		t.Fatalf("Examine(%d): %v", n, err)
	}
	if e.Identity == "" || e.Name != b.spec(n).Name || e.NameCut {
		t.Fatalf("Examine(%d) = %+v, want an identity and the name %s", n, e, b.spec(n).Name)
	}
	return e
}

// What is known of a volume without any object, and that a volume which takes the place of
// another one never has its identity.
func (s suite) testExamine(t *testing.T) {
	b := s.place(t)
	_, err := b.examiner(t).Examine(t.Context(), ID(1))
	wantError(t, "Examine of nothing", err, volume.ErrNotFound)
	_, err = b.examiner(t).Examine(t.Context(), "../1")
	wantError(t, "Examine of no ID", err, volume.ErrInvalid)

	rec, other := b.create(t, 1), b.create(t, 2)
	writeMark(t, b.locate(t, 1, rec), "kept")
	first := b.examine(t, 1)
	wantSame(t, "Examine", first.Record, rec)
	if second := b.examine(t, 2); second.Identity == first.Identity {
		t.Fatalf("two volumes have the identity %s", second.Identity)
	}
	b.unchanged(t, func() {
		b.reboot(t)
		if again := b.examine(t, 1); again.Identity != first.Identity {
			t.Fatalf("the identity is %s after a reboot, was %s", again.Identity, first.Identity)
		}
		if err := b.examiner(t).ProveUnused(t.Context(), ID(1), rec); err != nil {
			t.Fatalf("ProveUnused: %v", err)
		}
	})
	if !hasMark(t, b.locate(t, 1, rec), "kept") {
		t.Fatal("the volume holds something else after it was examined")
	}
	if s.CanGrow {
		if rec, err = b.Backend.Grow(t.Context(), ID(1), rec, rec.SizeBytes+1); err != nil {
			t.Fatalf("Grow: %v", err)
		}
		if grown := b.examine(t, 1); grown.Identity != first.Identity || grown.Record.SizeBytes != rec.SizeBytes {
			t.Fatalf("Examine of a grown volume = %+v, want %d bytes and the identity %s", grown, rec.SizeBytes, first.Identity)
		}
	}
	err = b.examiner(t).ProveUnused(t.Context(), ID(1), other)
	wantError(t, "ProveUnused by the record of another volume", err, volume.ErrIdentity, volume.ErrNotFound)

	b.delete(t, 1, &rec)
	_, err = b.examiner(t).Examine(t.Context(), ID(1))
	wantError(t, "Examine of a deleted volume", err, volume.ErrNotFound)
	b.create(t, 1)
	if again := b.examine(t, 1); again.Identity == first.Identity && !s.WholeDisks {
		t.Fatalf("the volume that was made after the first was deleted has its identity %s", again.Identity)
	}
}

func (s suite) testExamineInUse(t *testing.T) {
	b := s.place(t)
	x := b.examiner(t)
	if b.Hold == nil {
		t.Skip("the harness cannot hold a volume")
	}
	rec := b.create(t, 1)
	release := b.Hold(t, b.locate(t, 1, rec))
	b.unchanged(t, func() {
		wantError(t, "ProveUnused of a held volume", x.ProveUnused(t.Context(), ID(1), rec), volume.ErrInUse)
	})
	release()
	if err := x.ProveUnused(t.Context(), ID(1), rec); err != nil {
		t.Fatalf("ProveUnused after the release: %v", err)
	}
	if b.Blind == nil {
		return
	}
	undo := b.Blind(t)
	defer undo()
	if _, err := x.Examine(t.Context(), ID(1)); err == nil {
		t.Error("Examine of what cannot be seen returns no error")
	}
	if err := x.ProveUnused(t.Context(), ID(1), rec); err == nil {
		t.Error("ProveUnused of what cannot be seen returns no error")
	}
}
