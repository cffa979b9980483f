// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"
	"time"
)

func TestPoolsCountTheirVolumesAtIntervals(t *testing.T) {
	var counts touches
	start := time.Now()
	for _, step := range []struct {
		what string
		pool string
		at   time.Duration
		want time.Duration
	}{
		{"the first volume", "a", 0, touchDelay},
		{"another before it was counted", "a", touchDelay / 2, touchDelay / 2},
		{"another pool", "b", touchDelay / 2, touchDelay},
		{"right after the count", "a", touchDelay, touchSpacing},
		{"one more while that waits", "a", touchDelay + 2*time.Second, touchSpacing - 2*time.Second},
		{"after a while of silence", "a", time.Minute, touchDelay},
		{"a little before the spacing has passed", "a", time.Minute + touchDelay + touchSpacing - 2*time.Second, 2 * time.Second},
	} {
		if got := counts.after(step.pool, start.Add(step.at)); got != step.want {
			t.Errorf("%s: waits %s, want %s", step.what, got, step.want)
		}
	}
}
