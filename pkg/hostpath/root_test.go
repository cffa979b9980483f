// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestInit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, root string)
		root    func(dir string) string
		want    error
	}{
		{name: "absent, with its parents", root: func(dir string) string { return path.Join(dir, "a/b/c") }},
		{name: "empty", prepare: func(t *testing.T, root string) { must(t, os.Mkdir(root, 0o755)) }},
		{name: "new ext4", prepare: func(t *testing.T, root string) { must(t, os.MkdirAll(path.Join(root, "lost+found"), 0o700)) }},
		{
			name: "cut off before its marker",
			prepare: func(t *testing.T, root string) {
				must(t, os.MkdirAll(path.Join(root, ".berth/volumes"), 0o700))
				must(t, os.WriteFile(path.Join(root, ".berth/root.json.tmp"), []byte(`{"roo`), 0o600))
				must(t, os.MkdirAll(path.Join(root, "volumes"), 0o700))
			},
		},
		{
			name:    "somebody's files",
			prepare: func(t *testing.T, root string) { writeFile(t, path.Join(root, "family.jpg"), "precious") },
			want:    volume.ErrNotBlank,
		},
		{
			name:    "somebody's folder named as ours",
			prepare: func(t *testing.T, root string) { writeFile(t, path.Join(root, "volumes/mine"), "precious") },
			want:    volume.ErrNotBlank,
		},
		{
			name: "another pool's",
			prepare: func(t *testing.T, root string) {
				_, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, "22222222-2222-4222-8222-222222222222")
				must(t, err)
			},
			want: volume.ErrExists,
		},
		{
			name: "a symbolic link",
			prepare: func(t *testing.T, root string) {
				must(t, os.Mkdir(root+".target", 0o755))
				must(t, os.Symlink(filepath.Base(root)+".target", root))
			},
			want: volume.ErrInvalid,
		},
		{name: "a file", prepare: func(t *testing.T, root string) { writeFile(t, root, "precious") }, want: volume.ErrInvalid},
		{name: "the root directory", root: func(string) string { return "/" }, want: volume.ErrInvalid},
		{name: "relative", root: func(string) string { return "var/lib/pool" }, want: volume.ErrInvalid},
		{name: "with ..", root: func(dir string) string { return dir + "/../pool" }, want: volume.ErrInvalid},
		{name: "empty path", root: func(string) string { return "" }, want: volume.ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			root := path.Join(dir, "pool")
			if test.root != nil {
				root = test.root(dir)
			}
			if test.prepare != nil {
				test.prepare(t, root)
			}
			before := snapshot(t, dir)
			id, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
			if !errors.Is(err, test.want) {
				t.Fatalf("Init = %v, want %v", err, test.want)
			}
			if test.want != nil {
				if after := snapshot(t, dir); after != before {
					t.Fatalf("a refused Init changed the tree from\n%s\nto\n%s", before, after)
				}
				return
			}
			if id == "" {
				t.Fatal("Init returned no ID")
			}
			again, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
			if err != nil || again != id {
				t.Fatalf("Init again = %q, %v, want %q", again, err, id)
			}
			for _, sub := range []string{".berth", "volumes", ".trash"} {
				info, err := os.Lstat(path.Join(root, sub))
				must(t, err)
				if info.Mode() != fs.ModeDir|0o700 {
					t.Errorf("%s has mode %v, want it closed to all but root", sub, info.Mode())
				}
			}
		})
	}
}

