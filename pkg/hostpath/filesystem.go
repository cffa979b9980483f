// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"os"
	"path"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// The requests of ioctl(2) that tell the UUID of a filesystem that is mounted, with the size of
// what they fill in.
const (
	getUUID      = 0x80111500 // FS_IOC_GETFSUUID of include/uapi/linux/fs.h, Linux 6.9
	ext4GetUUID  = 0x8008662c // EXT4_IOC_GETFSUUID of fs/ext4/ioctl.c, Linux 6.0
	xfsGeometry  = 0x80705864 // XFS_IOC_FSGEOMETRY_V1 of fs/xfs/libxfs/xfs_fs.h
	btrfsGetInfo = 0x8400941f // BTRFS_IOC_FS_INFO of include/uapi/linux/btrfs.h
)

// anyUUID is struct fsuuid2.
type anyUUID struct {
	bytes uint8
	uuid  [16]byte
}

// ext4UUID is struct fsuuid of ext4, with the room for one.
type ext4UUID struct {
	bytes, flags uint32
	uuid         [16]byte
}

// xfsInfo is struct xfs_fsop_geom_v1.
type xfsInfo struct {
	_    [64]byte
	uuid [16]byte
	_    [32]byte
}

// btrfsInfo is struct btrfs_ioctl_fs_info_args.
type btrfsInfo struct {
	_    [16]byte
	uuid [16]byte
	_    [992]byte
}

// kernelUUID returns the UUID of the filesystem that an open directory is on: of an ext4, an xfs
// or a btrfs, as blkid(8) shows it. It is empty for others, whose UUID may be another one after
// each mount, and where the kernel does not tell.
func kernelUUID(dir int) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return "", fmt.Errorf("look at the filesystem: %w", err)
	}
	var uuid [16]byte
	var err error
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC:
		var a anyUUID
		if err = ask(dir, getUUID, unsafe.Pointer(&a)); err == nil {
			uuid = a.uuid
			break
		}
		e := ext4UUID{bytes: 16}
		err = ask(dir, ext4GetUUID, unsafe.Pointer(&e))
		uuid = e.uuid
	case unix.XFS_SUPER_MAGIC:
		var x xfsInfo
		err = ask(dir, xfsGeometry, unsafe.Pointer(&x))
		uuid = x.uuid
	case unix.BTRFS_SUPER_MAGIC:
		var b btrfsInfo
		err = ask(dir, btrfsGetInfo, unsafe.Pointer(&b))
		uuid = b.uuid
	}
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return "", nil // an older kernel
	case err != nil:
		return "", fmt.Errorf("ask for the UUID of the filesystem: %w", err)
	case uuid == [16]byte{}:
		return "", nil
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", uuid[:4], uuid[4:6], uuid[6:8], uuid[8:10], uuid[10:]), nil
}

func ask(fd int, request uint, answer unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(answer)); errno != 0 {
		return errno
	}
	return nil
}

// filesystemOf returns the UUID of the filesystem that a root is on, empty where it is not known.
func (w Where) filesystemOf(root *os.Root) (uuid string, err error) {
	ask := w.FilesystemUUID
	if ask == nil {
		ask = kernelUUID
	}
	err = withDir(root, ".", func(dir int) error {
		uuid, err = ask(dir)
		return err
	})
	return uuid, err
}

// requireFilesystem returns ErrIdentity when a root is on another filesystem than it was made on:
// its marker was copied there. Where one of the two is not known, the marker alone counts.
func (w Where) requireFilesystem(root *os.Root, m marker) error {
	if m.FilesystemUUID == "" {
		return nil
	}
	uuid, err := w.filesystemOf(root)
	if err != nil {
		return err
	}
	if uuid != "" && uuid != m.FilesystemUUID {
		return fmt.Errorf("%w: it was made on the filesystem with UUID %s, and what is there now has UUID %s: if it is a copy, mount the filesystem that it was made on; if it is the root all the same, restored or with a new UUID, put that into filesystemUUID of %s",
			volume.ErrIdentity, m.FilesystemUUID, uuid, path.Join(w.Root, markerFile))
	}
	return nil
}
