// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func (s suite) testLocate(t *testing.T) {
	b := s.place(t)
	rec := b.create(t, 1)
	loc := b.locate(t, 1, rec)
	if (loc.Device == "") == (loc.Directory == "") {
		t.Fatalf("Locate returned %+v, want either a device or a directory", loc)
	}
	if !filepath.IsAbs(loc.Device + loc.Directory) {
		t.Fatalf("Locate returned a path that is not absolute: %+v", loc)
	}
	if again := b.locate(t, 1, rec); again != loc {
		t.Fatalf("Locate returned %+v and then %+v", loc, again)
	}
	_, err := b.Backend.Locate(t.Context(), ID(8), volume.Record{})
	wantError(t, "Locate of an unknown volume by an empty record", err, volume.ErrNotFound, volume.ErrIdentity, volume.ErrInvalid)
}

func (s suite) testLocateAfterReboot(t *testing.T) {
	b := s.place(t)
	first, second := b.create(t, 1), b.create(t, 2)
	writeMark(t, b.locate(t, 1, first), "first")
	writeMark(t, b.locate(t, 2, second), "second")
	before := b.capacity(t)
	for range 2 {
		b.reboot(t)
		b.wantList(t, map[int]volume.Record{1: first, 2: second})
		if got := b.capacity(t); got != before {
			t.Fatalf("Capacity is %+v after a reboot, was %+v", got, before)
		}
		if !hasMark(t, b.locate(t, 1, first), "first") || !hasMark(t, b.locate(t, 2, second), "second") {
			t.Fatal("a volume holds other bytes after a reboot")
		}
		wantSame(t, "Create after a reboot", b.create(t, 1), first)
	}
}

func (s suite) testLocateTampered(t *testing.T) {
	b := s.place(t)
	if b.Tamper == nil {
		t.Skip("the harness cannot tamper with a volume")
	}
	rec := b.create(t, 1)
	b.Tamper(t, ID(1), rec)
	for range 2 {
		_, err := b.Backend.Locate(t.Context(), ID(1), rec)
		wantError(t, "Locate of a tampered volume", err, volume.ErrIdentity)
		err = b.Backend.Delete(t.Context(), ID(1), &rec, volume.WipeZero)
		wantError(t, "Delete of a tampered volume", err, volume.ErrIdentity)
		b.reboot(t)
	}
}

func (s suite) testLocateVanished(t *testing.T) {
	b := s.place(t)
	if b.Vanish == nil {
		t.Skip("the harness cannot take a volume away")
	}
	rec, other := b.create(t, 1), b.create(t, 2)
	b.Vanish(t, ID(1), rec)
	for range 2 {
		_, err := b.Backend.Locate(t.Context(), ID(1), rec)
		wantError(t, "Locate of a vanished volume", err, volume.ErrNotFound)
		b.reboot(t)
	}
	b.delete(t, 1, &rec)
	b.wantList(t, map[int]volume.Record{2: other})
}

// The record of one volume is no key to another.
func (s suite) testForeignRecord(t *testing.T) {
	b := s.place(t)
	first, second := b.create(t, 1), b.create(t, 2)
	b.unchanged(t, func() {
		_, err := b.Backend.Locate(t.Context(), ID(1), second)
		wantError(t, "Locate by another volume's record", err, volume.ErrIdentity)
		err = b.Backend.Delete(t.Context(), ID(1), &second, volume.WipeZero)
		wantError(t, "Delete by another volume's record", err, volume.ErrIdentity)
		_, err = b.Backend.Grow(t.Context(), ID(1), second, b.VolumeBytes)
		wantError(t, "Grow by another volume's record", err, volume.ErrIdentity)
		b.settle(t)
	})
	b.locate(t, 1, first)
	b.locate(t, 2, second)
}

// A place that cannot be observed is not an empty place (I4).
func (s suite) testBlind(t *testing.T) {
	b := s.place(t)
	if b.Blind == nil {
		t.Skip("the harness cannot make observation fail")
	}
	rec := b.create(t, 1)
	undo := b.Blind(t)
	for name, f := range map[string]func() error{
		"Locate": func() error { _, err := b.Backend.Locate(t.Context(), ID(1), rec); return err },
		"Grow":   func() error { _, err := b.Backend.Grow(t.Context(), ID(1), rec, b.VolumeBytes); return err },
		"Create": func() error { _, err := b.Backend.Create(t.Context(), b.spec(1)); return err },
		"Delete": func() error { return b.Backend.Delete(t.Context(), ID(1), &rec, volume.WipeZero) },
		"Delete without a record": func() error {
			return b.Backend.Delete(t.Context(), ID(1), nil, volume.WipeZero)
		},
		"Delete of another": func() error { return b.Backend.Delete(t.Context(), ID(2), nil, volume.WipeZero) },
		"List":              func() error { _, err := b.Backend.List(t.Context()); return err },
		"Capacity":          func() error { _, err := b.Backend.Capacity(t.Context()); return err },
	} {
		err := f()
		if err == nil {
			t.Errorf("%s succeeded though nothing could be observed", name)
		}
		for _, wrong := range []error{volume.ErrNotFound, volume.ErrNoSpace, volume.ErrInvalid} {
			if errors.Is(err, wrong) {
				t.Errorf("%s took an observation that failed for an answer: %v", name, err)
			}
		}
	}
	undo()
	b.wantList(t, map[int]volume.Record{1: rec})
	b.locate(t, 1, rec)
}
