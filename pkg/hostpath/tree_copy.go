// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// maxCopyDepth of directories is copied, with three descriptors each.
	maxCopyDepth = 1000
	// noCOW is FS_NOCOW_FL (include/uapi/linux/fs.h).
	noCOW = 0x00800000
)

// treeCopy copies a tree. Every name of the source is opened first, without following a link
// or crossing a mount point, and only then is looked at what it is: whoever exchanges it
// meanwhile gets either of the two copied, and nothing from elsewhere. Nobody but us can open
// the copy.
//
// Modes, owners, times, extended attributes and what is a name of the same file are kept.
// Flags of files (chattr(1)) are not, but for the one without which nothing can be shared.
type treeCopy struct {
	clone func(to, from int) error
	step  func(string) error
	// links is an open directory in which each file that has several names gets one more, by
	// which the copy is found when the next of them comes.
	links int
	// copied is called for each file and directory that was copied.
	copied func()
}

// errChanged: somebody writes to what is copied.
func errChanged(name string, err error) error {
	return fmt.Errorf("%w: %q has changed while it was copied (%s): somebody writes to the volume", volume.ErrInvalid, name, err.Error())
}

// content copies what is in one open directory to another one.
func (c *treeCopy) content(ctx context.Context, from, to, depth int) error {
	own, err := openDir(from, ".")
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(own), ".")
	defer dir.Close()
	for {
		names, readErr := dir.Readdirnames(batchEntries)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.entry(ctx, from, to, name, depth); err != nil {
				return err
			}
		}
		switch {
		case len(names) > 0:
		case readErr != nil && !errors.Is(readErr, io.EOF):
			return fmt.Errorf("read a directory: %w", readErr)
		default:
			return nil
		}
	}
}

// entry copies a name of a directory with everything below it.
func (c *treeCopy) entry(ctx context.Context, from, to int, name string, depth int) error {
	if err := c.step("copy"); err != nil {
		return err
	}
	fd, err := openPath(from, name)
	switch {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: something is mounted at %q in the volume", volume.ErrInvalid, name)
	case errors.Is(err, unix.ENOENT):
		return errChanged(name, err)
	case err != nil:
		return fmt.Errorf("open %q: %w", name, err)
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %q: %w", name, err)
	}
	if err := c.make(ctx, fd, &st, to, name, depth); err != nil {
		return err
	}
	c.copied()
	return nil
}

// make makes the copy of what is open by its path.
func (c *treeCopy) make(ctx context.Context, fd int, st *unix.Stat_t, to int, name string, depth int) error {
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return c.directory(ctx, fd, st, to, name, depth)
	}
	key := fmt.Sprintf("%x-%x", st.Dev, st.Ino)
	if st.Nlink > 1 {
		err := unix.Linkat(c.links, key, to, name, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("link %q: %w", name, outOfSpace(err))
		}
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.file(fd, to, name)
	case unix.S_IFLNK:
		err = symlink(fd, to, name)
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		// Nothing of what is behind it is opened.
		err = unix.Mknodat(to, name, kind|0o600, int(st.Rdev))
	default:
		err = fmt.Errorf("it is of the unknown kind %#o", kind)
	}
	if err == nil {
		err = attributes(fd, st, to, name)
	}
	if err == nil && st.Nlink > 1 {
		err = unix.Linkat(to, name, c.links, key, 0)
	}
	if err != nil {
		return fmt.Errorf("copy %q: %w", name, outOfSpace(err))
	}
	return nil
}

func (c *treeCopy) directory(ctx context.Context, fd int, st *unix.Stat_t, to int, name string, depth int) error {
	if depth >= maxCopyDepth {
		return fmt.Errorf("%w: the directory %q is %d levels deep, and no more than that are copied", volume.ErrInvalid, name, maxCopyDepth)
	}
	if err := unix.Mkdirat(to, name, freshMode); err != nil {
		return fmt.Errorf("make %q: %w", name, outOfSpace(err))
	}
	copied, err := openDir(to, name)
	if err != nil {
		return fmt.Errorf("open the copy of %q: %w", name, err)
	}
	defer closeFD(copied)
	if err := c.content(ctx, fd, copied, depth+1); err != nil {
		return err
	}
	// Last: what is made in it changes its times, and would take on what it hands down.
	if err := attributes(fd, st, to, name); err != nil {
		return fmt.Errorf("copy %q: %w", name, outOfSpace(err))
	}
	return nil
}

func (c *treeCopy) file(fd, to int, name string) error {
	// The very file, whatever has its name by now. It is not waited for who has a lease on it.
	from, err := unix.Open(magicLink(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EAGAIN) {
		return errChanged(name, err)
	}
	if err != nil {
		return err
	}
	defer closeFD(from)
	copied, err := unix.Openat(to, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer closeFD(copied)
	err = c.clone(copied, from)
	if errors.Is(err, unix.EINVAL) && isNoCOW(from) && !isNoCOW(copied) {
		// btrfs: blocks that are written in place are shared only by files that all do so.
		if err := unix.IoctlSetPointerInt(copied, unix.FS_IOC_SETFLAGS, noCOW); err != nil {
			return err
		}
		err = c.clone(copied, from)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ETXTBSY) {
		err = fmt.Errorf("%w: its blocks cannot be shared: %s", volume.ErrInvalid, err.Error())
	}
	return err
}

func isNoCOW(fd int) bool {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	return err == nil && flags&noCOW != 0
}

func symlink(fd, to int, name string) error {
	for size := 256; ; size *= 2 {
		target := make([]byte, size)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return err
		}
		if n < size {
			return unix.Symlinkat(string(target[:n]), to, name)
		}
	}
}

// attributes gives a copy the owner, mode, extended attributes and times of what it was copied
// of, in the order in which none undoes another one: a change of the owner takes set-user-ID
// and capabilities away, and an access control list sets the mode.
func attributes(fd int, st *unix.Stat_t, to int, name string) error {
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its owner: %w", err)
	}
	if err := extendedAttributes(magicLink(fd), magicLink(to)+"/"+name); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set its mode: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	return nil
}

func extendedAttributes(from, to string) error {
	names, err := sized(func(b []byte) (int, error) { return unix.Listxattr(from, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list its extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if !isCopied(name) {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return unix.Getxattr(from, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // taken away since it was listed
		}
		if err != nil {
			return fmt.Errorf("read its extended attribute %s: %w", name, err)
		}
		err = unix.Lsetxattr(to, name, value, 0)
		if name == "security.selinux" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)) {
			err = nil // the label of its directory; container runtimes label what they mount
		}
		if err != nil {
			return fmt.Errorf("set its extended attribute %s: %w", name, err)
		}
	}
	return nil
}

// isCopied reports whether an extended attribute is part of a file. An access control list of
// xfs has two names, of which one is the kernel's own.
func isCopied(name string) bool {
	if strings.HasPrefix(name, "trusted.SGI_ACL_") {
		return false
	}
	for _, prefix := range []string{"user.", "trusted.", "security.", "system.posix_acl_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// sized calls a function that says how much there is when it is given nothing to read into,
// and ERANGE when there is more.
func sized(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		n, err = read(b)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// openPath opens a name for nothing but to say what it is, be it a link or a device; see
// openDir.
func openPath(parent int, name string) (int, error) {
	for {
		fd, err := unix.Openat2(parent, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// magicLink is a path that leads to what a descriptor has open, and nowhere else (proc(5)).
func magicLink(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
