// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// handed is a directory with data beside the root of a pool.
func handed(t *testing.T, p *pool) string {
	t.Helper()
	dir := path.Join(path.Dir(p.root), "pvc-1_default_data")
	writeFile(t, path.Join(dir, "file"), "precious")
	writeFile(t, path.Join(dir, "a/b/c/file"), "deep")
	must(t, os.Symlink("/etc/passwd", path.Join(dir, "a/link")))
	must(t, os.Link(path.Join(dir, "file"), path.Join(dir, "a/hard")))
	must(t, unix.Mkfifo(path.Join(dir, "pipe"), 0o600))
	must(t, os.Chmod(dir, 0o750|os.ModeSetgid))
	return dir
}

func adopt(t *testing.T, p *pool, n int, dir string, sizeBytes int64) (volume.Record, error) {
	t.Helper()
	return p.backend.Adopt(t.Context(), spec(n, sizeBytes), volume.Adoption{Directory: dir})
}

// limitedBeside is a pool with quotas on a filesystem that begins beside its root.
func limitedBeside(t *testing.T) *pool {
	t.Helper()
	return newLimitedPool(t, newQuotas(t.TempDir()))
}

func inode(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(dir, &st))
	return st.Ino
}

// A directory becomes a volume as it is: what is in it, its modes and its inode stay. It
// grows like any other, and is kept when it is deleted.
func TestAdopt(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	dir := handed(t, p)
	content, was := snapshot(t, dir), inode(t, dir)
	rec, err := adopt(t, p, 1, dir, mib)
	must(t, err)
	if again, err := adopt(t, p, 1, dir, mib); err != nil || !again.SameStorage(rec) || again.SizeBytes != rec.SizeBytes {
		t.Fatalf("again: %+v, %v, before %+v", again, err, rec)
	}
	at := path.Join(p.root, "volumes", volumetest.ID(1))
	if loc, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec); err != nil || loc.Directory != at || loc.SizeBytes != mib {
		t.Fatalf("located at %+v, %v, want %s", loc, err, at)
	}
	if now := snapshot(t, at); now != content || inode(t, at) != was {
		t.Fatalf("it holds\n%s\nand held\n%s", now, content)
	}
	if info, err := os.Stat(at); err != nil || info.Mode().Perm() != 0o750 || info.Mode()&os.ModeSetgid == 0 {
		t.Fatalf("its mode is %v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("where it was there is something: %v", err)
	}
	if _, err := p.backend.Create(t.Context(), spec(1, mib)); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Create of an adopted volume = %v, want ErrIdentity", err)
	}
	if _, err := adopt(t, p, 1, dir+"x", mib); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Adopt of another directory = %v, want ErrIdentity", err)
	}
	rec, err = p.backend.Grow(t.Context(), volumetest.ID(1), rec, 2*mib)
	must(t, err)

	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	all := kept(t, p)
	if len(all) != 1 || !all[0].TakenBack || !strings.HasPrefix(all[0].Directory, path.Join(p.root, "taken-back")+"/") {
		t.Fatalf("kept is %+v", all)
	}
	p.pass(100 * retainFor)
	p.restart(t)
	p.stop()
	tend(t, p)
	if now := snapshot(t, all[0].Directory); now != content || inode(t, all[0].Directory) != was {
		t.Fatalf("deleted: it holds\n%s\nand held\n%s", now, content)
	}
	if c, err := p.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != 2*mib {
		t.Errorf("what was given back does not count: %+v, %v", c, err)
	}

	// Given back is not gone: it can be handed over once more.
	_, err = adopt(t, p, 2, all[0].Directory, 2*mib)
	must(t, err)
	tend(t, p)
	if now := snapshot(t, path.Join(p.root, "volumes", volumetest.ID(2))); now != content || len(kept(t, p)) > 0 {
		t.Errorf("adopted again: it holds\n%s\nkept is %+v", now, kept(t, p))
	}
}

