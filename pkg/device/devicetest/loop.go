// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package devicetest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const loopControl = "/dev/loop-control"

// attachLoop makes a loop device of a file (loop(4)). The kernel detaches it when
// nobody has it open any more, and this process does until detach: a test that is
// killed leaves no device.
func attachLoop(file string) (path string, detach func() error, err error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	// Between asking for a free device and taking it, somebody else may take it.
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, fmt.Errorf("find a free loop device: %w", err)
		}
		path = fmt.Sprintf("/dev/loop%d", n)
		loop, err := configureLoop(path, backing)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("attach %s: %w", path, err)
		}
		return path, func() error { return detachLoop(loop) }, nil
	}
	return "", nil, errors.New("find a free loop device: all were taken meanwhile")
}

// configureLoop returns the device open, which does not stand in the way of O_EXCL.
// A device that is configured through a read-only descriptor would be read-only.
func configureLoop(path string, backing *os.File) (*os.File, error) {
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	return loop, nil
}

// detachLoop detaches at once, or as soon as the last one who has it open closes it.
func detachLoop(loop *os.File) error {
	_, err := unix.IoctlRetInt(int(loop.Fd()), unix.LOOP_CLR_FD)
	if errors.Is(err, unix.ENXIO) {
		err = nil // detached already
	}
	if err = errors.Join(err, loop.Close()); err != nil {
		return fmt.Errorf("detach %s: %w", loop.Name(), err)
	}
	return nil
}
