// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/lvm"
)

func TestRemoveStaleNodes(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("device nodes need root")
	}
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func(name string, minor uint32) {
		must(unix.Mknod(filepath.Join(root, "dev/mapper", name), unix.S_IFBLK|0o600, int(unix.Mkdev(253, minor))))
	}
	link := func(target, name string) { must(os.Symlink(target, filepath.Join(root, "dev/berth-fast", name))) }
	for _, directory := range []string{"dev/mapper", "dev/berth-fast", "sys/dev/block/253:1/dm", "sys/dev/block/253:2/dm"} {
		must(os.MkdirAll(filepath.Join(root, directory), 0o755))
	}
	must(os.WriteFile(filepath.Join(root, "sys/dev/block/253:1/dm/name"), []byte("berth--fast-active\n"), 0o600))
	must(os.WriteFile(filepath.Join(root, "sys/dev/block/253:2/dm/name"), []byte("customer-data\n"), 0o600))
	node("berth--fast-active", 1)
	node("berth--fast-renumbered", 2) // the number is another device's now
	node("berth--fast-gone", 3)
	node("berth--fast-unlinked", 4)
	link("/dev/mapper/berth--fast-active", "active")
	link("/dev/mapper/berth--fast-renumbered", "renumbered")
	link("/dev/mapper/berth--fast-gone", "gone")
	link("/dev/mapper/berth--fast-no-node", "no-node")
	link("/dev/sda", "elsewhere")
	link("/dev/mapper/../sda", "climbing")
	must(os.WriteFile(filepath.Join(root, "dev/berth-fast/file"), nil, 0o600))

	names := func(directory string) []string {
		entries, err := os.ReadDir(filepath.Join(root, directory))
		must(err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for range 2 {
		must(lvm.RemoveStaleNodes(root, "berth-fast"))
		if got, want := names("dev/berth-fast"), []string{"active", "climbing", "elsewhere", "file"}; !slices.Equal(got, want) {
			t.Errorf("left are %q, want %q", got, want)
		}
		if got, want := names("dev/mapper"), []string{"berth--fast-active", "berth--fast-unlinked"}; !slices.Equal(got, want) {
			t.Errorf("left of the nodes are %q, want %q", got, want)
		}
	}
	for _, name := range []string{"active", "climbing", "elsewhere", "file"} {
		must(os.Remove(filepath.Join(root, "dev/berth-fast", name)))
	}
	must(lvm.RemoveStaleNodes(root, "berth-fast"))
	if _, err := os.Stat(filepath.Join(root, "dev/berth-fast")); !os.IsNotExist(err) {
		t.Errorf("the empty directory is left: %v", err)
	}
	must(lvm.RemoveStaleNodes(root, "berth-fast"))
	if err := lvm.RemoveStaleNodes(root, "../mapper"); err == nil {
		t.Error("a name that no group can have was taken")
	}
}
