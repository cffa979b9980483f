// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

// mounted mounts a new filesystem and returns the mounter, the loop device and where.
func mounted(t *testing.T, fsType string, options ...string) (m *mount.Mounter, device, target string) {
	t.Helper()
	loop := formatted(t, fsType, uuidA)
	m = mount.NewMounter(mounttest.Here(t))
	target = filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: fsType, Options: options}); err != nil {
		t.Fatal(err)
	}
	return m, loop.Path, target
}

func TestConditionOfAWholeFilesystem(t *testing.T) {
	for _, fsType := range everyType {
		for _, options := range [][]string{nil, {"ro"}} {
			t.Run(strings.Join(append([]string{fsType}, options...), " "), func(t *testing.T) {
				m, _, target := mounted(t, fsType, options...)
				if c, err := m.Condition(t.Context(), target); err != nil || c != (mount.Condition{}) {
					t.Errorf("%+v, %v; want nothing", c, err)
				}
			})
		}
	}
	m := mount.NewMounter(mounttest.Here(t))
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		if c, err := m.Condition(t.Context(), path); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("%s: %+v, %v; want ErrNotFound", path, c, err)
		}
	}
}

func TestConditionAfterAnErrorOfExt4(t *testing.T) {
	m, device, target := mounted(t, mount.Ext4, "errors=remount-ro")
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("a test"), 0); err != nil {
		t.Fatal(err)
	}
	if c, err := m.Condition(t.Context(), target); err != nil || c != (mount.Condition{ReadOnly: true, Errors: 1}) {
		t.Errorf("%+v, %v; want read-only and one error", c, err)
	}
}

func TestConditionOfXFSThatWasShutDown(t *testing.T) {
	m, _, target := mounted(t, mount.XFS)
	dir, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// xfs(5), XFS_IOC_GOINGDOWN with XFS_FSOP_GOING_FLAGS_NOLOGFLUSH.
	const goingDown, noLogFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), goingDown, noLogFlush); err != nil {
		t.Fatal(err)
	}
	if c, err := m.Condition(t.Context(), target); err != nil || !c.ShutDown {
		t.Errorf("%+v, %v; want that it was shut down", c, err)
	}
}
