// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"slices"
	"testing"
)

// What was unpacked is run by its own loader: the machine's C library may be older.
func TestQEMUArgv(t *testing.T) {
	t.Parallel()
	unpacked, err := Machine{QEMU: QEMU{Root: "/cache/qemu/unpacked"}, Name: "node1"}.Argv()
	if err != nil {
		t.Fatal(err)
	}
	if program := slices.Index(unpacked, "/cache/qemu/unpacked/usr/bin/qemu-system-x86_64"); program < 1 || unpacked[0] != "/cache/qemu/unpacked/usr/lib64/ld-linux-x86-64.so.2" {
		t.Errorf("command line %q does not run the unpacked QEMU by its loader", unpacked[:8])
	}
	own, err := Machine{Name: "node1"}.Argv()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"qemu-system-x86_64", "-name", "node1"}; !slices.Equal(own[:3], want) {
		t.Errorf("command line begins %q, want %q", own[:3], want)
	}
}
