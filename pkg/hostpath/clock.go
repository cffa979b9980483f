// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// clockInterval is how often the clock is written down while somebody goes by it, and how
// often what is kept is looked through at least.
const clockInterval = 5 * time.Minute

// clock counts how long a root has been looked after, and nothing else: not the time of
// day, which a machine without a battery begins far in the past and then sets forward by
// years, and not the time while the agent was away. What goes by it is kept too long, never
// too short.
type clock struct {
	elapsed func() time.Duration

	mu sync.Mutex
	// known is set once base is.
	known bool
	// base is what had been counted when the backend was made, when the process had run for
	// since.
	base, since time.Duration
	// written is what was written down last.
	written time.Duration
}

// clockRecord is what is written down.
type clockRecord struct {
	CountedSeconds int64 `json:"countedSeconds"`
}

// read returns what was counted. atLeast is what is known to have been counted by other
// means: a clock that was lost goes on from there.
func (c *clock) read(root *os.Root, atLeast func() (time.Duration, error)) (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		least, err := atLeast()
		if err != nil {
			return 0, err
		}
		c.written = readClock(root)
		c.base, c.known = max(c.written, least), true
	}
	return c.base + c.elapsed() - c.since, nil
}

// readClock returns what was written down; 0 when nothing can be read, which makes
// everything be kept longer.
func readClock(root *os.Root) time.Duration {
	data, err := root.ReadFile(clockFile)
	var rec clockRecord
	if err != nil || json.Unmarshal(data, &rec) != nil || rec.CountedSeconds < 0 || rec.CountedSeconds > maxSeconds {
		return 0
	}
	return time.Duration(rec.CountedSeconds) * time.Second
}

// maxSeconds a time.Duration can hold.
const maxSeconds = int64(1<<63-1) / int64(time.Second)

// isDue reports whether what was counted is to be written down.
func (c *clock) isDue(counted time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return counted-c.written >= clockInterval
}

// write writes down what was counted.
func (c *clock) write(root *os.Root, counted time.Duration) error {
	if err := writeFile(root, clockFile, clockRecord{CountedSeconds: int64(counted / time.Second)}); err != nil {
		return fmt.Errorf("write %s: %w", clockFile, err)
	}
	if err := root.Rename(clockFile+tmpSuffix, clockFile); err != nil {
		return fmt.Errorf("write %s: %w", clockFile, err)
	}
	if err := syncDir(root, berthDir); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = counted
	return nil
}