// Killed at each step, with and without quotas, an adoption and a deletion come to their
// end, and nothing is lost of what is in the directory, nor ever in two places or none.
func TestAdoptKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for name, newPool := range map[string]func(*testing.T) *pool{"limited": limitedBeside, "unlimited": newPool} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n++ {
				p := newPool(t)
				dir := handed(t, p)
				content, was := snapshot(t, dir), inode(t, dir)
				where := func() string {
					t.Helper()
					found := []string{}
					for _, at := range append(globs(t, path.Join(p.root, "taken-back/*")), dir, path.Join(p.root, "volumes", volumetest.ID(1))) {
						if _, err := os.Lstat(at); err == nil {
							found = append(found, at)
						}
					}
					if len(found) != 1 || snapshot(t, found[0]) != content || inode(t, found[0]) != was {
						t.Fatalf("killed at step %d: it is at %v", n, found)
					}
					return found[0]
				}
				dead := p.crashAt(t, n)
				_, err := adopt(t, p, 1, dir, mib)
				died := dead()
				if !died {
					must(t, err)
				}
				where()
				p.restart(t)
				rec, err := adopt(t, p, 1, dir, mib)
				must(t, err)
				if at := where(); at == dir {
					t.Fatalf("killed at step %d: it was not moved", n)
				}
				if p.quotas != nil {
					wantCounted(t, p, rec)
				}
				if len(globs(t, path.Join(p.root, ".berth/volumes/*"))) != 1 {
					t.Fatalf("killed at step %d: the records are %v", n, globs(t, path.Join(p.root, ".berth/volumes/*")))
				}
				dead = p.crashAt(t, n)
				_ = p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone)
				diedAgain := dead()
				where()
				p.restart(t)
				must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
				p.stop()
				tend(t, p)
				if at := where(); !strings.Contains(at, "/taken-back/") || len(kept(t, p)) != 1 || kept(t, p)[0].Directory != at {
					t.Fatalf("killed at step %d: deleted, it is at %s, kept is %+v", n, at, kept(t, p))
				}
				if found, err := p.backend.List(t.Context()); err != nil || len(found) > 0 {
					t.Fatalf("killed at step %d: deleted, and yet there is %v, %v", n, found, err)
				}
				if !died && !diedAgain {
					if n < 6 {
						t.Errorf("only %d steps", n)
					}
					return
				}
			}
		})
	}
}

// Killed between the renaming and what makes that durable, the next call makes it so before it says
// that the volume is there.
func TestAdoptMakesDurableWhatWasMoved(t *testing.T) {
	t.Parallel()
	for name, newPool := range map[string]func(*testing.T) *pool{"limited": limitedBeside, "unlimited": newPool} {
		for n := 0; ; n++ {
			p := newPool(t)
			dir := handed(t, p)
			p.taken()
			dead := p.crashAt(t, n)
			_, _ = adopt(t, p, 1, dir, mib)
			if !dead() {
				t.Fatalf("%s: it was not killed where it should have been", name)
			}
			if steps := p.taken(); len(steps) == 0 || steps[len(steps)-1] != "move in" {
				continue
			}
			p.restart(t)
			_, err := adopt(t, p, 1, dir, mib)
			must(t, err)
			if steps := p.taken(); !slices.Contains(steps, "sync the place") {
				t.Errorf("%s: the steps are %q", name, steps)
			}
			break
		}
	}
}

// Between the promise and the renaming somebody has made a root in the directory: it stays where it is.
func TestAdoptWithARootInIt(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		p := newPool(t)
		dir := handed(t, p)
		p.taken()
		p.crashAt(t, n)
		_, err := adopt(t, p, 1, dir, mib)
		if err == nil {
			t.Fatal("it was not killed where it should have been")
		}
		if steps := p.taken(); len(steps) == 0 || steps[len(steps)-1] != "sync promise" {
			continue
		}
		p.restart(t)
		p.roots = []string{path.Join(dir, "a/b")}
		if _, err := adopt(t, p, 1, dir, mib); !errors.Is(err, volume.ErrNotAdoptable) || !exists(t, dir) {
			t.Errorf("got %v, want ErrNotAdoptable", err)
		}
		return
	}
}

