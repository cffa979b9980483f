// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestMain(m *testing.M) { os.Exit(mounttest.Main(m)) }

const (
	uuidA = "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a01"
	uuidB = "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a02"

	mib = int64(1) << 20
)

// sizeOf is the smallest size that mkfs makes gladly; xfs wants more than 300 MB,
// btrfs more than 109 MiB.
var sizeOf = map[string]int64{mount.Ext4: 64 * mib, mount.XFS: 320 * mib, mount.Btrfs: 128 * mib}

var everyType = []string{mount.Ext4, mount.XFS, mount.Btrfs}

// counting counts the programs that are run on a host.
type counting struct {
	mount.Host

	mu  sync.Mutex
	ran []string
}

func (c *counting) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	c.mu.Lock()
	c.ran = append(c.ran, cmd.Name)
	c.mu.Unlock()
	return c.Host.Run(ctx, cmd)
}

func (c *counting) programs() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := strings.Join(c.ran, " ")
	c.ran = nil
	return s
}

// formatted returns a loop device with a filesystem.
func formatted(t *testing.T, fsType, uuid string) *mounttest.Loop {
	t.Helper()
	loop := mounttest.LoopDevice(t, sizeOf[fsType])
	err := mount.NewFormatter(mounttest.Here(t)).Format(t.Context(), mount.FormatRequest{
		Device: loop.Path, FSType: fsType, UUID: uuid, NeverFormatted: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return loop
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s reads %q, %v; want %q", path, got, err, want)
	}
}

func TestMountUnmount(t *testing.T) {
	for _, fsType := range everyType {
		t.Run(fsType, func(t *testing.T) {
			loop := formatted(t, fsType, uuidA)
			host := &counting{Host: mounttest.Here(t)}
			m := mount.NewMounter(host)
			target := filepath.Join(t.TempDir(), "target")
			mounttest.Unmount(t, target)
			fs := mount.Filesystem{Device: loop.Path, Target: target, FSType: fsType, Options: []string{"noatime,nodev", "nosuid", "defaults"}}
			for range 3 {
				if err := m.Mount(t.Context(), fs); err != nil {
					t.Fatal(err)
				}
			}
			var st unix.Statfs_t
			if err := unix.Statfs(target, &st); err != nil {
				t.Fatal(err)
			}
			if want := int64(unix.ST_NOATIME | unix.ST_NODEV | unix.ST_NOSUID); st.Flags&want != want || st.Flags&unix.ST_RDONLY != 0 {
				t.Errorf("mounted with flags %#x", st.Flags)
			}
			write(t, filepath.Join(target, "file"), "data")
			if mounted, err := m.Mounted(t.Context(), target); err != nil || !mounted {
				t.Errorf("Mounted: %v, %v", mounted, err)
			}
			for range 3 {
				if err := m.Unmount(t.Context(), target); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target is still there: %v", err)
			}
			if mounted, err := m.Mounted(t.Context(), target); err != nil || mounted {
				t.Errorf("Mounted after Unmount: %v, %v", mounted, err)
			}
			fs.Options = []string{"ro"}
			if err := m.Mount(t.Context(), fs); err != nil {
				t.Fatal(err)
			}
			mustRead(t, filepath.Join(target, "file"), "data")
			if err := os.WriteFile(filepath.Join(target, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a read-only mount: %v", err)
			}
			if err := m.Unmount(t.Context(), target); err != nil {
				t.Error(err)
			}
			if ran := host.programs(); ran != "" {
				t.Errorf("ran %s; mounting needs no program", ran)
			}
		})
	}
}

func TestMountRefuses(t *testing.T) {
	loop, other := formatted(t, mount.Ext4, uuidA), formatted(t, mount.Ext4, uuidB)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	mounttest.Unmount(t, taken)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: other.Path, Target: taken, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "file"), "x")
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "target")
	tests := []struct {
		name string
		fs   mount.Filesystem
		want error
	}{
		{"something else is there", mount.Filesystem{Device: loop.Path, Target: taken, FSType: mount.Ext4}, volume.ErrExists},
		{"another filesystem than it is", mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.XFS}, volume.ErrInvalid},
		{"unknown filesystem", mount.Filesystem{Device: loop.Path, Target: target, FSType: "zfs"}, volume.ErrInvalid},
		{"no such device", mount.Filesystem{Device: "/dev/berth-nothing", Target: target, FSType: mount.Ext4}, volume.ErrNotFound},
		{"not a device", mount.Filesystem{Device: filepath.Join(dir, "file"), Target: target, FSType: mount.Ext4}, volume.ErrInvalid},
		{"unknown option", mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4, Options: []string{"no-such-option"}}, volume.ErrInvalid},
		{"option of another mount", mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4, Options: []string{"noatime,bind"}}, volume.ErrInvalid},
		{"target is a link", mount.Filesystem{Device: loop.Path, Target: filepath.Join(dir, "link"), FSType: mount.Ext4}, volume.ErrInvalid},
		{"target is a file", mount.Filesystem{Device: loop.Path, Target: filepath.Join(dir, "file"), FSType: mount.Ext4}, volume.ErrInvalid},
		{"target is not clean", mount.Filesystem{Device: loop.Path, Target: dir + "/../x", FSType: mount.Ext4}, volume.ErrInvalid},
		{"parent is missing", mount.Filesystem{Device: loop.Path, Target: filepath.Join(dir, "a", "b"), FSType: mount.Ext4}, os.ErrNotExist},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := m.Mount(t.Context(), tt.fs); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if mounted, err := m.Mounted(t.Context(), target); mounted || err != nil {
				t.Errorf("mounted: %v, %v", mounted, err)
			}
		})
	}
}

