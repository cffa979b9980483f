// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

// Opener takes disks into exclusive possession.
type Opener interface {
	// Open opens the disk for reading and writing, so that nobody else can mount it,
	// stack a device on it or open it exclusively, and takes the lock that udev and
	// partitioning tools obey. Closing the disk ends both.
	//
	// ErrInUse: somebody has it (mounted, swap, holder, a partition of it is).
	// ErrNotFound: there is no such node. ErrBusy: the lock is taken.
	Open(ctx context.Context, path string) (OpenDisk, error)
}

// OpenDisk is a disk in exclusive possession.
type OpenDisk interface {
	// Is reports whether the path names this very device now.
	Is(path string) (bool, error)
	// SizeBytes is the present size.
	SizeBytes() (int64, error)
	// Blank returns nil if nothing is on the disk, ErrNotBlank with the place of
	// what is, and any other error if that could not be read (I2).
	Blank() error
	// Wipe erases the disk as the policy asks, makes that durable and verifies it by
	// reading back past every cache: ErrNotBlank when it did not come clean.
	Wipe(ctx context.Context, sizeBytes int64, policy volume.WipePolicy, progress func(doneBytes int64)) error
	// Close gives the disk back.
	Close() error
}

// lockWait is how long Open waits for the lock of the disk. udev holds it for
// milliseconds while it probes.
const lockWait = 10 * time.Second

// BlockOpener opens the block devices of this host.
type BlockOpener struct{}

// Open implements Opener.
func (BlockOpener) Open(ctx context.Context, path string) (OpenDisk, error) {
	file, err := block.OpenExclusive(path)
	if err != nil {
		return nil, err
	}
	lockCtx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock, err := block.LockContext(lockCtx, path)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &blockDisk{file: file, lock: lock}, nil
}

type blockDisk struct {
	file *os.File
	lock io.Closer
}

func (d *blockDisk) Is(path string) (bool, error) {
	var mine, other unix.Stat_t
	conn, err := d.file.SyscallConn()
	if err != nil {
		return false, err
	}
	var statErr error
	if err := conn.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &mine) }); err != nil {
		return false, err
	}
	if statErr != nil {
		return false, fmt.Errorf("stat %s: %w", d.file.Name(), statErr)
	}
	if err := unix.Stat(path, &other); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return other.Mode&unix.S_IFMT == unix.S_IFBLK && mine.Rdev == other.Rdev, nil
}

func (d *blockDisk) SizeBytes() (int64, error) { return block.SizeBytes(d.file) }

func (d *blockDisk) Blank() error {
	size, err := d.SizeBytes()
	if err != nil {
		return err
	}
	offset, blank, err := block.BlankOnDisk(d.file, size)
	switch {
	case err != nil:
		return fmt.Errorf("examine %s: %w", d.file.Name(), err)
	case !blank:
		return fmt.Errorf("%s holds data at offset %d: %w", d.file.Name(), offset, volume.ErrNotBlank)
	}
	return nil
}

func (d *blockDisk) Wipe(ctx context.Context, sizeBytes int64, policy volume.WipePolicy, progress func(int64)) error {
	return block.Wipe(ctx, d.file, sizeBytes, policy, progress)
}

func (d *blockDisk) Close() error { return errors.Join(d.file.Close(), d.lock.Close()) }
