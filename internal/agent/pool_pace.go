// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"time"
)

const (
	// touchDelay is how long a pool waits for more volumes before it counts again.
	touchDelay = time.Second
	// touchSpacing is the least time between two such counts: while volumes come one after the
	// other, their Pool's numbers are for people, and each is a write to the API server. Who
	// admits a volume counts for himself, and so does who tells the scheduler.
	touchSpacing = 5 * time.Second
)

// touches remembers when each pool counts, or counted last, because of its volumes. The zero
// value is ready for use.
type touches struct {
	mu   sync.Mutex
	next map[string]time.Time
}

// after returns how long a pool waits whose volumes have changed now.
func (t *touches) after(pool string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts, before := t.next[pool]
	if !counts.After(now) {
		if t.next == nil {
			t.next = map[string]time.Time{}
		}
		earliest := counts.Add(touchSpacing)
		counts = now.Add(touchDelay)
		if before && earliest.After(counts) {
			counts = earliest
		}
		t.next[pool] = counts
	}
	return counts.Sub(now)
}
