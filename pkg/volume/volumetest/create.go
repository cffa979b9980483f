// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func (s suite) testCreate(t *testing.T) {
	b := s.place(t)
	b.wantList(t, nil)
	first := b.create(t, 1)
	switch {
	case first.LVM != nil, first.Device != nil, first.Hostpath != nil:
	default:
		t.Fatalf("the record names no storage: %s", show(first))
	}
	second := b.create(t, 2)
	if first.SameStorage(second) {
		t.Fatalf("two volumes on one storage: %s", show(first))
	}
	wantSame(t, "Create again", b.create(t, 1), first)
	wantSame(t, "Create again", b.create(t, 2), second)
	b.wantList(t, map[int]volume.Record{1: first, 2: second})
}

// What an earlier owner left where a new volume is made is not at its ends, where it
// could be taken for a filesystem or keep one from being made.
func (s suite) testCreateOverRemains(t *testing.T) {
	b := s.place(t)
	b.leaveRemains(t)
	for n := range b.Volumes {
		rec, err := b.Backend.Create(t.Context(), b.spec(10+n))
		if errors.Is(err, volume.ErrNoSpace) {
			break // A backend may keep a place to itself that was not wiped.
		}
		if err != nil {
			t.Fatalf("Create over what an earlier owner left: %v", err)
		}
		wantBlankEnds(t, b.locate(t, 10+n, rec))
	}
}

// A volume that is found holds what it held, unless the caller knows that it was never
// handed out.
func (s suite) testCreateFound(t *testing.T) {
	b := s.place(t)
	rec := b.create(t, 1)
	writeMark(t, b.locate(t, 1, rec), "kept")
	b.create(t, 1)
	b.reboot(t)
	b.create(t, 1)
	if !hasMark(t, b.locate(t, 1, rec), "kept") {
		t.Fatal("Create has cleared a volume that it found")
	}
}

// More callers than there is room: those that fit get a volume of their own, the
// others ErrNoSpace, and nothing is lost between them.
func (s suite) testCreateConcurrently(t *testing.T) {
	b := s.place(t)
	callers := b.Volumes + 2
	records := make([]volume.Record, callers)
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() { records[n], errs[n] = b.Backend.Create(t.Context(), b.spec(n)) })
	}
	wg.Wait()

	made := map[int]volume.Record{}
	for n, err := range errs {
		switch {
		case err == nil:
			for m, other := range made {
				if other.SameStorage(records[n]) {
					t.Errorf("volumes %d and %d share one storage: %s", m, n, show(other))
				}
			}
			made[n] = records[n]
		case !errors.Is(err, volume.ErrNoSpace):
			t.Errorf("Create(%d): %v, want success or ErrNoSpace", n, err)
		}
	}
	if len(made) != b.Volumes {
		t.Fatalf("%d of %d concurrent creates succeeded, there is room for %d", len(made), callers, b.Volumes)
	}
	b.wantList(t, made)
}

func (s suite) testCreateInvalid(t *testing.T) {
	b := s.place(t)
	b.unchanged(t, func() {
		for name, change := range map[string]func(*volume.Spec){
			"size 0":           func(v *volume.Spec) { v.SizeBytes = 0 },
			"a negative size":  func(v *volume.Spec) { v.SizeBytes = -1 },
			"no ID":            func(v *volume.Spec) { v.ID = "" },
			"a path as ID":     func(v *volume.Spec) { v.ID = "../../../../../../../../../../etc/passwd"[:36] },
			"an ID upper-case": func(v *volume.Spec) { v.ID = "ABCDEF00-0000-4000-8000-000000000001" },
			"unknown access":   func(v *volume.Spec) { v.Access = "Tape" },
		} {
			spec := b.spec(1)
			change(&spec)
			_, err := b.Backend.Create(t.Context(), spec)
			wantError(t, "Create with "+name, err, volume.ErrInvalid)
		}
		for _, access := range []volume.Access{volume.AccessBlock, volume.AccessFilesystem} {
			if s.has(access) {
				continue
			}
			spec := b.spec(1)
			spec.Access = access
			_, err := b.Backend.Create(t.Context(), spec)
			wantError(t, "Create with access "+string(access), err, volume.ErrInvalid)
		}
	})
	if s.CanSnapshot {
		return
	}
	source := b.create(t, 2)
	b.unchanged(t, func() {
		spec := b.spec(1)
		spec.Source = &volume.Source{ID: ID(2), Record: source}
		_, err := b.Backend.Create(t.Context(), spec)
		wantError(t, "Create of a copy", err, volume.ErrInvalid)
	})
}

// A call whose caller has gone may have done its work or not; the next one finds
// out.
func (s suite) testCreateCancelled(t *testing.T) {
	b := s.place(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec, err := b.Backend.Create(ctx, b.spec(1))
	again := b.create(t, 1)
	if err == nil {
		wantSame(t, "Create after a cancelled one that succeeded", again, rec)
	}
	b.wantList(t, map[int]volume.Record{1: again})
}
