// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// walkTree visits what is in an open directory: each directory before what is in it, that
// itself as ".". No link is followed and no mount point crossed. What vanishes meanwhile is
// left out.
func walkTree(ctx context.Context, top int, directory func(rel string, fd int) error, other func(dir int, name string, st *unix.Stat_t) error) error {
	for left := []string{"."}; len(left) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		rel := left[len(left)-1]
		left = left[:len(left)-1]
		below, err := visit(top, rel, directory, other)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		left = append(left, below...)
	}
	return nil
}

// visit visits one directory and returns those in it.
func visit(top int, rel string, directory func(rel string, fd int) error, other func(dir int, name string, st *unix.Stat_t) error) (below []string, err error) {
	fd, err := openDir(top, rel)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case errors.Is(err, unix.EXDEV):
		return nil, errors.New("something is mounted there")
	case err != nil:
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), rel)
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := directory(rel, fd); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var st unix.Stat_t
		switch err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return nil, fmt.Errorf("stat %q: %w", name, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below = append(below, path.Join(rel, name))
			continue
		}
		if err := other(fd, name, &st); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	return below, nil
}

// sectorBytes is what st_blocks counts in (stat(2)).
const sectorBytes = 512

// treeBytes is what a directory takes of the filesystem with all that is in it, each file
// once however many links it has.
func treeBytes(ctx context.Context, top int) (sizeBytes int64, err error) {
	linked := map[uint64]bool{}
	err = walkTree(ctx, top, func(_ string, fd int) error {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		sizeBytes += st.Blocks * sectorBytes
		return err
	}, func(_ int, _ string, st *unix.Stat_t) error {
		if st.Nlink > 1 {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		sizeBytes += st.Blocks * sectorBytes
		return nil
	})
	return sizeBytes, err
}

// assignTree has a directory counted by a project with all that is in it. That itself comes
// last, so that it tells whether all has got it; repeated, it goes on. Symbolic links,
// pipes, sockets and devices cannot be given a project by an ioctl, and take next to nothing.
func (b *Backend) assignTree(ctx context.Context, top int, project uint32) error {
	err := walkTree(ctx, top, func(rel string, fd int) error {
		if err := b.step("assign project"); err != nil || rel == "." {
			return err
		}
		return b.Quotas.Assign(fd, project)
	}, func(dir int, name string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		defer closeFD(fd)
		return b.Quotas.AssignFile(fd, project)
	})
	if err != nil {
		return err
	}
	if err := b.step("assign project to the whole"); err != nil {
		return err
	}
	if err := b.Quotas.Assign(top, project); err != nil {
		return err
	}
	return unix.Fsync(top)
}
