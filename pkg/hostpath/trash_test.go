// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// deleted makes a volume, lets fill write into it, and deletes it without anybody
// emptying the trash.
func deleted(t *testing.T, p *pool, fill func(dir string)) {
	t.Helper()
	p.stop()
	rec, err := p.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	loc, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec)
	must(t, err)
	fill(loc.Directory)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
}

func trash(t *testing.T, p *pool) []os.DirEntry {
	t.Helper()
	names, err := os.ReadDir(path.Join(p.root, ".trash"))
	must(t, err)
	return names
}

// What is in the trash is removed and nothing that it points to.
func TestTrash(t *testing.T) {
	t.Parallel()
	for name, fill := range map[string]func(t *testing.T, dir, outside string){
		"nothing": func(*testing.T, string, string) {},
		"links to files, directories and nowhere": func(t *testing.T, dir, outside string) {
			must(t, os.Symlink(outside, path.Join(dir, "absolute")))
			must(t, os.Symlink("../../../../../../../../../../.."+outside, path.Join(dir, "dotdot")))
			must(t, os.Symlink(path.Join(outside, "canary"), path.Join(dir, "file")))
			must(t, os.Symlink("nowhere", path.Join(dir, "dangling")))
			must(t, os.Symlink("loop", path.Join(dir, "loop")))
			must(t, os.Symlink("/proc/self/root", path.Join(dir, "magic")))
		},
		"a hard link": func(t *testing.T, dir, outside string) {
			must(t, os.Link(path.Join(outside, "canary"), path.Join(dir, "hard")))
		},
		"fifo, socket and odd names": func(t *testing.T, dir, _ string) {
			must(t, unix.Mkfifo(path.Join(dir, "fifo"), 0o600))
			must(t, unix.Mknod(path.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0))
			for _, name := range []string{"-rf", " ", "\n", "\xff\xfe", "...", "a*b", strings.Repeat("n", 255)} {
				must(t, os.Mkdir(path.Join(dir, name), 0o000))
			}
		},
		"many files": func(t *testing.T, dir, _ string) {
			for i := range 3000 {
				must(t, os.WriteFile(path.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o600))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			outside := t.TempDir()
			writeFile(t, path.Join(outside, "canary"), "precious")
			writeFile(t, path.Join(outside, "sub/canary"), "precious")
			before := snapshot(t, outside)
			deleted(t, p, func(dir string) { fill(t, dir, outside) })
			must(t, hostpath.EmptyTrash(p.backend, t.Context()))
			if left := trash(t, p); len(left) != 0 {
				t.Fatalf("the trash still holds %v", left)
			}
			if after := snapshot(t, outside); after != before {
				t.Fatalf("something outside changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A tree deeper than any path can name, and than there are descriptors to have
// open at once. Not parallel: the descriptors of the process are counted.
func TestTrashWithADeepTree(t *testing.T) {
	const depth = 3000
	p := newPool(t)
	deleted(t, p, func(dir string) {
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		for range depth {
			must(t, unix.Mkdirat(fd, "deeper", 0o700))
			next, err := unix.Openat(fd, "deeper", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
			must(t, err)
			must(t, unix.Close(fd))
			fd = next
		}
		must(t, unix.Close(fd))
	})
	steps, most := 0, 0
	p.backend.SetStep(func(string) error {
		if steps++; steps%50 == 0 {
			open, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			most = max(most, len(open))
		}
		return nil
	})
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
	if left := trash(t, p); len(left) != 0 {
		t.Fatalf("the trash still holds %v", left)
	}
	if steps < depth || most == 0 || most > depth/2 {
		t.Errorf("%d descriptors were open at once in %d steps", most, steps)
	}
}

// A process that still has the directory open swaps its directories for links to
// outside, as fast as it can, while the trash is emptied.
func TestTrashWithHostileSwaps(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	outside := t.TempDir()
	for i := range 50 {
		writeFile(t, path.Join(outside, fmt.Sprintf("d%d/canary", i)), "precious")
	}
	before := snapshot(t, outside)
	var held int
	deleted(t, p, func(dir string) {
		for i := range 200 {
			writeFile(t, path.Join(dir, fmt.Sprintf("d%d/canary", i)), "rubbish")
		}
		var err error
		held, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
	})
	defer func() { _ = unix.Close(held) }()

	ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var swapper sync.WaitGroup
	swaps := 0
	swapper.Go(func() {
		// "link" leads outside and is exchanged with a directory, back and forth.
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("d%d", i%50)
			link := fmt.Sprintf("l%d", i%50)
			_ = unix.Symlinkat(outside, held, link)
			if unix.Renameat2(held, name, held, link, unix.RENAME_EXCHANGE) == nil {
				swaps++
			}
		}
	})
	for ctx.Err() == nil && len(trash(t, p)) > 0 {
		_ = hostpath.EmptyTrash(p.backend, ctx) // it may find that somebody keeps writing
	}
	stop()
	swapper.Wait()
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
	if left := trash(t, p); len(left) != 0 {
		t.Fatalf("the trash still holds %v", left)
	}
	if after := snapshot(t, outside); after != before {
		t.Fatalf("something outside changed from\n%s\nto\n%s", before, after)
	}
	if swaps == 0 {
		t.Fatal("the swapper never got to it: this test has shown nothing")
	}
}

// A mount in the trash is not walked into, a bind mount of the same filesystem
// neither; the rest is removed, and it too when the mount is gone.
func TestTrashWithMounts(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	p := newPool(t)
	outside := t.TempDir()
	writeFile(t, path.Join(outside, "canary"), "precious")
	before := snapshot(t, outside)
	deleted(t, p, func(dir string) {
		writeFile(t, path.Join(dir, "file"), "rubbish")
		must(t, os.MkdirAll(path.Join(dir, "a/bind"), 0o755))
		must(t, os.MkdirAll(path.Join(dir, "a/tmpfs"), 0o755))
	})
	entry := path.Join(p.root, ".trash", trash(t, p)[0].Name())
	mountBind(t, outside, path.Join(entry, "a/bind"))
	mountTmpfs(t, path.Join(entry, "a/tmpfs"), "size=1m")
	writeFile(t, path.Join(entry, "a/tmpfs/canary"), "precious")

	err := hostpath.EmptyTrash(p.backend, t.Context())
	if err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Fatalf("EmptyTrash with mounts = %v, want an error that says so", err)
	}
	if after := snapshot(t, outside); after != before {
		t.Fatalf("the bind mount was walked into: from\n%s\nto\n%s", before, after)
	}
	if _, err := os.Stat(path.Join(entry, "a/tmpfs/canary")); err != nil {
		t.Fatalf("the mount was walked into: %v", err)
	}
	if _, err := os.Stat(path.Join(entry, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("one mount kept everything else in the trash")
	}
	must(t, unix.Unmount(path.Join(entry, "a/bind"), 0))
	must(t, unix.Unmount(path.Join(entry, "a/tmpfs"), 0))
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
	if left := trash(t, p); len(left) != 0 {
		t.Fatalf("the trash still holds %v", left)
	}
}

// What cannot be removed is left, told, and does not keep the rest.
func TestTrashTellsWhatItCannotRemove(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the immutable flag needs root")
	}
	p := newPool(t)
	var stubborn *os.File
	deleted(t, p, func(dir string) {
		writeFile(t, path.Join(dir, "stubborn"), "immutable")
		writeFile(t, path.Join(dir, "file"), "rubbish")
		var err error
		stubborn, err = os.Open(path.Join(dir, "stubborn"))
		must(t, err)
	})
	defer stubborn.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	if err := unix.IoctlSetPointerInt(int(stubborn.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
		t.Skipf("this filesystem has no immutable flag: %v", err)
	}
	t.Cleanup(func() { _ = unix.IoctlSetPointerInt(int(stubborn.Fd()), unix.FS_IOC_SETFLAGS, 0) })
	err := hostpath.EmptyTrash(p.backend, t.Context())
	if err == nil || !strings.Contains(err.Error(), "stubborn") {
		t.Fatalf("EmptyTrash = %v, want an error that names the file", err)
	}
	entry := path.Join(p.root, ".trash", trash(t, p)[0].Name())
	if names, err := os.ReadDir(entry); err != nil || len(names) != 1 {
		t.Fatalf("left are %v, %v, want the one file", names, err)
	}
	must(t, unix.IoctlSetPointerInt(int(stubborn.Fd()), unix.FS_IOC_SETFLAGS, 0))
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
	if left := trash(t, p); len(left) != 0 {
		t.Fatalf("the trash still holds %v", left)
	}
}

// Run begins with what an earlier process has left, and tells what it does.
func TestRunResumesAndTells(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	deleted(t, p, func(dir string) { writeFile(t, path.Join(dir, "sub/file"), "rubbish") })
	seen := &observer{empty: make(chan struct{})}
	b, err := hostpath.New(hostpath.Options{
		Where: hostpath.Where{Root: p.root}, RootID: p.rootID, PoolUID: poolUID,
		Trash: hostpath.TrashOptions{Observer: seen},
	})
	must(t, err)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	select {
	case <-seen.empty:
	case <-ctx.Done():
		t.Fatal("Run did not empty the trash that it found")
	}
	stop()
	must(t, <-done)
	if seen.removed != 3 {
		t.Errorf("the observer heard of %d removed entries, want 3", seen.removed)
	}
	if left := trash(t, p); len(left) != 0 {
		t.Errorf("the trash still holds %v", left)
	}
}

type observer struct {
	empty   chan struct{}
	once    sync.Once
	removed int
	states  []hostpath.TrashState
}

func (o *observer) TrashWaiting(_ string, state hostpath.TrashState) {
	o.states = append(o.states, state)
	if state.Volumes == 0 && o.empty != nil {
		o.once.Do(func() { close(o.empty) })
	}
}
func (o *observer) TrashRemoved(_ string, entries int) { o.removed += entries }
func (o *observer) TrashFailed(string, error)          {}
func (o *observer) RetainedChanged(string)             {}

// The removal keeps to its rate, within a volume and over many.
func TestTrashRate(t *testing.T) {
	t.Parallel()
	for name, fill := range map[string]func(t *testing.T, trash string, i int){
		"one volume": func(t *testing.T, trash string, i int) {
			writeFile(t, path.Join(trash, "volume", strconv.Itoa(i)), "")
		},
		"many volumes": func(t *testing.T, trash string, i int) {
			must(t, os.Mkdir(path.Join(trash, strconv.Itoa(i)), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			p.stop()
			for i := range 100 {
				fill(t, path.Join(p.root, ".trash"), i)
			}
			var removed counter
			b, err := hostpath.New(hostpath.Options{
				Where: hostpath.Where{Root: p.root}, RootID: p.rootID, PoolUID: poolUID,
				Trash: hostpath.TrashOptions{EntriesPerSecond: 50, Observer: &removed},
			})
			must(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
			defer cancel()
			if err := hostpath.EmptyTrash(b, ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("EmptyTrash of 100 entries at 50 a second = %v within 1.2 s", err)
			}
			if removed < 1 || removed > 70 {
				t.Errorf("%d entries went in 1.2 s at 50 a second", removed)
			}
		})
	}
}

type counter int

func (*counter) TrashWaiting(string, hostpath.TrashState) {}
func (c *counter) TrashRemoved(_ string, entries int)     { *c += counter(entries) }
func (*counter) TrashFailed(string, error)                {}
func (*counter) RetainedChanged(string)                   {}

// It is told what is in the trash, how much that holds where somebody counts, and since when.
func TestTrashState(t *testing.T) {
	t.Parallel()
	for _, limited := range []bool{false, true} {
		t.Run(fmt.Sprintf("limited %v", limited), func(t *testing.T) {
			t.Parallel()
			q := newQuotas(t.TempDir())
			q.setOff(!limited)
			p := newLimitedPool(t, q)
			p.stop()
			began := time.Now().Add(-time.Minute) // the filesystem's clock ticks more coarsely
			for n := range 3 {
				rec, err := p.backend.Create(t.Context(), spec(n, mib))
				must(t, err)
				writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "rubbish")
				must(t, p.backend.Delete(t.Context(), volumetest.ID(n), &rec, volume.WipeZero))
			}
			var told observer
			b, err := hostpath.New(hostpath.Options{
				Where: hostpath.Where{Root: p.root}, RootID: p.rootID, PoolUID: poolUID, Quotas: q,
				Trash: hostpath.TrashOptions{Observer: &told},
			})
			must(t, err)
			must(t, hostpath.EmptyTrash(b, t.Context()))
			first, last := told.states[0], told.states[len(told.states)-1]
			if first.Volumes != 3 || first.Oldest.Before(began) || first.Oldest.After(time.Now()) {
				t.Errorf("first: %+v", first)
			}
			if last.Volumes != 0 || !last.Oldest.IsZero() {
				t.Errorf("in the end: %+v", last)
			}
			wantFirst, wantLast := int64(-1), int64(-1) // nobody counts
			if limited {
				wantFirst, wantLast = 3*fakeBlock, 0
			}
			if first.UsedBytes != wantFirst || last.UsedBytes != wantLast {
				t.Errorf("it holds %d bytes, and in the end %d, want %d and %d", first.UsedBytes, last.UsedBytes, wantFirst, wantLast)
			}
		})
	}
}
