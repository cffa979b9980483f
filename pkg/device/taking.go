// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import "sync"

// taking is the set of disks that calls of this process are at, so that they go
// for different ones instead of queueing for one lock.
type taking struct {
	mu    sync.Mutex
	disks map[string]bool
	wake  chan struct{}
}

// try adds the disk, unless another call is at it.
func (t *taking) try(disk string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.disks[disk] {
		return false
	}
	if t.disks == nil {
		t.disks = map[string]bool{}
	}
	t.disks[disk] = true
	return true
}

// end removes the disk and wakes those who wait.
func (t *taking) end(disk string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.disks, disk)
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
}

// ended returns a channel that is closed at the next end.
func (t *taking) ended() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wake == nil {
		t.wake = make(chan struct{})
	}
	return t.wake
}
