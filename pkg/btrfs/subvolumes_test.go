// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
)

// What the kernel is handed has the size that is part of each request. That it is understood
// is tested on a real btrfs, by the tests of hostpath.
func TestSizes(t *testing.T) {
	t.Parallel()
	for name, size := range map[string][2]uintptr{
		"btrfs_ioctl_vol_args":               {unsafe.Sizeof(btrfs.NamedArgs{}), 4096},
		"btrfs_ioctl_vol_args_v2":            {unsafe.Sizeof(btrfs.NamedArgs2{}), 4096},
		"btrfs_ioctl_get_subvol_info_args":   {unsafe.Sizeof(btrfs.InfoArgs{}), 504},
		"btrfs_ioctl_get_subvol_rootref_arg": {unsafe.Sizeof(btrfs.RefsArgs{}), 4096},
		"btrfs_ioctl_search_args_v2":         {unsafe.Sizeof(btrfs.SearchArgs{}), 112 + 1024},
		"btrfs_ioctl_qgroup_limit_args":      {unsafe.Sizeof(btrfs.LimitArgs{}), 48},
		"btrfs_ioctl_qgroup_create_args":     {unsafe.Sizeof(btrfs.CreateArgs{}), 16},
		"btrfs_ioctl_quota_rescan_args":      {unsafe.Sizeof(btrfs.RescanArgs{}), 64},
	} {
		if size[0] != size[1] {
			t.Errorf("%s has %d bytes, want %d", name, size[0], size[1])
		}
	}
}

// Elsewhere there are no subvolumes, and nothing is made.
func TestOtherFilesystems(t *testing.T) {
	t.Parallel()
	where := t.TempDir()
	dir, err := os.Open(where)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var s btrfs.Subvolumes
	switch has, err := s.Supported(fd); {
	case err != nil:
		t.Fatal(err)
	case has:
		t.Skip("the filesystem of the tests is a btrfs")
	}
	if is, err := s.Is(fd); err != nil || is {
		t.Errorf("Is = %t, %v", is, err)
	}
	if err := s.Create(fd, "a"); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Create = %v", err)
	}
	if err := s.Snapshot(fd, "a", fd); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Snapshot = %v", err)
	}
	if err := s.Remove(fd, "a"); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Remove = %v", err)
	}
	if err := s.Create(fd, strings.Repeat("a", 5000)); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("Create of a name that is too long = %v", err)
	}
	if _, err := s.ID(fd); err == nil {
		t.Error("ID of what is none")
	}
	if left, err := os.ReadDir(where); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
