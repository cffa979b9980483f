// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
)

// WatchEvents calls happened after each event of any device-mapper device of the host,
// until the context ends, and once when it has begun to watch, for what happened until
// then; it may also call it for nothing. It tells not which device it was: ask Status.
//
// It returns nil when the context ends, and an error when watching fails (a kernel
// before 4.14, or no device-mapper).
func (c Control) WatchEvents(ctx context.Context, happened func()) error {
	if err := c.watch(ctx, happened); err != nil {
		return fmt.Errorf("watch device-mapper's events: %w", err)
	}
	return nil
}

func (c Control) watch(ctx context.Context, happened func()) error {
	// Go's runtime would poll an os.File as well, and each event is told once for each
	// open file (dm_poll in drivers/md/dm-ioctl.c).
	path := filepath.Join(c.Root, "/dev/mapper", unix.DM_CONTROL_NODE)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	look := func() error {
		// Armed before it looks: what happens from now on is told.
		if err := arm(fd); err != nil {
			return err
		}
		happened()
		return nil
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := look(); err != nil {
		return err
	}
	return block.PollFiles(ctx, []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, look)
}

// arm makes the events until now count as told.
func arm(fd int) error {
	header := &unix.DmIoctl{}
	fillHeader(header, unix.SizeofDmIoctl)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.DM_DEV_ARM_POLL, uintptr(unsafe.Pointer(header)))
	if errno != 0 {
		return fmt.Errorf("arm: %w", errno)
	}
	return nil
}