func TestUnmountNeverForcesAndNeverRemovesData(t *testing.T) {
	loop := formatted(t, mount.Ext4, uuidA)
	m := mount.NewMounter(mounttest.Here(t))
	target := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	held, err := os.Create(filepath.Join(target, "held"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), target); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a filesystem in use: got %v", err)
	}
	if mounted, err := m.Mounted(t.Context(), target); !mounted || err != nil {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.UnmountOnly(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(target, "below"), "somebody's")
	if err := m.Unmount(t.Context(), target); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("a directory with files: got %v", err)
	}
	mustRead(t, filepath.Join(target, "below"), "somebody's")
	if err := m.Unmount(t.Context(), filepath.Join(target, "below")); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("a file with data: got %v", err)
	}
	mustRead(t, filepath.Join(target, "below"), "somebody's")
	link := filepath.Join(filepath.Dir(target), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(t.Context(), link); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("a link: got %v", err)
	}
}

// What is mounted of a disk that was pulled out is taken away, of one that is there it stays.
func TestUnmountGone(t *testing.T) {
	loop := formatted(t, mount.Ext4, uuidA)
	m := mount.NewMounter(mounttest.Here(t))
	target := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := m.UnmountGone(t.Context(), target); err != nil {
		t.Errorf("of what does not exist: %v", err)
	}
	if err := m.Mount(t.Context(), mount.Filesystem{Device: loop.Path, Target: target, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	mounted := func() bool {
		t.Helper()
		is, err := m.Mounted(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	if err := m.UnmountGone(t.Context(), target); err != nil || !mounted() {
		t.Fatalf("of a device that is there: %v, mounted %v", err, mounted())
	}
	m.SetSysBlock(filepath.Join(t.TempDir(), "missing"))
	if err := m.UnmountGone(t.Context(), target); err == nil || !mounted() {
		t.Fatalf("without sysfs: %v, mounted %v", err, mounted())
	}
	m.SetSysBlock(t.TempDir()) // the kernel has no device any more
	held, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.UnmountGone(t.Context(), target); !errors.Is(err, volume.ErrInUse) || !mounted() {
		t.Fatalf("while it is held: %v, mounted %v", err, mounted())
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.UnmountGone(t.Context(), target); err != nil || mounted() {
		t.Fatalf("of a device that is gone: %v, mounted %v", err, mounted())
	}
	// A filesystem without a device is not one of a device that is gone.
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.UnmountGone(t.Context(), target); err != nil || !mounted() {
		t.Fatalf("of a tmpfs: %v, mounted %v", err, mounted())
	}
}

func TestUnmountTakesStackedMounts(t *testing.T) {
	mounttest.RequireRoot(t)
	m := mount.NewMounter(mounttest.Here(t))
	target := filepath.Join(t.TempDir(), "target")
	mounttest.Unmount(t, target)
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := unix.Mount("stacked", target, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Unmount(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
}

// The agent's own namespace never sees the host's mounts.
func TestMountElsewhere(t *testing.T) {
	loop := mounttest.LoopDevice(t, sizeOf[mount.Ext4])
	host, _ := mounttest.Elsewhere(t)
	m := mount.NewMounter(host)
	format := mount.FormatRequest{Device: loop.Path, FSType: mount.Ext4, UUID: uuidA, NeverFormatted: true}
	if err := mount.NewFormatter(host).Format(t.Context(), format); err != nil {
		t.Fatal(err)
	}
	here := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	staging, target := filepath.Join(dir, "staging"), filepath.Join(dir, "target")
	ctx := t.Context()
	if err := m.Mount(ctx, mount.Filesystem{Device: loop.Path, Target: staging, FSType: mount.Ext4}); err != nil {
		t.Fatal(err)
	}
	if err := m.BindDirectory(ctx, mount.Bind{Source: staging, Target: target}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{staging, target} {
		if mounted, err := m.Mounted(ctx, path); !mounted || err != nil {
			t.Errorf("%s on the host: %v, %v", path, mounted, err)
		}
		if mounted, err := here.Mounted(ctx, path); mounted || err != nil {
			t.Errorf("%s here: %v, %v", path, mounted, err)
		}
	}
	if s, err := m.Stats(ctx, target); err != nil || s.TotalBytes < 32*mib || s.TotalBytes > 64*mib {
		t.Errorf("stats %+v, %v", s, err)
	}
	for _, path := range []string{target, staging} {
		if err := m.Unmount(ctx, path); err != nil {
			t.Error(err)
		}
	}
}
