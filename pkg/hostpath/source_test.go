// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestNotAdoptable(t *testing.T) {
	t.Parallel()
	link := func(target string) func(*testing.T, *pool, string) string {
		return func(t *testing.T, _ *pool, dir string) string {
			at := path.Join(path.Dir(dir), "link")
			must(t, os.Symlink(path.Join(path.Dir(dir), target), at))
			return at
		}
	}
	for name, test := range map[string]struct {
		// prepare returns the directory to adopt.
		prepare func(t *testing.T, p *pool, dir string) string
		limited bool
		says    string
	}{
		"relative":              {prepare: func(*testing.T, *pool, string) string { return "data" }, says: "absolute path"},
		"dots":                  {prepare: func(_ *testing.T, _ *pool, dir string) string { return dir + "/../x" }, says: "absolute path"},
		"everything":            {prepare: func(*testing.T, *pool, string) string { return "/" }, says: "absolute path"},
		"the root":              {prepare: func(_ *testing.T, p *pool, _ string) string { return p.root }, says: "the root of the pool"},
		"above the root":        {prepare: func(_ *testing.T, p *pool, _ string) string { return path.Dir(p.root) }, says: "lies in it"},
		"elsewhere":             {prepare: func(*testing.T, *pool, string) string { return "/etc/passwd.d" }, says: "takes directories below"},
		"a volume":              {prepare: func(_ *testing.T, p *pool, _ string) string { return path.Join(p.root, "volumes", volumetest.ID(9)) }, says: "Berth's own"},
		"what is being removed": {prepare: func(_ *testing.T, p *pool, _ string) string { return path.Join(p.root, ".trash/x") }, says: "Berth's own"},
		"a snapshot": {prepare: func(t *testing.T, p *pool, _ string) string {
			dir := path.Join(p.root, "snapshots", volumetest.ID(9))
			must(t, os.MkdirAll(dir, 0o700))
			return dir
		}, says: "Berth's own"},
		"a copy that is being made": {prepare: func(t *testing.T, p *pool, _ string) string {
			dir := path.Join(p.root, ".copies", "mine", "tree") // of a name that nobody sweeps up
			must(t, os.MkdirAll(dir, 0o700))
			return dir
		}, says: "Berth's own"},
		"in what was given back": {prepare: func(_ *testing.T, p *pool, _ string) string { return path.Join(p.root, "taken-back/x/y") }, says: "Berth's own"},
		"nothing there":          {prepare: func(_ *testing.T, _ *pool, dir string) string { return dir + "x" }, says: "no such directory"},
		"nothing above it":       {prepare: func(_ *testing.T, _ *pool, dir string) string { return dir + "x/y" }, says: "no such directory"},
		"a file":                 {prepare: func(_ *testing.T, _ *pool, dir string) string { return path.Join(dir, "file") }, says: "it is no directory"},
		"a link":                 {prepare: link("pvc-1_default_data"), says: "symbolic link"},
		"below a link": {prepare: func(t *testing.T, p *pool, dir string) string {
			return path.Join(link("pvc-1_default_data")(t, p, dir), "a")
		}, says: "symbolic link"},
		"mounted": {prepare: func(_ *testing.T, p *pool, dir string) string {
			p.hold(dir, true)
			return dir
		}, says: "/var/lib/kubelet/pods/1/volumes/data"},
		"another pool's root": {prepare: func(t *testing.T, p *pool, dir string) string {
			p.roots = []string{p.root, dir}
			return dir
		}, says: "root of another pool"},
		"with another pool's root in it": {prepare: func(t *testing.T, p *pool, dir string) string {
			p.roots = []string{path.Join(dir, "a/b")}
			return dir
		}, says: "root of another pool"},
		"in what was another pool's root": {prepare: func(t *testing.T, p *pool, dir string) string {
			writeFile(t, path.Join(dir, ".berth/root.json"), "{}")
			return path.Join(dir, "a")
		}, says: "root of another pool"},
		"more than its size": {limited: true, prepare: func(t *testing.T, p *pool, dir string) string {
			must(t, os.WriteFile(path.Join(dir, "large"), make([]byte, 2*mib), 0o600))
			return dir
		}, says: "and spec.sizeBytes is 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := limitedBeside(t)
			p.quotas.setOff(!test.limited)
			dir := test.prepare(t, p, handed(t, p))
			before := snapshot(t, path.Dir(p.root))
			_, err := adopt(t, p, 1, dir, mib)
			if !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("Adopt = %v, want ErrNotAdoptable that says %q", err, test.says)
			}
			if after := snapshot(t, path.Dir(p.root)); after != before {
				t.Errorf("a refusal has changed\n%s\nto\n%s", before, after)
			}
			must(t, p.backend.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeNone))
		})
	}
}

// A pool whose path leads over a link takes directories by the paths that realpath(1) shows, and none
// with the root of another pool in it, however that is named.
func TestAdoptBelowALink(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	must(t, os.MkdirAll(path.Join(host, "var/opt"), 0o755))
	must(t, os.Symlink("var/opt", path.Join(host, "opt")))
	writeFile(t, path.Join(host, "var/opt/data/file"), "precious")
	writeFile(t, path.Join(host, "var/opt/all/other/file"), "precious")
	where := hostpath.Where{Root: "/opt/pool", HostRoot: host}
	rootID, err := hostpath.Init(t.Context(), where, poolUID)
	must(t, err)
	writeFile(t, path.Join(host, "var/opt/pool/data/file"), "precious")
	b, err := hostpath.New(hostpath.Options{
		Where: where, RootID: rootID, PoolUID: poolUID, Holder: func(string) (string, error) { return "", nil },
		OtherRoots: func() ([]string, error) { return []string{"/opt/pool", "/opt/all/other", "/opt/away"}, nil },
	})
	must(t, err)
	for i, dir := range []string{"/var/opt/data", "/var/opt/pool/data"} {
		if _, err := b.Adopt(t.Context(), spec(i, mib), volume.Adoption{Directory: dir}); err != nil {
			t.Errorf("Adopt of %s = %v", dir, err)
		}
	}
	for dir, says := range map[string]string{
		"/var/opt/all":          "root of another pool",
		"/var/opt/pool":         "the root of the pool",
		"/var/opt/pool/volumes": "Berth's own",
		"/opt/pool/volumes":     "takes directories below",
	} {
		_, err := b.Adopt(t.Context(), spec(3, mib), volume.Adoption{Directory: dir})
		if !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("Adopt of %s = %v, want ErrNotAdoptable that says %q", dir, err, says)
		}
	}
}

// What is not on the mount of the root cannot be renamed to it.
func TestAdoptAcrossMounts(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	p := newPool(t)
	dir := handed(t, p)
	alias, over := path.Join(path.Dir(p.root), "alias"), path.Join(path.Dir(p.root), "over")
	must(t, os.Mkdir(alias, 0o755))
	must(t, os.Mkdir(over, 0o755))
	if err := unix.Mount(path.Dir(p.root), alias, "", unix.MS_BIND, ""); err != nil {
		t.Skip("mounting: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(alias, unix.MNT_DETACH) })
	mountBind(t, dir, over)
	for at, says := range map[string]string{path.Join(alias, path.Base(dir)): "another mount", over: "mount point"} {
		if _, err := adopt(t, p, 1, at, mib); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), says) {
			t.Errorf("Adopt of %s = %v, want ErrNotAdoptable that says %q", at, err, says)
		}
	}
	wantPrecious(t, dir)
}
