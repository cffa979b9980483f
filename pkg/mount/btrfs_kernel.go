// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// A mounted btrfs has a device number of its own, not that of its disk. Which disks a
// filesystem is on is told by /sys/fs/btrfs/<fsid>/devices, and which filesystem a mount
// shows by an ioctl on it, or by the name of a disk in the mount table.

// sysfsBtrfs is the same in every mount namespace that has sysfs.
const sysfsBtrfs = "/sys/fs/btrfs"

// btrfsInfo is struct btrfs_ioctl_fs_info_args of include/uapi/linux/btrfs.h.
type btrfsInfo struct {
	MaxID, NumDevices               uint64
	FSID                            [16]byte
	NodeSize, SectorSize, CloneUnit uint32
	SumKind, SumBytes               uint16
	Flags, Generation               uint64
	MetadataUUID                    [16]byte
	_                               [944]byte
}

// btrfsDevice is struct btrfs_ioctl_dev_info_args.
type btrfsDevice struct {
	ID         uint64
	UUID       [16]byte
	UsedBytes  uint64
	TotalBytes uint64
	_          [379]uint64
	Path       [1024]byte
}

// btrfsResize is struct btrfs_ioctl_vol_args.
type btrfsResize struct {
	_    int64
	Name [4088]byte
}

// The ioctls of include/uapi/linux/btrfs.h, by the sizes of their arguments.
const (
	btrfsIocMagic   = 0x94
	btrfsIocResize  = 1<<30 | 4096<<16 | btrfsIocMagic<<8 | 3
	btrfsIocDevInfo = 3<<30 | 4096<<16 | btrfsIocMagic<<8 | 30
	btrfsIocFSInfo  = 2<<30 | 1024<<16 | btrfsIocMagic<<8 | 31
)

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// atMount calls a function with the opened root of a mount.
func atMount(path string, f func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	return f(fd)
}

// mountedBtrfs asks the kernel what is mounted at a path.
func mountedBtrfs(path string) (info btrfsInfo, err error) {
	err = atMount(path, func(fd int) error { return ioctl(fd, btrfsIocFSInfo, unsafe.Pointer(&info)) })
	if err != nil {
		return info, fmt.Errorf("read what btrfs is at %s: %w", path, err)
	}
	return info, nil
}

// mountedBtrfsSize is the size of the filesystem on its one device.
func mountedBtrfsSize(path string) (int64, error) {
	info, err := mountedBtrfs(path)
	if err != nil {
		return 0, err
	}
	device := btrfsDevice{ID: info.MaxID}
	if err := atMount(path, func(fd int) error { return ioctl(fd, btrfsIocDevInfo, unsafe.Pointer(&device)) }); err != nil {
		return 0, fmt.Errorf("read the size of the btrfs at %s: %w", path, err)
	}
	return int64(device.TotalBytes), nil
}

// growBtrfs lets it fill its one device.
func growBtrfs(path string) error {
	info, err := mountedBtrfs(path)
	if err != nil {
		return err
	}
	if info.NumDevices != 1 {
		return fmt.Errorf("the btrfs at %s has %d devices; grow it by hand", path, info.NumDevices)
	}
	var request btrfsResize
	copy(request.Name[:len(request.Name)-1], strconv.FormatUint(info.MaxID, 10)+":max")
	if err := atMount(path, func(fd int) error { return ioctl(fd, btrfsIocResize, unsafe.Pointer(&request)) }); err != nil {
		return fmt.Errorf("resize the btrfs at %s: %w", path, err)
	}
	return nil
}

// btrfsMembers are the device numbers of the filesystem with an fsid, none when it is not
// mounted.
func btrfsMembers(fsid string) (members []uint64, err error) {
	entries, err := os.ReadDir(filepath.Join(sysfsBtrfs, fsid, "devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the devices of the btrfs %s: %w", fsid, err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(sysfsBtrfs, fsid, "devices", entry.Name(), "dev"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list the devices of the btrfs %s: %w", fsid, err)
		}
		major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
		high, highErr := strconv.ParseUint(major, 10, 32)
		low, lowErr := strconv.ParseUint(minor, 10, 32)
		if err := errors.Join(highErr, lowErr); err != nil {
			return nil, fmt.Errorf("list the devices of the btrfs %s: %w", fsid, err)
		}
		members = append(members, unix.Mkdev(uint32(high), uint32(low)))
	}
	return members, nil
}

// btrfsSiblings are the device numbers of the mounted btrfs that a device belongs to,
// none when it belongs to none.
func btrfsSiblings(device uint64) ([]uint64, error) {
	directories, err := os.ReadDir(sysfsBtrfs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel has no btrfs, or has not loaded it
	}
	if err != nil {
		return nil, fmt.Errorf("list the mounted btrfs: %w", err)
	}
	for _, directory := range directories {
		members, err := btrfsMembers(directory.Name())
		if err != nil {
			return nil, err
		}
		if slices.Contains(members, device) {
			return members, nil
		}
	}
	return nil, nil
}

// btrfsAt reports whether the btrfs that is mounted topmost at a path is on the device.
func btrfsAt(path string, device uint64) (bool, error) {
	info, err := mountedBtrfs(path)
	if err != nil {
		return false, err
	}
	members, err := btrfsMembers(formatUUID(info.FSID[:]))
	return slices.Contains(members, device), err
}

// btrfsNames reports whether a line of the mount table names one of the devices. It
// touches no filesystem, which can hang on a dying disk. A name that leads to no device
// is an error: it could be any.
func btrfsNames(i *mountinfo.Info, devices []uint64) (bool, error) {
	if i.FSType != Btrfs || len(devices) == 0 {
		return false, nil
	}
	number, err := deviceNumber(i.Source)
	if err != nil {
		return false, fmt.Errorf("tell what btrfs is at %s: %s", i.Mountpoint, err.Error())
	}
	return slices.Contains(devices, number), nil
}

// btrfsErrors counts what btrfs keeps of the errors of its devices, since somebody set
// them back (Linux, fs/btrfs/sysfs.c: devinfo/<id>/error_stats, since 5.14).
func btrfsErrors(path string) (total int64, err error) {
	info, err := mountedBtrfs(path)
	if err != nil {
		return 0, err
	}
	files, err := filepath.Glob(filepath.Join(sysfsBtrfs, formatUUID(info.FSID[:]), "devinfo/*/error_stats"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		count, err := sumBtrfsErrors(string(text))
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", file, err)
		}
		total += count
	}
	return total, nil
}

// sumBtrfsErrors adds up lines as "write_errs 0".
func sumBtrfsErrors(text string) (total int64, err error) {
	for line := range strings.Lines(text) {
		_, count, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a counter: %w", line, err)
		}
		total += n
	}
	return total, nil
}
