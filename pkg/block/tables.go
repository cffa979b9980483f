// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// WatchTables calls changed after each change of the host's mount table or of its
// table of swap areas, until the context ends, and once when it has begun to watch, for
// what has changed until then; it may also call it for nothing. No uevent tells of a
// mount. The kernel marks both files as exceptional for poll(2) when they have changed
// (proc_pid_mountinfo(5); swaps_poll in mm/swapfile.c), so that nothing wakes up while
// they do not.
//
// It returns nil when the context ends, and an error when watching fails.
func (s Sysfs) WatchTables(ctx context.Context, changed func()) error {
	mounts, err := openTable(s.hostPath("/proc/1/mountinfo"))
	if err != nil {
		return fmt.Errorf("watch the mount table: %w", err)
	}
	defer unix.Close(mounts)
	waiting := []unix.PollFd{{Fd: int32(mounts), Events: unix.POLLPRI}}
	swaps, err := openTable(s.hostPath("/proc/swaps"))
	switch {
	case err == nil:
		defer unix.Close(swaps)
		waiting = append(waiting, unix.PollFd{Fd: int32(swaps), Events: unix.POLLPRI})
	case !errors.Is(err, fs.ErrNotExist): // a kernel without swap
		return fmt.Errorf("watch the swap table: %w", err)
	}
	changed()
	if err := PollFiles(ctx, waiting, func() error { changed(); return nil }); err != nil {
		return fmt.Errorf("watch the mount and swap tables: %w", err)
	}
	return nil
}

// openTable opens a file of /proc for poll. An os.File would not do: Go's runtime polls
// it as well, and each change is told once for each open file.
func openTable(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
