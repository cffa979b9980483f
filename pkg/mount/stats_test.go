// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

// A subvolume with a limit has the size of that, and one without has that of its filesystem.
func TestStatsOfSubvolumes(t *testing.T) {
	loop := formatted(t, mount.Btrfs, uuidA)
	m := mount.NewMounter(mounttest.Here(t))
	top := filepath.Join(t.TempDir(), "top")
	mounttest.Unmount(t, top)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: top, FSType: mount.Btrfs}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "btrfs", "quota", "enable", top).CombinedOutput(); err != nil {
		t.Fatalf("btrfs quota enable: %v: %s", err, out)
	}
	dir, err := os.Open(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := (btrfs.Subvolumes{}).Create(int(dir.Fd()), "volume"); err != nil {
		t.Fatal(err)
	}
	source, target := filepath.Join(top, "volume"), filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := m.BindDirectory(t.Context(), mount.Bind{Source: source, Target: target}); err != nil {
		t.Fatal(err)
	}
	whole, err := m.Stats(t.Context(), target)
	if err != nil || whole.TotalBytes != sizeOf[mount.Btrfs] {
		t.Errorf("without a limit: %+v, %v", whole, err)
	}
	volume, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	id, err := btrfs.Subvolumes{}.ID(int(volume.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (btrfs.Groups{}).SetLimit(int(dir.Fd()), id, 16*mib); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(target, "file"), strings.Repeat("x", 4<<20))
	unix.Sync() // it counts what is committed
	s, err := m.Stats(t.Context(), target)
	if err != nil || s.TotalBytes != 16*mib || s.UsedBytes < 4*mib || s.UsedBytes > 5*mib || s.AvailableBytes != s.TotalBytes-s.UsedBytes {
		t.Errorf("with a limit: %+v, %v", s, err)
	}
	if err := (btrfs.Groups{}).SetLimit(int(dir.Fd()), id, 1<<50); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Stats(t.Context(), target); err != nil || s.TotalBytes != 1<<50 || s.AvailableBytes > whole.AvailableBytes {
		t.Errorf("with a limit that its filesystem cannot fill: %+v, %v", s, err)
	}
}
