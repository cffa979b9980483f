// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"testing"
)

// BenchmarkFirstScan walks, judges and publishes a node with 1,000 disks.
func BenchmarkFirstScan(b *testing.B) {
	host := newFakeHost(b)
	for i := range 1000 {
		host.addDisk(fmt.Sprintf("vd%03d", i), fmt.Sprintf("SERIAL-%d", i), i, 1<<30)
	}
	for b.Loop() {
		inv := newTestInventory(b, host, newFakeClient(b))
		inv.start(b)
	}
}

// BenchmarkWalk reads 1,000 disks and finds no news.
func BenchmarkWalk(b *testing.B) {
	host := newFakeHost(b)
	for i := range 1000 {
		host.addDisk(fmt.Sprintf("vd%03d", i), fmt.Sprintf("SERIAL-%d", i), i, 1<<30)
	}
	inv := newTestInventory(b, host, newFakeClient(b))
	inv.start(b)
	for b.Loop() {
		inv.walk(b)
	}
}
