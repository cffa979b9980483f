// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestMountsOf(t *testing.T) {
	for _, fsType := range []string{mount.Ext4, mount.Btrfs} {
		t.Run(fsType, func(t *testing.T) { testMountsOf(t, fsType) })
	}
}

func testMountsOf(t *testing.T, fsType string) {
	loop := formatted(t, fsType, uuidA)
	m := mount.NewMounter(mounttest.Here(t))
	dir := t.TempDir()
	path := func(name string) string {
		p := filepath.Join(dir, name)
		mounttest.Unmount(t, p)
		return p
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	staging, first, second, node, within := path("staging"), path("first"), path("second with space"), path("node"), path("within")
	plain := filepath.Join(dir, "plain")
	must(os.Mkdir(plain, 0o755))
	bound := path("bound")

	check := func(what, of string, want ...string) {
		t.Helper()
		got, err := m.MountsOf(ctx, of)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v; want %q", what, got, err, want)
		}
	}
	// Another of the same kind, whose mount is not the first one's.
	other, elsewhere := formatted(t, fsType, uuidB), path("elsewhere")
	must(m.Mount(ctx, mount.Filesystem{Device: other.Path, Target: elsewhere, FSType: fsType}))
	check("nothing mounted", loop.Path)
	check("a plain directory", plain)
	check("nothing there", filepath.Join(dir, "nothing"))

	must(m.Mount(ctx, mount.Filesystem{Device: loop.Path, Target: staging, FSType: fsType}))
	must(m.BindDirectory(ctx, mount.Bind{Source: staging, Target: first}))
	must(m.BindDirectory(ctx, mount.Bind{Source: staging, Target: second}))
	must(m.BindDevice(ctx, mount.Bind{Source: loop.Path, Target: node}))
	must(os.Mkdir(filepath.Join(staging, "sub"), 0o755))
	must(unix.Mkdir(within, 0o755))
	must(unix.Mount(filepath.Join(staging, "sub"), within, "", unix.MS_BIND, ""))
	must(m.BindDirectory(ctx, mount.Bind{Source: plain, Target: bound}))

	check("a filesystem's directory", staging, staging, first, second)
	check("the same, seen elsewhere", first, staging, first, second)
	check("a directory in it", filepath.Join(staging, "sub"), within)
	check("a device", loop.Path, staging, first, second, within, node)
	check("a bound directory", plain, bound)
	check("another device", other.Path, elsewhere)

	link := filepath.Join(dir, "link")
	must(os.Symlink(dir, link))
	beside, err := m.MountsBeside(ctx, staging, filepath.Join(link, "staging"), first, filepath.Join(dir, "nothing", "there"))
	if err != nil || !slices.Equal(beside, []string{second}) {
		t.Errorf("beside what is known: got %q, %v; want %q", beside, err, second)
	}
}

func TestDeviceNumber(t *testing.T) {
	loop := mounttest.LoopDevice(t, sizeOf[mount.Ext4])
	m := mount.NewMounter(mounttest.Here(t))
	var st unix.Stat_t
	if err := unix.Stat(loop.Path, &st); err != nil {
		t.Fatal(err)
	}
	major, minor, err := m.DeviceNumber(t.Context(), loop.Path)
	if err != nil || unix.Mkdev(major, minor) != st.Rdev {
		t.Errorf("%s is %d:%d, %v", loop.Path, major, minor, err)
	}
	if _, _, err := m.DeviceNumber(t.Context(), "/dev/berth-nothing"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("no device: %v", err)
	}
	if _, _, err := m.DeviceNumber(t.Context(), "/dev/null"); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no block device: %v", err)
	}
}