// A path that leads out of the host's root directory by a link is not followed:
// in a container it would lead into the container's own image.
func TestRootStaysOnTheHost(t *testing.T) {
	t.Parallel()
	host, outside := t.TempDir(), t.TempDir()
	must(t, os.Symlink(outside, path.Join(host, "data")))
	where := hostpath.Where{Root: "/data/pool", HostRoot: host}
	if _, err := hostpath.Init(t.Context(), where, poolUID); err == nil {
		t.Fatal("Init followed a link out of the host's root directory")
	}
	if got := snapshot(t, outside); got != "" {
		t.Fatalf("Init has made %s outside", got)
	}

	must(t, os.Mkdir(path.Join(host, "srv"), 0o755))
	where.Root = "/srv/pool"
	id, err := hostpath.Init(t.Context(), where, poolUID)
	must(t, err)
	b, err := hostpath.New(hostpath.Options{Where: where, RootID: id, PoolUID: poolUID})
	must(t, err)
	rec, err := b.Create(t.Context(), spec(1, 1))
	must(t, err)
	loc, err := b.Locate(t.Context(), volumetest.ID(1), rec)
	must(t, err)
	if want := "/srv/pool/volumes/" + volumetest.ID(1); loc.Directory != want {
		t.Fatalf("Locate = %s, want the path on the host %s", loc.Directory, want)
	}
}

// A root whose filesystem is not mounted is never written to, and its volumes are
// not absent.
func TestLostMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := path.Join(t.TempDir(), "pool")
	must(t, os.Mkdir(root, 0o755))
	mountTmpfs(t, root, "size=16m")
	id, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
	must(t, err)
	b, err := hostpath.New(hostpath.Options{Where: hostpath.Where{Root: root}, RootID: id, PoolUID: poolUID})
	must(t, err)
	rec, err := b.Create(t.Context(), spec(1, 1<<20))
	must(t, err)
	// Nothing keeps the filesystem busy between two calls.
	must(t, unix.Unmount(root, 0))

	for name, call := range map[string]func() error{
		"Create":   func() error { _, err := b.Create(t.Context(), spec(2, 1)); return err },
		"Locate":   func() error { _, err := b.Locate(t.Context(), volumetest.ID(1), rec); return err },
		"Grow":     func() error { _, err := b.Grow(t.Context(), volumetest.ID(1), rec, 2<<20); return err },
		"Delete":   func() error { return b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero) },
		"List":     func() error { _, err := b.List(t.Context()); return err },
		"Capacity": func() error { _, err := b.Capacity(t.Context()); return err },
		"trash":    func() error { return hostpath.EmptyTrash(b, t.Context()) },
	} {
		if err := call(); !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("%s = %v, want ErrPoolUnavailable", name, err)
		}
	}
	if got := snapshot(t, root); got != "" {
		t.Fatalf("something was written to the mount point: %s", got)
	}
	must(t, os.Remove(root))
	if _, err := b.List(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Fatalf("List without a mount point = %v, want ErrPoolUnavailable", err)
	}
}

func TestForeignMarker(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	rec, err := p.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	other := newPool(t)
	data, err := os.ReadFile(path.Join(other.root, ".berth/root.json"))
	must(t, err)
	marker := path.Join(p.root, ".berth/root.json")
	must(t, os.WriteFile(marker, data, 0o600))
	if _, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec); !errors.Is(err, volume.ErrIdentity) {
		t.Fatalf("Locate in a root that was exchanged = %v, want ErrIdentity", err)
	}
	must(t, os.WriteFile(marker, []byte("{"), 0o600))
	if _, err := p.backend.List(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Fatalf("List with a torn marker = %v, want ErrPoolUnavailable", err)
	}
}

// A promise that cannot be read leaves open how much is promised: nothing more is.
func TestTornPromise(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	_, err := p.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	must(t, os.WriteFile(path.Join(p.root, ".berth/volumes", volumetest.ID(1)+".json"), nil, 0o600))
	_, err = p.backend.Create(t.Context(), spec(2, 1))
	if err == nil || errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create beside a torn promise = %v, want an error without an answer", err)
	}
	if _, err := p.backend.List(t.Context()); err == nil {
		t.Fatal("List left out a volume whose promise is torn")
	}
}

