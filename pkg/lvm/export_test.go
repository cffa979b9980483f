// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

// Waiting returns how many operations wait for the next process.
func (b *Backend) Waiting() int {
	b.queue.mu.Lock()
	defer b.queue.mu.Unlock()
	return len(b.queue.pending)
}
