// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestRunShowsEveryStepOnceItEnded(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := New(&out, 12)
	if err := p.Run("build kubelet", func(s *Step) error { s.Detail("cached"); return nil }); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := p.Run("boot", func(*Step) error { return boom }); !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "boot: ") {
		t.Errorf("error of a step = %v", err)
	}
	want := regexp.MustCompile(`^\[ 1/12\] build kubelet \(cached\) \d\.\ds\n\[ 2/12\] boot FAILED after \d\.\ds\n$`)
	if !want.MatchString(out.String()) {
		t.Errorf("printed %q", out.String())
	}
}

func TestRunShowsThatASlowStepLives(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := New(&out, 1)
	p.Every = time.Millisecond
	err := p.Run("slow", func(s *Step) error {
		tick := time.Tick(time.Millisecond)
		for deadline := time.Now().Add(5 * time.Second); ; <-tick {
			p.mu.Lock()
			printed := strings.Contains(out.String(), "… ")
			p.mu.Unlock()
			if printed {
				return nil
			}
			if time.Now().After(deadline) {
				return errors.New("no line in 5 s")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
