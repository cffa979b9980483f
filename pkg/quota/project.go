// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrUnsupported: the filesystem cannot limit directories as it is mounted now. The text says
// what is missing.
var ErrUnsupported = errors.New("directories cannot be limited")

// These are ErrUnsupported that may pass while the filesystem is mounted.
var (
	// ErrOff: somebody can switch limits on.
	ErrOff = fmt.Errorf("%w as it is now", ErrUnsupported)
	// ErrUncounted: limits can be set, and hold as soon as the filesystem knows again what is
	// taken.
	ErrUncounted = fmt.Errorf("%w for now", ErrUnsupported)
)

// Usage is what the kernel knows of a project.
type Usage struct {
	// LimitBytes is what its files may take; 0 is no limit.
	LimitBytes int64
	// UsedBytes and Inodes are what they take now.
	UsedBytes int64
	Inodes    int64
}

// Projects are the project quotas of the filesystem that a directory is on. Directories are
// given as open descriptors, so that nobody can put another one in their place.
type Projects struct{}

// Check returns ErrUnsupported, with the reason, unless limits hold on the filesystem that an
// open directory is on.
func (Projects) Check(dir int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the filesystem: %w", err)
	}
	switch uint32(fs.Type) {
	case unix.XFS_SUPER_MAGIC, unix.EXT4_SUPER_MAGIC:
	default:
		return fmt.Errorf("%w: only xfs and ext4 have project quotas, and the filesystem is of type %#x", ErrUnsupported, uint32(fs.Type))
	}
	var state quotaState
	state.version = 1
	err := quotactl(dir, getState, 0, unsafe.Pointer(&state))
	switch {
	case errors.Is(err, unix.ENOSYS) && errors.Is(quotactl(-1, getState, 0, unsafe.Pointer(&state)), unix.ENOSYS):
		return fmt.Errorf("%w: the kernel has no quotactl_fd(2), which Linux 5.14 brought", ErrUnsupported)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), err == nil && state.flags&projectsCounted == 0:
		return fmt.Errorf("%w: the filesystem counts no projects: mount it with the option prjquota; an ext4 needs the features project and quota besides (tune2fs -O project,quota while it is not mounted)", ErrUnsupported)
	case err != nil:
		return fmt.Errorf("look at the quotas of the filesystem: %w", err)
	case state.flags&projectsLimited == 0:
		return fmt.Errorf("%w: the filesystem counts projects and does not limit them: mount it with the option prjquota", ErrUnsupported)
	}
	return nil
}

// Usage returns what is counted for a project on the filesystem of an open directory. A project
// that nothing was ever counted for is all zero.
func (Projects) Usage(dir int, project uint32) (Usage, error) {
	var q diskQuota
	err := quotactl(dir, getQuota, project, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) {
		return Usage{}, nil // xfs keeps no record of what was never used
	}
	if err != nil {
		return Usage{}, fmt.Errorf("read the quota of project %d: %w", project, err)
	}
	return Usage{
		LimitBytes: int64(q.blockHardLimit) * quotaBlockBytes,
		UsedBytes:  int64(q.space),
		Inodes:     int64(q.inodes),
	}, nil
}

// SetLimit lets the files of a project take so many bytes at most, rounded up to whole KiB; 0
// takes the limit away. What they take already stays, also where it is more.
func (Projects) SetLimit(dir int, project uint32, limitBytes int64) error {
	if limitBytes < 0 || project == 0 {
		return fmt.Errorf("limit project %d to %d bytes: %w", project, limitBytes, unix.EINVAL)
	}
	q := diskQuota{blockHardLimit: uint64(limitBytes+quotaBlockBytes-1) / quotaBlockBytes, valid: limitsValid}
	if err := quotactl(dir, setQuota, project, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit project %d to %d bytes: %w", project, limitBytes, err)
	}
	return nil
}

// ProjectOf returns the project of an open file or directory, and whether what is made in it
// gets the same.
func (Projects) ProjectOf(fd int) (project uint32, inherited bool, err error) {
	var a attributes
	if err := ioctl(fd, getAttributes, unsafe.Pointer(&a)); err != nil {
		return 0, false, fmt.Errorf("read the project: %w", err)
	}
	return a.project, a.flags&projectInherited != 0, nil
}

// Assign gives an open directory a project, which all that is made in it from now on gets, too.
// What is in it already keeps its own.
func (Projects) Assign(fd int, project uint32) error {
	return assign(fd, project, projectInherited)
}

// AssignFile gives an open file a project.
func (Projects) AssignFile(fd int, project uint32) error {
	return assign(fd, project, 0)
}

func assign(fd int, project, flags uint32) error {
	var a attributes
	if err := ioctl(fd, getAttributes, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("read the project: %w", err)
	}
	if a.project == project && a.flags&flags == flags {
		return nil
	}
	a.project, a.flags = project, a.flags|flags
	if err := ioctl(fd, setAttributes, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("assign project %d: %w", project, err)
	}
	return nil
}
