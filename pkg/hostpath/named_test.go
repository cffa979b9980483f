// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// named asks for the n-th volume at a path.
func named(n int, dir string) volume.Spec {
	s := spec(n, mib)
	s.Directory, s.Claim = dir, "shop/db"
	return s
}

func exists(t *testing.T, name string) bool {
	t.Helper()
	_, err := os.Lstat(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestValidatePath(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "shop/db", "0/1.2_3-4", strings.Repeat("n", 253), "a/b/c/d/e/f/g/h"} {
		if err := hostpath.ValidatePath(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", ".trash", "a/.hidden", "-rf", "_a", "A", "a b", "a\x00b", "a\nb",
		"ä", "a*", "a:b", `a\b`, strings.Repeat("n", 254), "a/b/c/d/e/f/g/h/i",
	} {
		if err := hostpath.ValidatePath(bad); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", bad, err)
		}
	}
}

func FuzzValidatePath(f *testing.F) {
	for _, seed := range []string{"shop/db", "../a", "a/.b", "a//b", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if hostpath.ValidatePath(p) != nil {
			return
		}
		if path.Clean(p) != p || path.IsAbs(p) || strings.HasPrefix(p, ".") || strings.Contains(p, "/.") {
			t.Errorf("%q was taken", p)
		}
	})
}

// A volume lies where it was asked for, nobody but root gets at what is above it, and
// nothing is left of that when the last has gone.
func TestNamed(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.stop()
	one, err := p.backend.Create(t.Context(), named(1, "shop/db"))
	must(t, err)
	two, err := p.backend.Create(t.Context(), named(2, "shop/cache"))
	must(t, err)
	if one.Hostpath.Directory != "named/shop/db" || two.Hostpath.Directory != "named/shop/cache" {
		t.Fatalf("they lie at %s and %s", one.Hostpath.Directory, two.Hostpath.Directory)
	}
	loc, err := p.backend.Locate(t.Context(), volumetest.ID(1), one)
	must(t, err)
	if loc.Directory != path.Join(p.root, "named/shop/db") {
		t.Errorf("it is at %s", loc.Directory)
	}
	for dir, want := range map[string]os.FileMode{"named": 0o700, "named/shop": 0o700, "named/shop/db": 0o777} {
		info, err := os.Stat(path.Join(p.root, dir))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s is of mode %o, want %o", dir, info.Mode().Perm(), want)
		}
	}
	writeFile(t, path.Join(loc.Directory, "file"), "rubbish")
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &one, volume.WipeZero))
	if exists(t, loc.Directory) || !exists(t, path.Join(p.root, "named/shop/cache")) {
		t.Error("what was deleted is there, or its neighbour is not")
	}
	again, err := p.backend.Create(t.Context(), named(3, "shop/db"))
	must(t, err)
	// A deletion of the first that is repeated is not one of the second at its path.
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &one, volume.WipeZero))
	if _, err := p.backend.Locate(t.Context(), volumetest.ID(3), again); err != nil {
		t.Error(err)
	}
	must(t, p.backend.Delete(t.Context(), volumetest.ID(2), &two, volume.WipeZero))
	must(t, p.backend.Delete(t.Context(), volumetest.ID(3), nil, volume.WipeZero))
	if exists(t, path.Join(p.root, "named/shop")) {
		t.Error("an empty directory was left")
	}
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
}

