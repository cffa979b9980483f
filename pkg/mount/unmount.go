// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// stackedMounts bounds how many mounts at one path are taken away: more than one
// comes only from calls that raced.
const stackedMounts = 16

// Unmount takes away what is mounted at the target, makes sure by the mount table
// that it is gone, and removes the empty directory or file that is left. It does
// nothing when there is no target.
//
// It never forces and never detaches: a filesystem that somebody uses stays, and
// the call returns volume.ErrInUse. It removes by rmdir and unlink only; what is
// not empty stays, and is volume.ErrNotBlank.
func (m *Mounter) Unmount(ctx context.Context, target string) error {
	return m.takeAway(ctx, target, true)
}

// UnmountOnly is Unmount, but leaves the directory.
func (m *Mounter) UnmountOnly(ctx context.Context, target string) error {
	return m.takeAway(ctx, target, false)
}

func (m *Mounter) takeAway(ctx context.Context, target string, remove bool) error {
	err := m.host.InMountNamespace(ctx, func() error {
		path, err := resolve(target)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unmount(path); err != nil || !remove {
			return err
		}
		return removeEmpty(path)
	})
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

func unmount(path string) error {
	for range stackedMounts {
		current, err := mountAt(path)
		if err != nil {
			return err
		}
		if current == nil {
			return nil
		}
		switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EBUSY:
			return fmt.Errorf("%w: %s is held by a process or another mount", volume.ErrInUse, current.Source)
		case unix.EINVAL, unix.ENOENT:
			// Gone meanwhile: the table decides.
		default:
			return err
		}
	}
	return fmt.Errorf("it is still a mount point after %d unmounts", stackedMounts)
}

// removeEmpty removes an empty directory or an empty file, and nothing else.
func removeEmpty(path string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return fmt.Errorf("stat %s: %w", path, err)
	}
	var err error
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = unix.Rmdir(path)
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
		err = unix.Unlink(path)
	default:
		return fmt.Errorf("%w: %s holds something that was not mounted; it was left alone", volume.ErrNotBlank, path)
	}
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: directory %s holds files that were not mounted; it was left alone", volume.ErrNotBlank, path)
	}
	return fmt.Errorf("remove %s: %w", path, err)
}
