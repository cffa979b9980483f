// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// errFixed: somebody has made a file immutable or append-only (chattr +i, +a), so that it can be given
// no project.
type errFixed struct{ path string }

func (e *errFixed) Error() string {
	return fmt.Sprintf("%s was made immutable or append-only, so that it cannot be counted; take that away (lsattr shows it, chattr -i -a ends it), and the adoption goes on by itself", e.path)
}

// requireChangeable returns *errFixed for the first file or directory below an open directory, whose
// path is dir, that can be given no project.
func requireChangeable(ctx context.Context, top int, dir string) error {
	at := "."
	fixed := &errFixed{}
	err := walkTree(ctx, top, func(rel string, fd int) error {
		at = rel
		return checkChangeable(fd, "", path.Join(dir, rel))
	}, func(parent int, name string, st *unix.Stat_t) error {
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil // it gets none anyhow
		}
		return checkChangeable(parent, name, path.Join(dir, at, name))
	})
	if errors.As(err, &fixed) {
		return fixed // without what has led to it
	}
	return err
}

func checkChangeable(parent int, name, full string) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	switch err := unix.Statx(parent, name, flags, unix.STATX_TYPE, &st); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at its flags: %w", err)
	case st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return &errFixed{full}
	}
	return nil
}
