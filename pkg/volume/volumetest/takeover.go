// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"context"
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// taker skips the test where left-overs cannot be taken over.
func (b *bench) taker(t *testing.T) volume.LeftOverTaker {
	t.Helper()
	x, ok := b.Backend.(volume.LeftOverTaker)
	if !ok {
		t.Skip("the backend takes no left-overs over")
	}
	return x
}

// leave makes the n-th volume a left-over that holds the mark "killed".
func (b *bench) leave(t *testing.T, n int) volume.LeftOver {
	t.Helper()
	b.taker(t)
	rec := b.create(t, n)
	writeMark(t, b.locate(t, n, rec), "killed")
	return volume.LeftOver{ID: ID(n), Identity: b.examine(t, n).Identity}
}

// takeOver makes the left-over the n-th volume, and checks that it is whole.
func (b *bench) takeOver(t *testing.T, n int, from volume.LeftOver) volume.Record {
	t.Helper()
	rec, err := b.taker(t).TakeOver(t.Context(), b.spec(n), from, func(context.Context) error { return nil })
	if err != nil {
		t.Fatalf("TakeOver to %d: %v", n, err)
	}
	if rec.SizeBytes < b.VolumeBytes || !hasMark(t, b.locate(t, n, rec), "killed") {
		t.Fatalf("volume %d is %s, and does not hold what the left-over held", n, show(rec))
	}
	b.examine(t, n) // which has the new name
	return rec
}

// A left-over becomes another volume with all that it holds, and nothing is left of the old one.
func (s suite) testTakeOver(t *testing.T) {
	b := s.place(t)
	x := b.taker(t)
	empty := b.capacity(t)
	from := b.leave(t, 3)
	former := b.list(t)[ID(3)]
	refuse := func(what string, to int, from volume.LeftOver, sure error, want ...error) {
		t.Helper()
		b.unchanged(t, func() {
			_, err := x.TakeOver(t.Context(), b.spec(to), from, func(context.Context) error { return sure })
			wantError(t, "TakeOver of "+what, err, want...)
			if err := x.LetGo(t.Context(), ID(1)); err != nil {
				t.Errorf("LetGo of a volume that there is none of: %v", err)
			}
		})
	}
	unsure := errors.New("it is somebody's")
	refuse("another one", 1, volume.LeftOver{ID: from.ID, Identity: from.Identity + "x"}, nil, volume.ErrNotAdoptable)
	refuse("nothing", 1, volume.LeftOver{ID: ID(4), Identity: from.Identity}, nil, volume.ErrNotAdoptable)
	refuse("itself", 3, from, nil, volume.ErrInvalid)
	refuse("no ID", 1, volume.LeftOver{ID: "../3", Identity: from.Identity}, nil, volume.ErrInvalid, volume.ErrNotAdoptable)
	refuse("what is not sure", 1, from, unsure, unsure)
	other := b.create(t, 2)
	refuse("something to a volume that is there", 2, from, nil, volume.ErrIdentity, volume.ErrExists)
	b.delete(t, 2, &other)

	rec := b.takeOver(t, 1, from)
	// Whoever has the former record would share it with its new owner.
	b.unchanged(t, func() {
		_, err := b.Backend.Locate(t.Context(), from.ID, former)
		wantError(t, "Locate by the former record", err, volume.ErrIdentity, volume.ErrNotFound)
	})
	b.reboot(t)
	_, err := b.Backend.Locate(t.Context(), from.ID, former)
	wantError(t, "Locate by the former record after a reboot", err, volume.ErrIdentity, volume.ErrNotFound)
	x = b.taker(t)
	again, err := x.TakeOver(t.Context(), b.spec(1), from, func(context.Context) error { return unsure })
	if err != nil {
		t.Fatalf("TakeOver again: %v", err)
	}
	wantSame(t, "TakeOver again", again, rec)
	if err := x.LetGo(t.Context(), ID(1)); err != nil {
		t.Fatalf("LetGo: %v", err)
	}
	b.wantList(t, map[int]volume.Record{1: rec})
	_, err = x.Examine(t.Context(), from.ID)
	wantError(t, "Examine of the left-over", err, volume.ErrNotFound)
	b.delete(t, 3, nil) // there is none
	if s.CanGrow {
		if _, err := b.Backend.Grow(t.Context(), ID(1), rec, rec.SizeBytes+1); err != nil {
			t.Fatalf("Grow: %v", err)
		}
	}
	// It can be left over once more, and the old ID can come back.
	back := b.takeOver(t, 3, volume.LeftOver{ID: ID(1), Identity: b.examine(t, 1).Identity})
	b.wantList(t, map[int]volume.Record{3: back})
	b.delete(t, 3, &back)
	b.wantList(t, nil)
	if got := b.capacity(t); got != empty {
		t.Fatalf("something has leaked: Capacity is %+v, was %+v", got, empty)
	}
}

