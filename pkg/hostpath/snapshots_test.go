// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func snapshotSpec(n, of int, rec volume.Record) volume.SnapshotSpec {
	return volume.SnapshotSpec{ID: volumetest.ID(n), Name: fmt.Sprintf("snap-%d", n), VolumeID: volumetest.ID(of), Volume: rec}
}

// copyOf is a wish for volume n as a copy of something.
func copyOf(n, of int, rec volume.Record, isSnapshot bool) volume.Spec {
	s := spec(n, rec.SizeBytes)
	s.Source = &volume.Source{ID: volumetest.ID(of), Record: rec, Snapshot: isSnapshot}
	return s
}

func (p *pool) dirOf(rec volume.Record) string { return path.Join(p.root, rec.Hostpath.Directory) }

// volumeWith is a volume in which a file is.
func volumeWith(t *testing.T, p *pool, n int) (rec volume.Record, dir string) {
	t.Helper()
	rec, err := p.backend.Create(t.Context(), spec(n, mib))
	must(t, err)
	dir = p.dirOf(rec)
	writeFile(t, path.Join(dir, "below", "file"), "data")
	return rec, dir
}

// Everything about a file is in its copy, whatever kind of file it is.
func TestCopyKeepsEverything(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for owners and devices")
	}
	p := newCopyingPool(t)
	rec, dir := volumeWith(t, p, 1)
	fillWithEverything(t, dir)
	before := describe(t, dir)

	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	if got := describe(t, p.dirOf(snap)); got != before {
		t.Errorf("the snapshot is\n%s\nwant\n%s", got, before)
	}
	must(t, os.RemoveAll(path.Join(dir, "below")))
	restored, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true))
	must(t, err)
	if got := describe(t, p.dirOf(restored)); got != before {
		t.Errorf("the restored volume is\n%s\nwant\n%s", got, before)
	}
	must(t, os.WriteFile(path.Join(p.dirOf(restored), "one"), []byte("changed"), 0o600))
	if got := describe(t, p.dirOf(snap)); got != before {
		t.Errorf("what was written to the restored volume is in the snapshot:\n%s", got)
	}
}

func fillWithEverything(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return path.Join(dir, name) }
	writeFile(t, in("one"), "of two names")
	must(t, os.Link(in("one"), in("below/two")))
	must(t, os.Chown(in("one"), 1000, 2000))
	must(t, unix.Setxattr(in("one"), "user.berth", []byte("value\x00with zero"), 0))
	must(t, unix.Setxattr(in("one"), "trusted.berth", nil, 0))
	writeFile(t, in("program"), "#!")
	must(t, os.Chmod(in("program"), 0o755|fs.ModeSetuid|fs.ModeSticky))
	writeFile(t, in("capable"), "#!")
	// struct vfs_cap_data of revision 2: cap_net_bind_service, effective.
	must(t, unix.Setxattr(in("capable"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	must(t, os.Mkdir(in("shared"), 0o755))
	must(t, unix.Setxattr(in("shared"), "system.posix_acl_default", accessList(1000), 0))
	must(t, os.WriteFile(in("shared/listed"), nil, 0o600))
	must(t, unix.Setxattr(in("shared/listed"), "system.posix_acl_access", accessList(1001), 0))
	must(t, os.Chmod(in("shared"), 0o775|fs.ModeSetgid))
	must(t, os.Symlink("/etc/passwd", in("link")))
	must(t, os.Symlink(strings.Repeat("x", 1000), in("long link")))
	must(t, os.Lchown(in("link"), 7, 8))
	must(t, os.Link(in("link"), in("link again")))
	must(t, unix.Mkfifo(in("fifo"), 0o640))
	must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", in("socket"))
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	sparse, err := os.Create(in("name with\nnew line"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 1<<20)
	must(t, errors.Join(err, sparse.Close()))
	long := time.Date(1999, 12, 31, 23, 59, 59, 123456789, time.UTC)
	for _, name := range []string{"one", "below", "shared", "fifo", ""} {
		must(t, os.Chtimes(in(name), long, long))
	}
	must(t, os.Chmod(dir, 0o750))
}

// accessList is a POSIX access control list with one more user (struct posix_acl_xattr_header).
func accessList(user uint32) []byte {
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, 1<<32 - 1}, {2, 6, user}, {4, 4, 1<<32 - 1}, {16, 6, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	return list
}

// describe is everything that is in a tree, the tree's own directory too, and what shares an
// inode.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%q %o %d:%d %d %v", rel, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if _, seen := first[st.Ino]; !seen {
				first[st.Ino] = rel
			}
			fmt.Fprintf(&out, " is %q of %d", first[st.Ino], st.Nlink)
		}
		list := make([]byte, 1024)
		n, err := unix.Llistxattr(name, list)
		if err != nil {
			return err
		}
		attributes := strings.Split(string(list[:n]), "\x00")
		slices.Sort(attributes)
		for _, a := range attributes[1:] {
			value := make([]byte, 1024)
			n, err := unix.Lgetxattr(name, a, value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s=%x", a, value[:n])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %d %q", st.Size, bytes.Trim(data, "\x00"))
		case unix.S_IFLNK:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " -> %s", target)
		}
		out.WriteByte('\n')
		return nil
	}))
	return out.String()
}

