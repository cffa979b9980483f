// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Subvolumes are directories that can be copied at one instant; btrfs.Subvolumes are the real
// ones. Directories are given as open descriptors.
type Subvolumes interface {
	// Supported reports whether the filesystem of a directory has any.
	Supported(dir int) (bool, error)
	// Is reports whether a directory is the root of one.
	Is(dir int) (bool, error)
	// ID is the number of the one that a directory is in, which no other one of the filesystem
	// ever has.
	ID(dir int) (uint64, error)
	// Create makes an empty one.
	Create(dir int, name string) error
	// Snapshot makes a durable copy of the one whose root is given.
	Snapshot(dir int, name string, of int) error
	// Remove removes one; unix.ENOTEMPTY when there is another one in it.
	Remove(dir int, name string) error
	// SetWritable lets one be written to.
	SetWritable(dir int) error
	// HasOthers reports whether there are others in it.
	HasOthers(dir int) (bool, error)
}

// makesSubvolumes reports whether new volumes are subvolumes: the filesystem has them, and it
// went well when it was tried.
func (b *Backend) makesSubvolumes(root *os.Root) (bool, error) {
	if has, err := b.hasSubvolumes(root); err != nil || !has {
		return false, err
	}
	err := b.checkCopies(root)
	if errors.Is(err, ErrNoCopies) {
		err = nil
	}
	b.sharing.mu.Lock()
	defer b.sharing.mu.Unlock()
	return b.sharing.instant, err
}

func (b *Backend) hasSubvolumes(root *os.Root) (has bool, err error) {
	err = withDir(root, berthDir, func(fd int) error {
		has, err = b.Subvolumes.Supported(fd)
		return err
	})
	return has, err
}

// isSubvolume reports whether what a promise is of is a subvolume, and so copied at one
// instant.
func (b *Backend) isSubvolume(root *os.Root, p promise) (is bool, err error) {
	err = withVolume(root, p, func(_, fd int) error {
		is, err = b.Subvolumes.Is(fd)
		return err
	})
	return is, err
}

// trySubvolumes makes one, copies it and removes both.
func (b *Backend) trySubvolumes(root *os.Root) error {
	if err := b.step("try subvolumes"); err != nil {
		return err
	}
	const name, copied = "probe.subvolume" + tmpSuffix, "probe.subvolume.copy" + tmpSuffix
	return withRealDir(root, berthDir, func(dir int) error {
		_ = b.removeProbe(root, dir, name) // what a killed process has left
		_ = b.removeProbe(root, dir, copied)
		if err := b.Subvolumes.Create(dir, name); err != nil {
			return err
		}
		of, err := openDir(dir, name)
		if err == nil {
			err = b.Subvolumes.Snapshot(dir, copied, of)
			closeFD(of)
		}
		if err == nil {
			err = b.removeProbe(root, dir, copied)
		}
		return errors.Join(err, b.removeProbe(root, dir, name))
	})
}

// removeProbe removes a subvolume that was made to try it, and later its group.
func (b *Backend) removeProbe(root *os.Root, dir int, name string) error {
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if err := b.noteGroup(root, fd); err != nil {
		return err
	}
	return b.Subvolumes.Remove(dir, name)
}

// makeTree makes an empty directory in an open one, as a subvolume where there are any.
func (b *Backend) makeTree(root *os.Root, work int) (tree int, err error) {
	subvolumes, err := b.makesSubvolumes(root)
	if err != nil {
		return -1, err
	}
	if subvolumes {
		err = b.Subvolumes.Create(work, treeName)
	} else {
		err = unix.Mkdirat(work, treeName, freshMode)
	}
	if err != nil {
		return -1, fmt.Errorf("make a place for the volume: %w", outOfSpace(err))
	}
	return openDir(work, treeName)
}

// buildEmpty makes an empty volume out of sight and renames it into its place: a subvolume is
// not made with its mode.
func (b *Backend) buildEmpty(root *os.Root, p promise) error {
	return b.build(root, p, func(work int) error {
		tree, err := b.makeTree(root, work)
		if err != nil {
			return err
		}
		defer closeFD(tree)
		if err := b.assign(tree, p); err != nil {
			return err
		}
		if err := unix.Fchmod(tree, volumeMode); err != nil {
			return err
		}
		return errors.Join(b.identifyCopy(root, tree, &p), unix.Fsync(tree))
	})
}

// snapshotInto makes a copy of a subvolume in an open directory, at one instant.
func (b *Backend) snapshotInto(root *os.Root, work int, from promise) error {
	if err := b.step("snapshot the subvolume"); err != nil {
		return err
	}
	return withVolume(root, from, func(_, fd int) error {
		if err := requireIdentity(fd, from); err != nil {
			return err
		}
		if err := b.Subvolumes.Snapshot(work, treeName, fd); err != nil {
			return outOfSpace(err)
		}
		// Whatever was in it then is there still, or was removed since.
		others, err := b.Subvolumes.HasOthers(fd)
		if err == nil && others {
			err = fmt.Errorf("%w: volume %s has subvolumes of its own in it, which would be missing in a copy: remove them (btrfs subvolume delete) or make them directories",
				volume.ErrInvalid, from.Name)
		}
		return err
	})
}
