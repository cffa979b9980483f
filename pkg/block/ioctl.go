// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlPointer calls a block ioctl whose argument is a pointer to one or more
// 64-bit words (linux/fs.h). It goes through SyscallConn, so that the file cannot
// be closed under it and stays under the runtime's control.
func ioctlPointer[T uint64 | [2]uint64](file *os.File, request uint, argument *T) error {
	return ioctl(file, request, uintptr(unsafe.Pointer(argument)))
}

func ioctl(file *os.File, request uint, argument uintptr) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), argument)
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
