// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"bytes"
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

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

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