// wantCounted checks that all that can have a project has that of the volume, which is limited.
func wantCounted(t *testing.T, p *pool, rec volume.Record) {
	t.Helper()
	project, limitBytes := p.quotas.of(t, p, rec)
	if project < 1<<30 || limitBytes != mib {
		t.Fatalf("project %d, limited to %d bytes", project, limitBytes)
	}
	// The directory and a, a/b, a/b/c; file (which is a/hard, too) and a/b/c/file; no link and
	// no pipe. The fake counts file twice.
	if u, err := p.quotas.Usage(0, project); err != nil || u.Inodes != 4+3 {
		t.Fatalf("%d inodes are counted, %v", u.Inodes, err)
	}
}

func globs(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	must(t, err)
	return found
}

// An adoption that was killed while files were given a project goes on, also when somebody has
// got the project meanwhile.
func TestAdoptProjectTakenMeanwhile(t *testing.T) {
	t.Parallel()
	p := limitedBeside(t)
	dir := handed(t, p)
	for n := 0; ; n++ {
		dead := p.crashAt(t, n)
		rec, err := adopt(t, p, 1, dir, mib)
		if !dead() {
			must(t, err)
			wantCounted(t, p, rec)
			project, _ := p.quotas.of(t, p, rec)
			if p.quotas.projects[inode(t, path.Join(path.Dir(p.root), "theirs"))] == project {
				t.Errorf("two have project %d", project)
			}
			return
		}
		p.restart(t)
		theirs := path.Join(path.Dir(p.root), "theirs")
		must(t, os.MkdirAll(theirs, 0o755))
		p.quotas.projects[inode(t, theirs)] = 1 << 30
	}
}

// What was refused can be had when the reason is gone; a volume that was never made is
// deleted without touching what it was to be made of.
func TestAdoptLater(t *testing.T) {
	t.Parallel()
	p := limitedBeside(t)
	dir := handed(t, p)
	if _, err := adopt(t, p, 1, dir, 1); !errors.Is(err, volume.ErrNotAdoptable) {
		t.Fatalf("Adopt of what holds more than its size = %v", err)
	}
	_, err := adopt(t, p, 1, dir, mib)
	must(t, err)

	other := path.Join(path.Dir(p.root), "other")
	writeFile(t, path.Join(other, "file"), "precious")
	dead := p.crashAt(t, 3) // promised, and not moved
	_, err = adopt(t, p, 2, other, mib)
	if err == nil || !dead() {
		t.Fatal("it was not killed")
	}
	p.restart(t)
	must(t, os.Rename(other, other+"-moved"))
	writeFile(t, path.Join(other, "file"), "somebody else's")
	if _, err := adopt(t, p, 2, other, mib); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "another directory now") {
		t.Fatalf("Adopt of another one than was promised = %v", err)
	}
	must(t, p.backend.Delete(t.Context(), volumetest.ID(2), nil, volume.WipeNone))
	wantPrecious(t, other+"-moved")
	if found, err := p.backend.List(t.Context()); err != nil || len(found) != 1 {
		t.Errorf("there is %v, %v", found, err)
	}
}

// A pool can be full of promises, and takes a directory all the same: it was there before.
func TestAdoptIntoAFullPool(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	dir := handed(t, p)
	_, err := p.backend.Create(t.Context(), spec(1, 5*volumeBytes))
	must(t, err)
	_, err = adopt(t, p, 2, dir, 10*volumeBytes)
	must(t, err)
	c, err := p.backend.Capacity(t.Context())
	if err != nil || c.FreeBytes != 0 || c.MaxVolumeBytes != 0 || c.AllocatedBytes != 15*volumeBytes {
		t.Errorf("capacity %+v, %v", c, err)
	}
}

// A directory that has taken the place of an adopted one is not it.
func TestAdoptedIdentity(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	rec, err := adopt(t, p, 1, handed(t, p), mib)
	must(t, err)
	at := path.Join(p.root, rec.Hostpath.Directory)
	must(t, os.Rename(at, at+".away"))
	writeFile(t, path.Join(at, "file"), "somebody else's")
	if _, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Locate of another directory = %v, want ErrIdentity", err)
	}
	if err := p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Delete of another directory = %v, want ErrIdentity", err)
	}
}
