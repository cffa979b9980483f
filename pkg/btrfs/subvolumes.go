// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of ioctl(2), each with a structure of 4096 bytes but for those of flags and
// information.
const (
	snapshotCreateV2 = 0x50009417
	subvolumeCreate2 = 0x50009418
	subvolumeDestroy = 0x5000940f
	subvolumeGetFlag = 0x80089419
	subvolumeSetFlag = 0x4008941a
	subvolumeInfo    = 0x81f8943c
	subvolumeRefs    = 0xd000943d

	rootInode = 256 // BTRFS_FIRST_FREE_OBJECTID
	readOnly  = 1 << 1
)

// namedArgs is struct btrfs_ioctl_vol_args.
type namedArgs struct {
	fd   int64
	name [4088]byte
}

// namedArgs2 is struct btrfs_ioctl_vol_args_v2.
type namedArgs2 struct {
	fd             int64
	transaction    uint64
	flags          uint64
	sizeAndUnused  [4]uint64
	nameTerminated [4040]byte
}

// infoArgs is struct btrfs_ioctl_get_subvol_info_args.
type infoArgs struct {
	id uint64
	_  [496]byte
}

// refsArgs is struct btrfs_ioctl_get_subvol_rootref_args.
type refsArgs struct {
	least uint64
	refs  [255][2]uint64
	count uint8
	_     [7]byte
}

// Subvolumes are those of the kernel.
type Subvolumes struct{}

// Supported reports whether an open directory is on a btrfs.
func (Subvolumes) Supported(dir int) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return false, fmt.Errorf("look at the filesystem: %w", err)
	}
	return uint32(fs.Type) == unix.BTRFS_SUPER_MAGIC, nil
}

// Is reports whether an open directory is the root of a subvolume.
func (s Subvolumes) Is(dir int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return false, fmt.Errorf("look at the directory: %w", err)
	}
	if st.Ino != rootInode {
		return false, nil
	}
	return s.Supported(dir)
}

// ID is the number of the subvolume that an open directory is in, which no other one of its
// filesystem ever has.
func (Subvolumes) ID(dir int) (uint64, error) {
	var info infoArgs
	if err := ioctl(dir, subvolumeInfo, unsafe.Pointer(&info)); err != nil {
		return 0, fmt.Errorf("look which subvolume it is: %w", err)
	}
	return info.id, nil
}

// Create makes an empty subvolume in an open directory. Its mode is what the umask leaves.
func (Subvolumes) Create(dir int, name string) error {
	var args namedArgs2
	if copy(args.nameTerminated[:len(args.nameTerminated)-1], name) < len(name) {
		return unix.ENAMETOOLONG
	}
	if err := ioctl(dir, subvolumeCreate2, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("make the subvolume %q: %w", name, err)
	}
	return nil
}

// Snapshot makes a copy of the subvolume whose root is open, in an open directory. It holds
// what the subvolume held at one instant, and is durable when it returns. It can be written to.
func (Subvolumes) Snapshot(dir int, name string, of int) error {
	args := namedArgs2{fd: int64(of)}
	if copy(args.nameTerminated[:len(args.nameTerminated)-1], name) < len(name) {
		return unix.ENAMETOOLONG
	}
	if err := ioctl(dir, snapshotCreateV2, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("make the subvolume %q of another one: %w", name, err)
	}
	return nil
}

// Remove removes a subvolume of an open directory with all that is in it, in the background.
// unix.ENOTEMPTY: another subvolume is in it.
func (Subvolumes) Remove(dir int, name string) error {
	var args namedArgs
	if copy(args.name[:len(args.name)-1], name) < len(name) {
		return unix.ENAMETOOLONG
	}
	if err := ioctl(dir, subvolumeDestroy, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("remove the subvolume %q: %w", name, err)
	}
	return nil
}

// SetWritable lets the subvolume whose root is open be written to.
func (Subvolumes) SetWritable(dir int) error {
	var flags uint64
	if err := ioctl(dir, subvolumeGetFlag, unsafe.Pointer(&flags)); err != nil {
		return fmt.Errorf("read the flags of a subvolume: %w", err)
	}
	if flags&readOnly == 0 {
		return nil
	}
	flags &^= readOnly
	if err := ioctl(dir, subvolumeSetFlag, unsafe.Pointer(&flags)); err != nil {
		return fmt.Errorf("make a subvolume writable: %w", err)
	}
	return nil
}

// HasOthers reports whether other subvolumes are in the one whose root is open.
func (Subvolumes) HasOthers(dir int) (bool, error) {
	var args refsArgs
	if err := ioctl(dir, subvolumeRefs, unsafe.Pointer(&args)); err != nil {
		return false, fmt.Errorf("look for subvolumes in a subvolume: %w", err)
	}
	return args.count > 0, nil
}

func ioctl(fd int, request uint, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(data))
	if errno != 0 {
		return errno
	}
	return nil
}
