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

// attachLoop makes a loop device of a file (loop(4)).
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
		err = configureLoop(path, backing)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("attach %s: %w", path, err)
		}
		return path, func() error { return detachLoop(path) }, nil
	}
	return "", nil, errors.New("find a free loop device: all were taken meanwhile")
}

func configureLoop(path string, backing *os.File) error {
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	return unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(backing.Fd())})
}

func detachLoop(path string) error {
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	if _, err := unix.IoctlRetInt(int(loop.Fd()), unix.LOOP_CLR_FD); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}