// A path that is not free is refused, and nothing is made or changed.
func TestNamedCollisions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		there func(t *testing.T, p *pool)
		dir   string
		says  string
	}{
		"of another volume":   {nil, "shop/db", "pvc-1"},
		"above another one":   {nil, "shop", "pvc-1"},
		"below another one":   {nil, "shop/db/data", "pvc-1"},
		"a directory":         {func(t *testing.T, p *pool) { must(t, os.MkdirAll(path.Join(p.root, "named/shop/x"), 0o700)) }, "shop/x", "something at"},
		"a file":              {func(t *testing.T, p *pool) { writeFile(t, path.Join(p.root, "named/shop/x"), "theirs") }, "shop/x", "something at"},
		"a link":              {func(t *testing.T, p *pool) { must(t, os.Symlink("/", path.Join(p.root, "named/shop/x"))) }, "shop/x", "something at"},
		"a link above":        {func(t *testing.T, p *pool) { must(t, os.Symlink("shop", path.Join(p.root, "named/x"))) }, "x/y", "no directory of the root"},
		"a file above":        {func(t *testing.T, p *pool) { writeFile(t, path.Join(p.root, "named/x"), "theirs") }, "x/y", "no directory of the root"},
		"an open directory":   {func(t *testing.T, p *pool) { must(t, os.MkdirAll(path.Join(p.root, "named/x"), 0o755)) }, "x/y", "not made by us"},
		"no path":             {nil, "../x", "is no name"},
		"a name of our own":   {nil, ".trash/x", "is no name"},
		"an absolute path":    {nil, "/shop/x", "is no name"},
		"one that leads back": {nil, "shop/../../volumes", "is no name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			p.stop()
			rec, err := p.backend.Create(t.Context(), named(1, "shop/db"))
			must(t, err)
			writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "precious")
			if tc.there != nil {
				tc.there(t, p)
			}
			before := snapshot(t, p.root)
			_, err = p.backend.Create(t.Context(), named(2, tc.dir))
			if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want a refusal that says %q", err, tc.says)
			}
			if after := snapshot(t, p.root); after != before {
				t.Errorf("a refusal has changed\n%s\nto\n%s", before, after)
			}
			again, err := p.backend.Create(t.Context(), named(1, "shop/db"))
			if err != nil || !again.SameStorage(rec) {
				t.Errorf("its own path is not free for the first: %v", err)
			}
		})
	}
}

// Of several that ask for one path at once, one gets it, and the others nothing.
func TestNamedAtOnce(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.stop()
	const many = 5
	errs := make([]error, many)
	var wg sync.WaitGroup
	for n := range many {
		wg.Go(func() {
			_, errs[n] = p.backend.Create(t.Context(), named(n, "shop/db"+strings.Repeat("/x", n%2)))
		})
	}
	wg.Wait()
	made := 0
	for n, err := range errs {
		switch {
		case err == nil:
			made++
		case !errors.Is(err, volume.ErrInvalid):
			t.Errorf("%d: %v", n, err)
		}
	}
	if found, err := p.backend.List(t.Context()); err != nil || made != 1 || len(found) != 1 {
		t.Errorf("%d were made, there are %v, %v", made, found, err)
	}
}

