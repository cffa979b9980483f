// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// PollFiles calls ready each time that poll(2) tells of one of the files, until the
// context ends. It returns nil then, and otherwise the error of poll or of ready. The
// descriptors must not be ones that Go's runtime polls too: an event may be told once.
func PollFiles(ctx context.Context, files []unix.PollFd, ready func() error) error {
	end, stop, err := os.Pipe()
	if err != nil {
		return err
	}
	defer end.Close()
	// The end of the context closes the pipe, which poll tells of.
	detach := context.AfterFunc(ctx, func() { _ = stop.Close() })
	defer func() {
		if detach() {
			_ = stop.Close()
		}
	}()
	waiting := append([]unix.PollFd{{Fd: int32(end.Fd())}}, files...)
	for ctx.Err() == nil {
		_, err := unix.Poll(waiting, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && ctx.Err() == nil:
			err = ready()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
