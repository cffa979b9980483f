// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// tmpSuffix is on files that were not renamed into place yet. They mean nothing.
const tmpSuffix = ".tmp"

// writeFile writes and syncs name+tmpSuffix. Renaming it to name and syncing the
// directory is the caller's.
func writeFile(root *os.Root, name string, value any) (err error) {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(name+tmpSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return outOfSpace(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(append(data, '\n')); err != nil {
		return outOfSpace(err)
	}
	return outOfSpace(f.Sync())
}

func outOfSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", volume.ErrNoSpace, err)
	}
	return err
}

// syncDir makes what happened to the names in a directory durable (fsync(2)).
func syncDir(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func readNames(root *os.Root, dir string) ([]string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// openDir opens a directory below another one. It follows no symbolic link and
// crosses no mount point, a bind mount included (openat2(2), Linux 5.6): EXDEV or
// ELOOP then, ENOTDIR when it is something else.
func openDir(parent int, name string) (int, error) {
	for {
		fd, err := unix.Openat2(parent, name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		// EAGAIN: something was renamed on the way, and the kernel could not be sure.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// closeRoot and closeFD close what was only read: there is nothing to lose.
func closeRoot(root *os.Root) { _ = root.Close() }

func closeFD(fd int) { _ = unix.Close(fd) }

// withDir runs f with the descriptor of an open directory of the root.
func withDir(root *os.Root, dir string, f func(fd int) error) error {
	file, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// room returns the size of the root's filesystem and what an unprivileged user
// may still write to it (statfs(2)).
func room(root *os.Root) (totalBytes, availBytes int64, err error) {
	var st unix.Statfs_t
	if err := withDir(root, ".", func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return 0, 0, fmt.Errorf("read the size of the filesystem: %w", err)
	}
	// Blocks count in fragments; every filesystem of Linux sets Frsize or has both
	// alike.
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
}

// withRealDir is withDir for a path of directories that must be some, and no links, and on
// the root's filesystem.
func withRealDir(root *os.Root, dir string, f func(fd int) error) error {
	return withDir(root, ".", func(top int) error {
		fd, err := openDir(top, dir)
		if err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		defer closeFD(fd)
		return f(fd)
	})
}

// isEmpty reports whether nothing is in a directory of the root.
func isEmpty(root *os.Root, parent, name string) (empty bool, err error) {
	err = withRealDir(root, parent, func(parentFD int) error {
		fd, err := openDir(parentFD, name)
		if err != nil {
			return fmt.Errorf("open %s/%s: %w", parent, name, err)
		}
		defer closeFD(fd)
		empty, err = isEmptyDir(fd)
		return err
	})
	return empty && err == nil, err
}

// isEmptyDir reports whether nothing is in an open directory.
func isEmptyDir(fd int) (bool, error) {
	// By a descriptor of its own: where it was read to is the descriptor's.
	own, err := openDir(fd, ".")
	if err != nil {
		return false, err
	}
	dir := os.NewFile(uintptr(own), ".")
	names, err := dir.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return len(names) == 0, errors.Join(err, dir.Close())
}

// ensureDir makes a directory of the root for root alone, unless it is there.
func ensureDir(root *os.Root, dir string) error {
	err := root.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return outOfSpace(err)
	}
	return syncDir(root, path.Dir(dir))
}
