// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// OpenExclusive opens a block device for reading and writing, with O_EXCL. The
// kernel then refuses it to everybody else who asks exclusively (mount, swapon,
// device-mapper, md, mkfs), and refuses it to us while one of them has it, the
// whole disk as well as any of its partitions (open(2), bd_prepare_to_claim).
//
// volume.ErrInUse: somebody holds it. volume.ErrNotFound: there is no such node.
// volume.ErrInvalid: the path is not a block device.
func OpenExclusive(path string) (*os.File, error) {
	return open(path, unix.O_RDWR|unix.O_EXCL)
}

// OpenExclusiveReadOnly keeps everybody else out as OpenExclusive does and only reads.
// Unlike that, closing it leaves no trace: udev looks again at every device that was
// open for writing. Errors as OpenExclusive.
func OpenExclusiveReadOnly(path string) (*os.File, error) {
	return open(path, unix.O_RDONLY|unix.O_EXCL)
}

// OpenReadOnly opens a block device for reading. It never waits for a medium and
// leaves no trace: closing it makes udev send no event. Errors as OpenExclusive.
func OpenReadOnly(path string) (*os.File, error) {
	return open(path, unix.O_RDONLY|unix.O_NONBLOCK)
}

func open(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	switch {
	case err == nil:
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("open %s: %w: %w", path, volume.ErrInUse, err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open %s: %w: %w", path, volume.ErrNotFound, err)
	default:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := requireBlockDevice(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func requireBlockDevice(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	if !isBlockDevice(info) {
		return fmt.Errorf("%s is not a block device: %w", file.Name(), volume.ErrInvalid)
	}
	return nil
}

func isBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
}

// SizeBytes returns the present size of an open block device (BLKGETSIZE64), or
// of a regular file.
func SizeBytes(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	if info.Mode().IsRegular() {
		return info.Size(), nil
	}
	var size uint64
	if err := ioctlPointer(file, unix.BLKGETSIZE64, &size); err != nil {
		return 0, fmt.Errorf("read the size of %s: %w", file.Name(), err)
	}
	if size > 1<<62 {
		return 0, fmt.Errorf("read the size of %s: the kernel says %d bytes", file.Name(), size)
	}
	return int64(size), nil
}

// RequireNumber makes sure that an open device is the one with these numbers: its
// path may have come to lead to another one. volume.ErrIdentity if not.
func RequireNumber(file *os.File, major, minor uint32) error {
	var stat unix.Stat_t
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var statErr error
	if err := conn.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &stat) }); err != nil {
		return err
	}
	if statErr != nil {
		return fmt.Errorf("stat %s: %w", file.Name(), statErr)
	}
	if unix.Major(stat.Rdev) != major || unix.Minor(stat.Rdev) != minor {
		return fmt.Errorf("%s is device %d:%d, not %d:%d: %w", file.Name(),
			unix.Major(stat.Rdev), unix.Minor(stat.Rdev), major, minor, volume.ErrIdentity)
	}
	return nil
}