func TestCapacityOfAFilesystem(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := path.Join(t.TempDir(), "pool")
	must(t, os.Mkdir(root, 0o755))
	mountTmpfs(t, root, "size=16m")
	id, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
	must(t, err)
	b, err := hostpath.New(hostpath.Options{
		Where: hostpath.Where{Root: root}, RootID: id, PoolUID: poolUID,
		Reserve: func(total int64) int64 { return total / 4 },
	})
	must(t, err)
	c, err := b.Capacity(t.Context())
	must(t, err)
	if c.TotalBytes != 12<<20 || c.FreeBytes > 12<<20 || c.FreeBytes < 11<<20 {
		t.Fatalf("Capacity = %+v, want 12 MiB of 16 with a quarter in reserve", c)
	}
	// What others write counts, whatever was promised.
	must(t, os.WriteFile(path.Join(root, "lost+found"), make([]byte, 10<<20), 0o600))
	c, err = b.Capacity(t.Context())
	must(t, err)
	if c.FreeBytes > 2<<20 || !c.Fits(1<<20) || c.Fits(3<<20) {
		t.Fatalf("Capacity = %+v, want less than 2 MiB free", c)
	}
	// A full filesystem is ErrNoSpace, also where the first write finds out.
	full := make([]byte, 8<<20)
	_ = os.WriteFile(path.Join(root, "fill"), full, 0o600)
	before := snapshot(t, root)
	if _, err := b.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create on a full filesystem = %v, want ErrNoSpace", err)
	}
	lying, err := hostpath.New(hostpath.Options{
		Where: hostpath.Where{Root: root}, RootID: id, PoolUID: poolUID,
		Room: func() (int64, int64, error) { return 1 << 30, 1 << 30, nil },
	})
	must(t, err)
	if _, err := lying.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create that runs out of space = %v, want ErrNoSpace", err)
	}
	if after := snapshot(t, root); after != before {
		t.Fatalf("a refused Create changed the root from\n%s\nto\n%s", before, after)
	}
}

// A filesystem that has room for the promise and none for the directory: nothing
// stays behind.
func TestCreateWithoutRoomForTheDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := path.Join(t.TempDir(), "pool")
	must(t, os.Mkdir(root, 0o755))
	mountTmpfs(t, root, "size=16m,nr_inodes=32")
	id, err := hostpath.Init(t.Context(), hostpath.Where{Root: root}, poolUID)
	must(t, err)
	b, err := hostpath.New(hostpath.Options{Where: hostpath.Where{Root: root}, RootID: id, PoolUID: poolUID})
	must(t, err)
	last := ""
	for i := 0; ; i++ {
		name := path.Join(root, fmt.Sprintf("fill%d", i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			break
		}
		last = name
	}
	must(t, os.Remove(last)) // one inode is left
	before := snapshot(t, root)
	if _, err := b.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("Create = %v, want ErrNoSpace", err)
	}
	if after := snapshot(t, root); after != before {
		t.Fatalf("a refused Create changed the root from\n%s\nto\n%s", before, after)
	}
}

// FuzzPromise: whatever is in the file of a promise, it is either that volume's or
// an error, never a volume of no size or of another name.
func FuzzPromise(f *testing.F) {
	id := volumetest.ID(1)
	f.Add([]byte(`{"id":"` + id + `","name":"pvc-1","sizeBytes":1048576,"created":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"id":"../x","sizeBytes":-1}`))
	f.Add([]byte(`{"sizeBytes":1e400}`))
	f.Add([]byte{})
	root := path.Join(f.TempDir(), "pool")
	rootID, err := hostpath.Init(f.Context(), hostpath.Where{Root: root}, poolUID)
	if err != nil {
		f.Fatal(err)
	}
	b, err := hostpath.New(hostpath.Options{Where: hostpath.Where{Root: root}, RootID: rootID, PoolUID: poolUID})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path.Join(root, ".berth/volumes", id+".json"), data, 0o600))
		found, err := b.List(t.Context())
		if err != nil {
			return
		}
		if len(found) != 1 || found[0].ID != id || found[0].Record.SizeBytes <= 0 {
			t.Fatalf("List = %+v from %q", found, data)
		}
	})
}
