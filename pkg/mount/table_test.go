// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

func TestMountsOf(t *testing.T) {
	loop := formatted(t, mount.Ext4, uuidA)
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
	check("nothing mounted", loop.Path)
	check("a plain directory", plain)
	check("nothing there", filepath.Join(dir, "nothing"))

	must(m.Mount(ctx, mount.Filesystem{Device: loop.Path, Target: staging, FSType: mount.Ext4}))
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
}