// Files are copied one after another: of a volume that somebody can write to nothing is made.
func TestCopyOfWhatIsWrittenTo(t *testing.T) {
	t.Parallel()
	for _, during := range []bool{false, true} {
		t.Run(fmt.Sprintf("mounted during the copy %t", during), func(t *testing.T) {
			t.Parallel()
			p := newCopyingPool(t)
			rec, dir := volumeWith(t, p, 1)
			before, err := p.backend.Capacity(t.Context())
			must(t, err)
			if during {
				p.cloning = func() { p.write(dir, true) }
			} else {
				p.write(dir, true)
			}
			_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "stop the pods") {
				t.Errorf("Snapshot = %v, want a refusal that says what to do", err)
			}
			p.write(dir, false)
			if !during {
				p.write(dir, true)
			}
			if _, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false)); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("Create of a clone = %v, want a refusal", err)
			}
			p.settle(t)
			wantNothing(t, p, before)
			p.cloning = nil
			p.write(dir, false)
			_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			must(t, err)
		})
	}
}

// wantNothing checks that a call that was refused has left nothing.
func wantNothing(t *testing.T, p *pool, before volume.Capacity) {
	t.Helper()
	found, err := p.backend.ListSnapshots(t.Context())
	must(t, err)
	volumes, err := p.backend.List(t.Context())
	must(t, err)
	after, err := p.backend.Capacity(t.Context())
	must(t, err)
	if len(found) != 0 || len(volumes) != before.Volumes || after != before {
		t.Errorf("left are %d snapshots and %d volumes, capacity %+v, was %+v", len(found), len(volumes), after, before)
	}
}