func (s suite) testTakeOverInUse(t *testing.T) {
	b := s.place(t)
	x := b.taker(t)
	if b.Hold == nil {
		t.Skip("the harness cannot hold a volume")
	}
	from := b.leave(t, 3)
	release := b.Hold(t, b.locate(t, 3, b.list(t)[ID(3)]))
	_, err := x.TakeOver(t.Context(), b.spec(1), from, func(context.Context) error { return nil })
	wantError(t, "TakeOver of what is held", err, volume.ErrInUse)
	wantError(t, "TakeOver of what is held", err, volume.ErrNotAdoptable)
	if !hasMark(t, b.locate(t, 3, b.list(t)[ID(3)]), "killed") {
		t.Error("it does not hold what it held")
	}
	release()
	b.takeOver(t, 1, from)
}

// A snapshot names its volume: it comes first.
func (s suite) testTakeOverOfAnOrigin(t *testing.T) {
	b := s.place(t)
	b.snapshotter(t)
	from := b.leave(t, 3)
	snap := b.snapshot(t, 5, 3, b.list(t)[ID(3)])
	b.unchanged(t, func() {
		_, err := b.taker(t).TakeOver(t.Context(), b.spec(1), from, func(context.Context) error { return nil })
		wantError(t, "TakeOver of a volume with a snapshot", err, volume.ErrNotAdoptable)
	})
	b.deleteSnapshot(t, 5, &snap)
	b.settle(t)
	b.takeOver(t, 1, from)
}

func (s suite) testPowerLossOfTakeOver(t *testing.T) {
	b := s.place(t)
	if b.LoseCaches == nil {
		t.Skip("the harness cannot take the power away")
	}
	from := b.leave(t, 3)
	rec := b.takeOver(t, 1, from)
	b.LoseCaches(t)
	b.reboot(t)
	b.wantList(t, map[int]volume.Record{1: rec})
	if again := b.takeOver(t, 1, from); !again.SameStorage(rec) {
		t.Errorf("TakeOver again = %s, was %s", show(again), show(rec))
	}
}

// Killed at any step, it is the left-over or the volume, with all that it holds.
func (s suite) testCrashInTakeOver(t *testing.T) {
	for name, letGo := range map[string]bool{"Again": false, "LetGo": true} {
		t.Run(name, func(t *testing.T) {
			var from volume.LeftOver
			s.crash(t, crashRun{
				prepare: func(t *testing.T, b *bench) { from = b.leave(t, 3) },
				act: func(t *testing.T, b *bench) error {
					_, err := b.taker(t).TakeOver(t.Context(), b.spec(1), from, func(context.Context) error { return nil })
					return err
				},
				converge: func(t *testing.T, b *bench) {
					if letGo {
						if err := b.taker(t).LetGo(t.Context(), ID(1)); err != nil {
							t.Fatalf("LetGo after the crash: %v", err)
						}
						have := b.list(t)
						_, before := have[ID(3)]
						_, after := have[ID(1)]
						if before == after {
							t.Fatalf("let go, there are %v", have)
						}
					}
					b.takeOver(t, 1, from)
				},
				want: func(b *bench) int64 { return b.VolumeBytes },
			})
		})
	}
}
