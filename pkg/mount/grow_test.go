// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

func command(name string, args ...string) hostexec.Command {
	return hostexec.Command{Name: name, Args: args}
}

func TestGrow(t *testing.T) {
	for _, fsType := range everyType {
		t.Run(fsType, func(t *testing.T) {
			loop := formatted(t, fsType, uuidA)
			host := &counting{Host: mounttest.Here(t)}
			m := mount.NewMounter(host)
			target := filepath.Join(t.TempDir(), "target")
			mounttest.Unmount(t, target)
			if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: fsType}); err != nil {
				t.Fatal(err)
			}
			content := bytes.Repeat([]byte("data"), 1<<18)
			write(t, filepath.Join(target, "file"), string(content))
			size := sizeOf[fsType]
			s, err := m.Grow(t.Context(), loop.Path, target, fsType)
			if want := (mount.Sizes{FilesystemBytes: size, DeviceBytes: size}); err != nil || s != want {
				t.Errorf("nothing to grow: %+v, %v", s, err)
			}
			if ran := host.programs(); ran != "" {
				t.Errorf("ran %s with nothing to grow", ran)
			}
			if fsType == mount.Ext4 {
				// ext4 grows online only by a process that has it (fs/ext4/resize.c,
				// ext4_resize_begin).
				mounttest.RequireCapability(t, unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE")
			}
			loop.Resize(t, 4*size)
			for range 2 {
				s, err = m.Grow(t.Context(), loop.Path, target, fsType)
				if want := (mount.Sizes{FilesystemBytes: 4 * size, DeviceBytes: 4 * size}); err != nil || s != want {
					t.Errorf("grown to %+v, %v; want %+v", s, err, want)
				}
			}
			if want := map[string]string{mount.Ext4: "resize2fs", mount.XFS: "xfs_growfs"}[fsType]; host.programs() != want {
				t.Errorf("want %q to have run once", want)
			}
			stats, err := m.Stats(t.Context(), target)
			if err != nil || stats.TotalBytes < 3*size || stats.AvailableBytes > stats.TotalBytes || stats.UsedBytes < 1<<20 ||
				fsType != mount.Btrfs && (stats.TotalInodes < 100 || stats.UsedInodes < 1) {
				t.Errorf("stats %+v, %v", stats, err)
			}
			mustRead(t, filepath.Join(target, "file"), string(content))
		})
	}
}

func TestGrowRefusesOtherDevices(t *testing.T) {
	loop, other := formatted(t, mount.Ext4, uuidA), formatted(t, mount.Ext4, uuidB)
	host := &counting{Host: mounttest.Here(t)}
	m := mount.NewMounter(host)
	target := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, device, path, fsType string }{
		{"another device", other.Path, target, mount.Ext4},
		{"another type", loop.Path, target, mount.XFS},
		{"not a mount point", loop.Path, filepath.Dir(target), mount.Ext4},
	} {
		if _, err := m.Grow(t.Context(), tt.device, tt.path, tt.fsType); !errors.Is(err, volume.ErrIdentity) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	if ran := host.programs(); ran != "" {
		t.Errorf("ran %s", ran)
	}
}

func TestCheck(t *testing.T) {
	loop := formatted(t, mount.Ext4, uuidA)
	host := &counting{Host: mounttest.Here(t)}
	m := mount.NewMounter(host)
	check := func(t *testing.T) (mount.Superblock, error) {
		t.Helper()
		s, err := m.Inspect(t.Context(), loop.Path)
		if err != nil {
			t.Fatal(err)
		}
		return s, m.Check(t.Context(), loop.Path, s)
	}
	if _, err := check(t); err != nil || host.programs() != "" {
		t.Errorf("a clean filesystem: %v, or a program was run", err)
	}

	// Errors that e2fsck -p repairs: the flag that the kernel sets.
	if _, err := mounttest.Here(t).Run(t.Context(), hostexec.Command{Name: "debugfs", Args: []string{"-w", "-R", "ssv state 2", loop.Path}}); err != nil {
		t.Fatal(err)
	}
	if s, err := check(t); err != nil || !s.HasErrors || host.programs() != "e2fsck" {
		t.Errorf("errors: %+v, %v", s, err)
	}
	if s, err := check(t); err != nil || s.HasErrors || host.programs() != "" {
		t.Errorf("after the repair: %+v, %v", s, err)
	}

	// Errors that need a decision: the root directory is gone.
	dir := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, dir)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: dir, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a"), "a")
	write(t, filepath.Join(dir, "b"), "b")
	if err := m.Unmount(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{"clri <2>", "ssv state 2"} {
		if _, err := mounttest.Here(t).Run(t.Context(), hostexec.Command{Name: "debugfs", Args: []string{"-w", "-R", request, loop.Path}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := check(t); !errors.Is(err, mount.ErrDamaged) {
		t.Errorf("a filesystem without a root: got %v", err)
	}
}

// An expired request does not kill a check.
func TestCheckOutlivesItsRequest(t *testing.T) {
	mounttest.RequireRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	loop := formatted(t, mount.Ext4, uuidA)
	err := mount.NewMounter(mounttest.Here(t)).Check(ctx, loop.Path, mount.Superblock{FSType: mount.Ext4, HasErrors: true})
	if err != nil {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(loop.Path); err != nil {
		t.Error(err)
	}
}
