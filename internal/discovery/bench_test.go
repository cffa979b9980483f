// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

// thousand is a host with 1,000 disks.
func thousand(b *testing.B) *fakeHost {
	host := newFakeHost(b)
	for i := range 1000 {
		host.addDisk(fmt.Sprintf("vd%03d", i), fmt.Sprintf("SERIAL-%d", i), i, 1<<30)
	}
	return host
}

// BenchmarkFirstScan walks, judges and publishes a node with 1,000 disks.
func BenchmarkFirstScan(b *testing.B) {
	host := thousand(b)
	for b.Loop() {
		inv := newTestInventory(b, host, newFakeClient(b))
		inv.start(b)
	}
}

// BenchmarkWalk reads 1,000 disks and finds no news.
func BenchmarkWalk(b *testing.B) {
	host := thousand(b)
	inv := newTestInventory(b, host, newFakeClient(b))
	inv.start(b)
	for b.Loop() {
		inv.walk(b)
	}
}

// BenchmarkLsblk is what util-linux needs to read the same disks.
func BenchmarkLsblk(b *testing.B) {
	host := thousand(b)
	if out, err := exec.Command("lsblk", "--sysroot", host.root, "--json", "--output-all").CombinedOutput(); err != nil || len(out) < 1000 {
		b.Skipf("lsblk reads no other root: %v: %.200s", err, out)
	}
	for b.Loop() {
		if err := exec.Command("lsblk", "--sysroot", host.root, "--json", "--output-all").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHotplug is one disk more among 1,000, from the kernel's event to its
// object.
func BenchmarkHotplug(b *testing.B) {
	host := thousand(b)
	inv := newTestInventory(b, host, newFakeClient(b))
	inv.start(b)
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		kernelName, serial := fmt.Sprintf("vx%05d", n), fmt.Sprintf("NEW-%d", n)
		host.addDisk(kernelName, serial, 2000+n, 1<<30)
		b.StartTimer()
		if _, err := inv.refresh(b.Context(), map[string]bool{kernelName: true}); err != nil {
			b.Fatal(err)
		}
		name := block.Name(testNode, block.Identity{Scheme: block.SchemeSerial, Value: serial})
		if _, err := inv.reconcile(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
}
