// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs_test

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/quota"
)

// What is no btrfs has no groups, and says so.
func TestGroupsElsewhere(t *testing.T) {
	t.Parallel()
	dir, err := os.Open("/dev/shm")
	if err != nil {
		t.Skipf("needs a tmpfs that is mounted: %v", err)
	}
	defer dir.Close()
	fd := int(dir.Fd())
	var g btrfs.Groups
	if err := g.Check(fd); !errors.Is(err, quota.ErrUnsupported) || errors.Is(err, quota.ErrUncounted) {
		t.Errorf("Check = %v", err)
	}
	if _, err := g.Usage(fd, 300); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Usage = %v", err)
	}
	if err := g.SetLimit(fd, 300, 1<<20); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("SetLimit = %v", err)
	}
	if err := g.Remove(fd, 300); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Remove = %v", err)
	}
}

// The whole filesystem is no volume: neither it nor what the kernel takes for the subvolume of
// the directory is limited or removed.
func TestGroupsOfNoSubvolume(t *testing.T) {
	t.Parallel()
	var g btrfs.Groups
	for _, id := range []uint64{0, 5, 255} {
		if err := g.SetLimit(-1, id, 1<<20); !errors.Is(err, unix.EINVAL) {
			t.Errorf("SetLimit of %d = %v", id, err)
		}
		if err := g.Remove(-1, id); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Remove of %d = %v", id, err)
		}
	}
	if err := g.SetLimit(-1, 256, -1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetLimit to less than nothing = %v", err)
	}
}

func TestFirstItem(t *testing.T) {
	t.Parallel()
	answer := make([]byte, 64)
	for size, ok := range map[uint32]bool{0: false, 1: true, 32: true, 33: false, 1 << 31: false} {
		binary.LittleEndian.PutUint32(answer[28:], size)
		got, err := btrfs.FirstItem(answer)
		if (err == nil) != ok || ok && len(got) != int(size) {
			t.Errorf("an item of %d bytes: %d, %v", size, len(got), err)
		}
	}
	if _, err := btrfs.FirstItem(answer[:31]); err == nil {
		t.Error("less than a header was taken for an item")
	}
}
