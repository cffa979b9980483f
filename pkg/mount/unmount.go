// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
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

// UnmountGone takes away from the target the filesystems of devices that the kernel does not
// have any more: of disks that were pulled out while they were mounted. Nothing can be read
// from them or written to them, and the disk that is put back is another device, with another
// number. What else is mounted there stays. Errors as Unmount.
func (m *Mounter) UnmountGone(ctx context.Context, target string) error {
	err := m.host.InMountNamespace(ctx, func() error {
		path, err := resolve(target)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		for range stackedMounts {
			current, err := mountAt(path)
			if err != nil || current == nil {
				return err
			}
			if gone, err := m.isGone(current); err != nil || !gone {
				return err
			}
			if err := unmountTop(path, current); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("unmount %s, whose device is gone: %w", target, err)
	}
	return nil
}

// isGone reports whether a mount shows the filesystem of a block device that the kernel does
// not have. btrfs and what is on no device have numbers of their own, below major 1. Where sysfs
// cannot be seen it is an error: that nothing is shown there proves nothing.
func (m *Mounter) isGone(i *mountinfo.Info) (bool, error) {
	if i.Major == 0 {
		return false, nil
	}
	if _, err := os.ReadDir(m.sysBlock); err != nil {
		return false, fmt.Errorf("look for the device of %s: %w", i.Source, err)
	}
	_, err := os.Lstat(filepath.Join(m.sysBlock, fmt.Sprintf("%d:%d", i.Major, i.Minor)))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
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
		if err := unmountTop(path, current); err != nil {
			return err
		}
	}
	return fmt.Errorf("it is still a mount point after %d unmounts", stackedMounts)
}

// unmountTop takes away the mount that is on top at a path. Only the table says whether it is
// gone.
func unmountTop(path string, current *mountinfo.Info) error {
	switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL, unix.ENOENT: // the last two: gone meanwhile
		return nil
	case unix.EBUSY:
		return fmt.Errorf("%w: %s is held by a process or another mount", volume.ErrInUse, current.Source)
	default:
		return err
	}
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
