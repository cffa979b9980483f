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
	return ioctl(file, request, unsafe.Pointer(argument))
}

// Ioctl calls an ioctl whose argument is a pointer to what the kernel reads or fills in. It
// keeps the file and the argument as ioctlPointer and ioctlValue do.
func Ioctl(file *os.File, request uint, argument unsafe.Pointer) error {
	return ioctl(file, request, argument)
}

func ioctl(file *os.File, request uint, argument unsafe.Pointer) error {
	_, err := ioctlValue(file, request, argument)
	return err
}

// ioctlValue is ioctl for those that return more than that they went well. The argument
// stays a pointer up to the system call, so that the runtime may move what it points to
// until then.
func ioctlValue(file *os.File, request uint, argument unsafe.Pointer) (value uintptr, err error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			value, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(argument))
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return value, nil
}