// Whatever a pod puts in the place of what is copied, nothing from outside of the volume is in
// the copy, and nothing outside is written to.
func TestHostileCopy(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(t *testing.T, dir, outside string){
		"directory for a link": func(t *testing.T, dir, outside string) {
			must(t, os.Rename(path.Join(dir, "z"), path.Join(dir, "away")))
			must(t, os.Symlink(outside, path.Join(dir, "z")))
		},
		"file for a link": func(t *testing.T, dir, outside string) {
			must(t, os.Remove(path.Join(dir, "z", "file")))
			must(t, os.Symlink(path.Join(outside, "secret"), path.Join(dir, "z", "file")))
		},
		"directory for a fifo": func(t *testing.T, dir, _ string) {
			must(t, os.RemoveAll(path.Join(dir, "z")))
			must(t, unix.Mkfifo(path.Join(dir, "z"), 0o666))
		},
		"removed": func(t *testing.T, dir, _ string) { must(t, os.RemoveAll(path.Join(dir, "z"))) },
		"moved out of the directory that is read": func(t *testing.T, dir, _ string) {
			must(t, os.Rename(path.Join(dir, "a"), path.Join(dir, "z", "a")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newCopyingPool(t)
			rec, err := p.backend.Create(t.Context(), spec(1, mib))
			must(t, err)
			dir := p.dirOf(rec)
			for _, sub := range []string{"a", "z"} {
				writeFile(t, path.Join(dir, sub, "file"), "data")
			}
			outside := t.TempDir()
			writeFile(t, path.Join(outside, "secret"), "secret")
			writeFile(t, path.Join(outside, "file"), "secret")
			before := snapshot(t, outside)
			done := false
			p.cloning = func() {
				if !done {
					done = true
					exchange(t, dir, outside)
				}
			}
			snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			if err == nil {
				if got := snapshot(t, p.dirOf(snap)); strings.Contains(got, `"secret"`) {
					t.Errorf("what is outside is in the snapshot:\n%s", got)
				}
			} else if !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("Snapshot = %v", err)
			}
			if after := snapshot(t, outside); after != before {
				t.Errorf("something outside changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// Nor does anything lead out of the root where a directory of its own was exchanged for a link.
func TestCopiesDoNotLeadOut(t *testing.T) {
	t.Parallel()
	for _, exchanged := range []string{"snapshots", ".copies", ".berth/snapshots", "snapshots/" + volumetest.ID(5)} {
		t.Run(exchanged, func(t *testing.T) {
			t.Parallel()
			p := newCopyingPool(t)
			rec, _ := volumeWith(t, p, 1)
			snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			must(t, err)
			p.settle(t)
			p.stop()
			outside := t.TempDir()
			must(t, os.Rename(path.Join(p.root, exchanged), path.Join(outside, "copy")))
			must(t, os.Symlink(path.Join(outside, "copy"), path.Join(p.root, exchanged)))
			before := snapshot(t, outside)
			for name, call := range map[string]func() error{
				"Snapshot":       func() error { _, err := p.backend.Snapshot(t.Context(), snapshotSpec(6, 1, rec)); return err },
				"Create":         func() error { _, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true)); return err },
				"DeleteSnapshot": func() error { return p.backend.DeleteSnapshot(t.Context(), volumetest.ID(5), &snap) },
			} {
				own := name == "Snapshot" && strings.HasPrefix(exchanged, "snapshots/") || name == "DeleteSnapshot" && exchanged == ".copies"
				if err := call(); err == nil && !own {
					t.Errorf("%s with %s exchanged was done", name, exchanged)
				}
			}
			if after := snapshot(t, outside); after != before {
				t.Errorf("something outside changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A snapshot that is deleted while a volume is made of it makes none.
func TestSnapshotDeletedDuringRestore(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	p.cloning = func() { must(t, p.backend.DeleteSnapshot(t.Context(), volumetest.ID(5), &snap)) }
	if _, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true)); err == nil {
		t.Error("a volume was made of half a snapshot")
	}
	// What was removed under the walk's feet says nothing about the snapshot; the retry does.
	if _, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true)); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a copy of what is deleted: %v", err)
	}
	p.settle(t)
	before.AllocatedBytes, before.FreeBytes, before.MaxVolumeBytes = before.AllocatedBytes-mib, before.FreeBytes+mib, before.MaxVolumeBytes+mib
	wantNothing(t, p, before)
}

// Where files cannot share their blocks, copies are refused with the reason, and so are trees
// that cannot be copied.
func TestCopyRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	if _, err := p.backend.Copies(t.Context()); err == nil {
		t.Skip("the filesystem of the tests has reflinks")
	} else if !errors.Is(err, hostpath.ErrNoCopies) || !strings.Contains(err.Error(), "reflink=1") {
		t.Fatalf("Copies = %v", err)
	}
	rec, _ := volumeWith(t, p, 1)
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	if _, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec)); !errors.Is(err, volume.ErrInvalid) || !errors.Is(err, hostpath.ErrNoCopies) {
		t.Errorf("Snapshot = %v", err)
	}
	wantNothing(t, p, before)
	if left, err := filepath.Glob(path.Join(p.root, ".berth/probe*")); err != nil || len(left) > 0 {
		t.Errorf("what was tried is still there: %v, %v", left, err)
	}
}

func TestCopyOfTooDeep(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, dir := volumeWith(t, p, 1)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 1001 {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, errors.Join(err, unix.Close(fd)))
		fd = next
	}
	must(t, unix.Close(fd))
	if _, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec)); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Snapshot = %v, want ErrInvalid", err)
	}
	p.settle(t)
}

func TestCopyOverMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := newCopyingPool(t)
	rec, dir := volumeWith(t, p, 1)
	mountBind(t, t.TempDir(), path.Join(dir, "below"))
	if _, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec)); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "mounted at") {
		t.Errorf("Snapshot = %v, want a refusal", err)
	}
}

// A copy has a limit and a project of its own, and grows.
func TestCopyIsLimited(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, copies: true})
	rec, _ := volumeWith(t, p, 1)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	larger := copyOf(2, 5, snap, true)
	larger.SizeBytes, larger.Limited = 3*mib, true
	restored, err := p.backend.Create(t.Context(), larger)
	must(t, err)
	seen := map[uint32]bool{}
	for name, want := range map[*volume.Record]int64{&rec: mib, &snap: mib, &restored: 3 * mib} {
		project, limit := q.of(t, p, *name)
		if seen[project] || project == 0 || limit != want {
			t.Errorf("%s has project %d and limit %d, want one of its own and %d", name.Hostpath.Directory, project, limit, want)
		}
		seen[project] = true
	}
}

// Blocks that are shared are there once, and may be written anew: where others fill the
// filesystem, too, they are not promised a second time.
func TestCapacityWithSharedBlocks(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, copies: true})
	rec, dir := volumeWith(t, p, 1)
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	const files = 8
	for n := range files {
		writeFile(t, path.Join(dir, fmt.Sprint(n)), "")
		q.count(t, path.Join(dir, fmt.Sprint(n)), dir)
	}
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	for n := range files {
		q.count(t, path.Join(p.dirOf(snap), fmt.Sprint(n)), p.dirOf(snap))
	}
	// What the volume has is the filesystem's, the snapshot's is shared, and the rest is others'.
	const used = (files + 1) * fakeBlock
	p.others.Store(5*volumeBytes - 10*mib)
	c, err := p.backend.Capacity(t.Context())
	must(t, err)
	if want := int64(10*mib - 2*mib + used); c.FreeBytes != want {
		t.Errorf("free are %d bytes, want %d: what the two have not written yet, and what they share, is theirs", c.FreeBytes, want)
	}
}