// Volumes come and go below one directory, which comes and goes with them.
func TestNamedParentsComeAndGo(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.stop()
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for range 15 {
				rec, err := p.backend.Create(t.Context(), named(n, fmt.Sprintf("a/b/c/%d", n)))
				if err != nil {
					t.Errorf("Create: %v", err)
					return
				}
				if err := p.backend.Delete(t.Context(), volumetest.ID(n), &rec, volume.WipeZero); err != nil {
					t.Errorf("Delete: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if exists(t, path.Join(p.root, "named/a")) {
		t.Error("empty directories were left")
	}
}

// What is at the path of a volume and is not the volume is neither handed out nor moved,
// whoever has put it there.
func TestNamedIsExchanged(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(t *testing.T, p *pool, dir, outside string){
		"by another volume": func(t *testing.T, p *pool, dir, _ string) {
			rec, err := p.backend.Create(t.Context(), named(2, "shop/other"))
			must(t, err)
			writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "precious")
			must(t, os.Rename(dir, dir+"-away"))
			must(t, os.Rename(path.Join(p.root, rec.Hostpath.Directory), dir))
		},
		"by a new directory": func(t *testing.T, _ *pool, dir, _ string) {
			must(t, os.Rename(dir, dir+"-away"))
			writeFile(t, path.Join(dir, "file"), "precious")
		},
		"by a new and empty one": func(t *testing.T, _ *pool, dir, _ string) {
			must(t, os.Rename(dir, dir+"-away"))
			must(t, os.Mkdir(dir, 0o700))
		},
		"by a link": func(t *testing.T, _ *pool, dir, outside string) {
			must(t, os.Rename(dir, path.Join(outside, "away")))
			must(t, os.Symlink(path.Join(outside, "away"), dir))
		},
		"by a file": func(t *testing.T, _ *pool, dir, _ string) {
			must(t, os.Rename(dir, dir+"-away"))
			writeFile(t, dir, "precious")
		},
		"with what is above it, by a link to a copy outside": func(t *testing.T, _ *pool, dir, outside string) {
			must(t, os.Rename(path.Dir(dir), path.Join(outside, "shop")))
			must(t, os.Symlink(path.Join(outside, "shop"), path.Dir(dir)))
		},
		"with what is above it, by a link inside": func(t *testing.T, _ *pool, dir, _ string) {
			must(t, os.Rename(path.Dir(dir), path.Dir(dir)+"-away"))
			must(t, os.Symlink("shop-away", path.Dir(dir)))
		},
		"with all paths, by a link": func(t *testing.T, p *pool, _, outside string) {
			must(t, os.Rename(path.Join(p.root, "named"), path.Join(outside, "named")))
			must(t, os.Symlink(path.Join(outside, "named"), path.Join(p.root, "named")))
		},
	} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, kept %v", name, keep), func(t *testing.T) {
				t.Parallel()
				p := newPool(t)
				p.stop()
				s := named(1, "shop/db")
				if keep {
					s.RetainFor = retainFor
				}
				rec, err := p.backend.Create(t.Context(), s)
				must(t, err)
				dir := path.Join(p.root, rec.Hostpath.Directory)
				writeFile(t, path.Join(dir, "file"), "data")
				outside := t.TempDir()
				exchange(t, p, dir, outside)
				before := snapshot(t, p.root) + snapshot(t, outside)
				_, err = p.backend.Locate(t.Context(), volumetest.ID(1), rec)
				wantIdentity(t, "Locate", err)
				_, err = p.backend.Grow(t.Context(), volumetest.ID(1), rec, 2*mib)
				wantIdentity(t, "Grow", err)
				_, err = p.backend.Create(t.Context(), s)
				wantIdentity(t, "Create", err)
				wantIdentity(t, "Delete", p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
				wantIdentity(t, "Delete without a record", p.backend.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeZero))
				if after := snapshot(t, p.root) + snapshot(t, outside); after != before {
					t.Errorf("something has changed from\n%s\nto\n%s", before, after)
				}
			})
		}
	}
}

func wantIdentity(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("%s = %v, want ErrIdentity", what, err)
	}
}

// A directory that was put where a killed Create had not come to is not taken for the volume's.
func TestNamedAfterAKill(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		p := newPool(t)
		p.stop()
		dead := p.crashAt(t, n)
		_, err := p.backend.Create(t.Context(), named(1, "shop/db"))
		if !dead() {
			must(t, err)
			if n < 8 {
				t.Errorf("only %d steps were found", n)
			}
			return
		}
		p.restart(t)
		p.stop()
		dir := path.Join(p.root, "named/shop/db")
		if exists(t, dir) || !exists(t, path.Join(p.root, ".berth/volumes", volumetest.ID(1)+".json")) {
			continue
		}
		must(t, os.MkdirAll(dir, 0o700))
		writeFile(t, path.Join(dir, "file"), "precious")
		if _, err := p.backend.Create(t.Context(), named(1, "shop/db")); err == nil {
			t.Errorf("killed at step %d: a directory of somebody else was taken", n)
		}
		if err := p.backend.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeZero); err == nil {
			t.Errorf("killed at step %d: a directory of somebody else was deleted", n)
		}
		wantPrecious(t, dir)
	}
}
