// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The commands of quotactl(2), each for the quotas of projects (include/uapi/linux/quota.h and
// dqblk_xfs.h): QCMD(command, PRJQUOTA).
const (
	projectQuota = 2
	getQuota     = 0x800007<<8 | projectQuota
	setQuota     = 0x800008<<8 | projectQuota
	getState     = ('X'<<8+8)<<8 | projectQuota // Q_XGETQSTATV, which ext4 answers, too

	quotaBlockBytes = 1 << 10 // QIF_DQBLKSIZE
	limitsValid     = 1       // QIF_BLIMITS

	projectsCounted = 1 << 4 // FS_QUOTA_PDQ_ACCT
	projectsLimited = 1 << 5 // FS_QUOTA_PDQ_ENFD
)

// diskQuota is struct if_dqblk.
type diskQuota struct {
	blockHardLimit, blockSoftLimit, space  uint64
	inodeHardLimit, inodeSoftLimit, inodes uint64
	blockTime, inodeTime                   uint64
	valid                                  uint32
	_                                      uint32
}

// quotaState is struct fs_quota_statv.
type quotaState struct {
	version int8
	_       uint8
	flags   uint16
	_       [156]byte
}

// The requests and flags of struct fsxattr (include/uapi/linux/fs.h).
const (
	getAttributes    = 0x801c581f
	setAttributes    = 0x401c5820
	projectInherited = 0x200
)

// attributes is struct fsxattr.
type attributes struct {
	flags, extentSize, extents uint32
	project                    uint32
	cowExtentSize              uint32
	_                          [8]byte
}

func quotactl(dir int, command, project uint32, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(dir), uintptr(command), uintptr(project), uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctl(fd int, request uint, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(data))
	if errno != 0 {
		return errno
	}
	return nil
}
