// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// lockRetry is how often LockContext tries again. udev holds its shared lock only
// while it probes the disk, some ten milliseconds.
const lockRetry = 25 * time.Millisecond

// Lock takes the advisory lock that systemd-udevd, sfdisk and mkfs (--lock) obey:
// an exclusive BSD flock on the node of the whole disk
// (https://systemd.io/BLOCK_DEVICE_LOCKING). While it is held udev does not probe
// the disk, and this package's own SharedLock is refused, so discovery does not
// look at a disk that is half written.
//
// It does not wait: volume.ErrBusy when somebody has the disk locked, which may be
// udev looking at it for a moment; LockContext waits for that. Closing what is
// returned lets go of the lock. The lock keeps out only those who ask; exclusive
// possession is what OpenExclusive gives.
func Lock(path string) (io.Closer, error) {
	return flock(path, unix.LOCK_EX)
}

// LockContext is Lock, but tries again until the context ends; then it returns
// volume.ErrBusy.
func LockContext(ctx context.Context, path string) (io.Closer, error) {
	ticker := time.NewTicker(lockRetry)
	defer ticker.Stop()
	for {
		lock, err := Lock(path)
		if !errors.Is(err, volume.ErrBusy) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-ticker.C:
		}
	}
}

// SharedLock is the lock of those who only look. It does not wait: volume.ErrBusy
// when somebody writes under Lock.
func SharedLock(path string) (io.Closer, error) {
	return flock(path, unix.LOCK_SH)
}

func flock(path string, how int) (io.Closer, error) {
	file, err := OpenReadOnly(path)
	if err != nil {
		return nil, err
	}
	if err := flockFile(file, how|unix.LOCK_NB); err != nil {
		closeErr := file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: another program has it locked: %w", path, volume.ErrBusy)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), closeErr)
	}
	return file, nil
}

func flockFile(file *os.File, how int) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = conn.Control(func(fd uintptr) {
		for {
			lockErr = unix.Flock(int(fd), how)
			if !errors.Is(lockErr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return lockErr
}
