// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

// Waiting returns how many operations wait for the next process.
func (b *Backend) Waiting() int {
	b.queue.mu.Lock()
	defer b.queue.mu.Unlock()
	return len(b.queue.pending)
}

// UnknownLegs is what RemoveUnknown removes.
func UnknownLegs(h HostNodes, groupName, groupUUID string, known func(string) bool) ([]string, error) {
	return h.unknownLegs(groupName, groupUUID, known)
}

// StaleTable is how Stale decides.
var StaleTable = staleTable
