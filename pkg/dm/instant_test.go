// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

var errKernel = errors.New("the kernel says no")

// switches are devices that do what a test wants.
type switches struct {
	mu        sync.Mutex
	suspended map[string]bool
	// log of what was done, in its order.
	log []string
	// before is called ahead of each call, which its error ends.
	before func(call string) error
}

func (s *switches) do(call string, change func()) error {
	if s.before != nil {
		if err := s.before(call); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, call)
	if change != nil {
		change()
	}
	return nil
}

func (s *switches) Suspend(uuid string) error {
	return s.do("suspend "+uuid, func() { s.suspended[uuid] = true })
}

func (s *switches) Resume(uuid string) error {
	return s.do("resume "+uuid, func() { delete(s.suspended, uuid) })
}

func (s *switches) Message(uuid, text string) error { return s.do(uuid+": "+text, nil) }

func (s *switches) Suspended(uuid string) (bool, error) {
	still := false
	err := s.do("look at "+uuid, func() { still = s.suspended[uuid] })
	return still, err
}

func (s *switches) still() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.suspended {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func anInstant() Instant {
	return Instant{
		Devices: []string{"a", "b"}, Limit: time.Second,
		Messages: []TargetMessage{
			{Device: "pool", Text: "delete 3", MayBeGone: true},
			{Device: "pool", Text: "create_snap 3 1"},
			{Device: "pool", Text: "delete 4", MayBeGone: true},
			{Device: "pool", Text: "create_snap 4 2"},
		},
	}
}

func TestInstant(t *testing.T) {
	t.Parallel()
	s := &switches{suspended: map[string]bool{}}
	if err := anInstant().Take(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"suspend a", "suspend b", "pool: delete 3", "pool: create_snap 3 1", "pool: delete 4", "pool: create_snap 4 2",
		"look at a", "look at b",
	}
	if got := s.log[:len(want)]; !slices.Equal(got, want) || len(s.still()) > 0 {
		t.Errorf("done: %q; %q stand still", s.log, s.still())
	}
}

// Whatever call fails, and however, nothing stands still afterwards, and it is not said to
// have been taken.
func TestInstantFailsAtEachStep(t *testing.T) {
	t.Parallel()
	for n := range 8 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			calls := 0
			s := &switches{suspended: map[string]bool{}}
			var mu sync.Mutex
			s.before = func(string) error {
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls == n+1 {
					return errKernel
				}
				return nil
			}
			if err := anInstant().Take(t.Context(), s); !errors.Is(err, errKernel) {
				t.Errorf("Take = %v", err)
			}
			if still := s.still(); len(still) > 0 {
				t.Errorf("%q stand still", still)
			}
		})
	}
}

// What an earlier attempt has deleted may be gone; what is copied may not.
func TestInstantWithoutData(t *testing.T) {
	t.Parallel()
	for call, want := range map[string]error{"pool: delete 3": nil, "pool: create_snap 3 1": unix.ENODATA} {
		s := &switches{suspended: map[string]bool{}, before: func(now string) error {
			if now == call {
				return fmt.Errorf("send: %w", unix.ENODATA)
			}
			return nil
		}}
		if err := anInstant().Take(t.Context(), s); !errors.Is(err, want) {
			t.Errorf("%s: Take = %v, want %v", call, err, want)
		}
	}
}

// A call from which the kernel does not come back in time ends the instant: the devices go
// on meanwhile, and also the one that comes to stand still in the end.
func TestInstantIsSlow(t *testing.T) {
	t.Parallel()
	for _, slow := range []string{"suspend a", "suspend b", "pool: delete 3", "pool: create_snap 4 2", "look at b"} {
		synctest.Test(t, func(t *testing.T) {
			s := &switches{suspended: map[string]bool{}}
			stuck := make(chan struct{})
			s.before = func(call string) error {
				if call == slow {
					<-stuck
				}
				return nil
			}
			began := time.Now()
			if err := anInstant().Take(t.Context(), s); !errors.Is(err, ErrInstantOver) {
				t.Errorf("%s: Take = %v", slow, err)
			}
			if took := time.Since(began); took != time.Second {
				t.Errorf("%s: it took %s", slow, took)
			}
			close(stuck)
			synctest.Wait()
			if still := s.still(); len(still) > 0 {
				t.Errorf("%s: %q stand still", slow, still)
			}
			for _, line := range s.log {
				if slow == "suspend b" && line == "pool: delete 3" {
					t.Errorf("it went on after the end: %q", s.log)
				}
			}
		})
	}
}

func TestInstantIsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		stuck := make(chan struct{})
		s := &switches{suspended: map[string]bool{}}
		s.before = func(call string) error {
			if call == "suspend b" {
				cancel(errKernel)
				<-stuck
			}
			return nil
		}
		if err := anInstant().Take(ctx, s); !errors.Is(err, ErrInstantOver) || !errors.Is(err, errKernel) {
			t.Errorf("Take = %v", err)
		}
		close(stuck)
		synctest.Wait()
		if still := s.still(); len(still) > 0 {
			t.Errorf("%q stand still", still)
		}
	})
}

// Somebody else may resume a device; then it is not known what was copied.
func TestInstantIsDisturbed(t *testing.T) {
	t.Parallel()
	s := &switches{suspended: map[string]bool{}}
	s.before = func(call string) error {
		if call == "pool: delete 4" {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.suspended, "a")
		}
		return nil
	}
	if err := anInstant().Take(t.Context(), s); !errors.Is(err, ErrInstantOver) {
		t.Errorf("Take = %v", err)
	}
}

func TestInstantOfNothing(t *testing.T) {
	t.Parallel()
	for name, i := range map[string]Instant{"no messages": {Devices: []string{"a"}, Limit: time.Second}, "no limit": {Messages: anInstant().Messages}} {
		if err := i.Take(t.Context(), &switches{suspended: map[string]bool{}}); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: Take = %v", name, err)
		}
	}
}
