// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
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

// Who has a directory is seen in the mount namespaces of all processes.
func TestHolder(t *testing.T) {
	t.Parallel()
	const base = `22 1 253:0 / / rw - ext4 /dev/vda rw
41 22 253:16 / /srv/fast rw - xfs /dev/vdb rw
`
	for name, test := range map[string]struct {
		host, container, says string
	}{
		"nobody":                    {},
		"a volume of kind local":    {host: "50 22 253:16 /old/pvc /var/lib/kubelet/pods/1/volumes/x rw - xfs /dev/vdb rw\n", says: "mounted at /var/lib/kubelet/pods/1/volumes/x"},
		"a subPath":                 {host: "50 22 253:16 /old/pvc/db /var/lib/kubelet/pods/1/volume-subpaths/x rw - xfs /dev/vdb rw\n", says: "volume-subpaths"},
		"a mount in it":             {host: "50 41 0:99 / /srv/fast/old/pvc/db rw - tmpfs x rw\n", says: "something is mounted at /srv/fast/old/pvc/db"},
		"above it, on the host":     {host: "50 22 253:16 /old /mnt rw - xfs /dev/vdb rw\n", says: "a directory above it is mounted at /mnt"},
		"a hostPath in a container": {container: "9 8 253:16 /old/pvc /data rw - xfs /dev/vdb rw\n", says: "process 77 (postgres) has it mounted at /data"},
		"a subPath in a container":  {container: "9 8 253:16 /old/pvc/db /data rw - xfs /dev/vdb rw\n", says: "has it mounted at /data"},
		"above it, in a container":  {container: "9 8 253:16 /old /host rw - xfs /dev/vdb rw\n"},
		"the whole filesystem":      {host: "50 22 253:16 / /mnt rw - xfs /dev/vdb rw\n", container: "9 8 253:16 / /host rw - xfs /dev/vdb rw\n"},
		"another one":               {container: "9 8 253:16 /old/pvc2 /data rw - xfs /dev/vdb rw\n"},
		"on another filesystem":     {container: "9 8 253:0 /old/pvc /data rw - ext4 /dev/vda rw\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proc := t.TempDir()
			process := func(pid, namespace, root, comm, mounts string) {
				writeFile(t, path.Join(proc, pid, "mountinfo"), mounts)
				writeFile(t, path.Join(proc, pid, "comm"), comm+"\n")
				must(t, os.Mkdir(path.Join(proc, pid, "ns"), 0o755))
				must(t, os.Symlink("mnt:["+namespace+"]", path.Join(proc, pid, "ns/mnt")))
				must(t, os.Symlink(root, path.Join(proc, pid, "root")))
			}
			process("1", "1", "/", "systemd", base+test.host)
			process("70", "2", "/var/empty", "confined", "8 7 0:44 /var/empty / rw - overlay overlay rw\n")
			process("77", "2", "/", "postgres", "8 7 0:44 / / rw - overlay overlay rw\n"+test.container)
			process("78", "2", "/", "postgres", "damaged: not read, it is in the same namespace")
			must(t, os.Mkdir(path.Join(proc, "79"), 0o755)) // has ended
			must(t, os.Mkdir(path.Join(proc, "sys"), 0o755))
			got, err := hostpath.ProcessTable(proc).Holder("/srv/fast/old/pvc")
			if err != nil || (got == "") != (test.says == "") || !strings.Contains(got, test.says) {
				t.Errorf("Holder = %q, %v, want one that says %q", got, err, test.says)
			}
		})
	}
	if _, err := hostpath.ProcessTable(t.TempDir()).Holder("/srv"); err == nil {
		t.Error("without a mount table nobody has it")
	}
	if got := hostpath.HostProcesses("/host"); got != "/host/proc" {
		t.Errorf("the host's processes are looked for in %s", got)
	}
}

// The machine itself: a mount that only another process sees.
func TestHolderOfTheMachine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got, err := hostpath.HostProcesses("").Holder(dir); err != nil || got != "" {
		t.Fatalf("Holder = %q, %v", got, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	target := t.TempDir()
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		t.Skip("mounting: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if got, err := hostpath.HostProcesses("").Holder(dir); err != nil || !strings.Contains(got, target) {
		t.Errorf("Holder = %q, %v, want one that names %s", got, err, target)
	}
}