// count lets a file be counted by the project of a directory, as it would be had it been made
// in it.
func (q *quotas) count(t *testing.T, file, dir string) {
	t.Helper()
	var of, in unix.Stat_t
	must(t, unix.Lstat(file, &of))
	must(t, unix.Lstat(dir, &in))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.projects[of.Ino] = q.projects[in.Ino]
}

// What a killed copy has left is removed when the next process begins, and a volume that is
// there is not.
func TestCopiesAreSweptUp(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	must(t, os.MkdirAll(path.Join(p.root, ".copies", volumetest.ID(2)+".abcdefghijklm", "tree", "sub"), 0o700))
	p.restart(t)
	p.settle(t)
	_, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec)
	must(t, err)
}

// AbandonCopy removes what was begun, and no volume.
func TestAbandonCopy(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	p.crashAt(t, 7)
	if _, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false)); err == nil || !p.dead() {
		t.Fatalf("Create = %v, want it to be killed", err)
	}
	p.restart(t)
	for _, n := range []int{1, 2, 2, 3} {
		must(t, p.backend.AbandonCopy(t.Context(), volumetest.ID(n)))
	}
	found, err := p.backend.List(t.Context())
	must(t, err)
	if len(found) != 1 || found[0].ID != volumetest.ID(1) {
		t.Errorf("there are %v", found)
	}
	clone, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false))
	must(t, err)
	must(t, p.backend.AbandonCopy(t.Context(), volumetest.ID(2)))
	_, err = p.backend.Locate(t.Context(), volumetest.ID(2), clone)
	must(t, err)
}

// What shall not wait for its turn is told how to, and finds what it has begun.
func TestCopiesAwaitTheirTurn(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	clone, snapshot := copyOf(2, 1, rec, false), snapshotSpec(5, 1, rec)
	clone.Source.NoWait, snapshot.NoWait = true, true
	first, err := hostpath.TakeTurn(t.Context(), false)
	must(t, err)
	second, err := hostpath.TakeTurn(t.Context(), false)
	must(t, err)
	makeClone := func() error { _, err := p.backend.Create(t.Context(), clone); return err }
	makeSnapshot := func() error { _, err := p.backend.Snapshot(t.Context(), snapshot); return err }
	var waits *volume.NoTurn
	for _, copies := range []func() error{makeClone, makeSnapshot} {
		if err := copies(); !errors.As(err, &waits) || !errors.Is(err, volume.ErrBusy) {
			t.Errorf("with others at it: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := waits.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("there was a turn: %v", err)
	}
	first()
	second()
	for _, copies := range []func() error{makeClone, makeSnapshot} {
		err := copies()
		for ; errors.As(err, &waits); err = copies() { // other tests copy as well
			must(t, waits.Await(t.Context()))
		}
		must(t, err)
	}
}

// A clone of many files that share their blocks:
//
//	BERTH_TEST_REFLINK_DIR=/mnt/xfs go test -bench Clone ./pkg/hostpath
func BenchmarkClone(b *testing.B) {
	const files, perDir, fileBytes = 20_000, 100, 64 << 10
	where, err := os.MkdirTemp(os.Getenv("BERTH_TEST_REFLINK_DIR"), "berth-bench-")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(where) })
	root := hostpath.Where{Root: path.Join(where, "pool")}
	id, err := hostpath.Init(b.Context(), root, poolUID)
	must(b, err)
	p, err := hostpath.New(hostpath.Options{Where: root, RootID: id, PoolUID: poolUID})
	must(b, err)
	if _, err := p.Copies(b.Context()); err != nil {
		b.Skipf("set BERTH_TEST_REFLINK_DIR to a directory of a filesystem with reflinks: %v", err)
	}
	rec, err := p.Create(b.Context(), spec(1, files*fileBytes))
	must(b, err)
	data := bytes.Repeat([]byte("berth"), fileBytes/5)
	for n := range files {
		dir := path.Join(root.Root, rec.Hostpath.Directory, fmt.Sprint(n/perDir))
		if n%perDir == 0 {
			must(b, os.Mkdir(dir, 0o755))
		}
		must(b, os.WriteFile(path.Join(dir, fmt.Sprint(n)), data, 0o600))
	}
	n := 0
	for b.Loop() {
		clone, err := p.Create(b.Context(), copyOf(2+n, 1, rec, false))
		must(b, err)
		b.StopTimer()
		must(b, p.Delete(b.Context(), volumetest.ID(2+n), &clone, volume.WipeNone))
		must(b, hostpath.EmptyTrash(p, b.Context()))
		n++
		b.StartTimer()
	}
	b.ReportMetric(float64(files+files/perDir)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
