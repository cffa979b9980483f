// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
)

// The requests of quotas, with the size of what each is handed (include/uapi/linux/btrfs.h).
const (
	treeSearchV2 = 0xc0709411
	groupCreate  = 0x4010942a
	groupLimit   = 0x8030942b
	rescanStatus = 0x8040942d
)

// Where the kernel keeps them (include/uapi/linux/btrfs_tree.h).
const (
	rootTree  = 1
	quotaTree = 8

	rootItemKey    = 132
	groupStatusKey = 240
	groupInfoKey   = 242
	groupLimitKey  = 244

	statusOn           = 1 << 0
	statusInconsistent = 1 << 2
	statusSimple       = 1 << 3

	limitReferenced = 1 << 0 // BTRFS_QGROUP_LIMIT_MAX_RFER
	noLimit         = math.MaxUint64

	// firstSubvolume is the least number of a subvolume that somebody has made.
	firstSubvolume = 256
)

// searchArgs is struct btrfs_ioctl_search_args_v2 with room for one item, which is read up to
// what is needed of it.
type searchArgs struct {
	tree                            uint64
	leastObject, mostObject         uint64
	leastOffset, mostOffset         uint64
	leastGeneration, mostGeneration uint64
	leastType, mostType             uint32
	items                           uint32
	_                               uint32
	_                               [4]uint64
	bytes                           uint64
	found                           [1024]byte
}

// limitArgs is struct btrfs_ioctl_qgroup_limit_args.
type limitArgs struct {
	group                                                        uint64
	flags                                                        uint64
	referenced, exclusive, reservedReferenced, reservedExclusive uint64
}

// createArgs is struct btrfs_ioctl_qgroup_create_args.
type createArgs struct{ create, group uint64 }

// rescanArgs is struct btrfs_ioctl_quota_rescan_args.
type rescanArgs struct {
	flags, progress uint64
	_               [6]uint64
}

// Groups are the quota groups (qgroups) of subvolumes, those of level 0, which have the number
// of their subvolume. The filesystem is that of an open directory. They need CAP_SYS_ADMIN.
//
// A group counts what its subvolume refers to, data and metadata, each extent once and as a
// whole, whoever else refers to it, too. A write that goes beyond its limit fails with EDQUOT.
// What is counted is what was there when the last transaction was committed, at most 30 seconds
// ago; what is limited is what is being written, too.
type Groups struct{}

// Check returns quota.ErrUnsupported, with the reason, unless limits hold on the filesystem that
// an open directory is on: quota.ErrOff where an operator can have them, and quota.ErrUncounted
// where they can be set and do not hold yet.
func (Groups) Check(dir int) error {
	status, err := item(dir, quotaTree, 0, groupStatusKey, 0, 0)
	switch {
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("%w: the filesystem is no btrfs", quota.ErrUnsupported)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the quotas of a btrfs are for processes with CAP_SYS_ADMIN", quota.ErrUnsupported)
	case err != nil:
		return fmt.Errorf("look at the quotas of the filesystem: %w", err)
	case len(status) < 24 || binary.LittleEndian.Uint64(status[16:])&statusOn == 0:
		return fmt.Errorf("%w: the quotas of the btrfs are off: switch them on (btrfs quota enable)", quota.ErrOff)
	}
	flags := binary.LittleEndian.Uint64(status[16:])
	if flags&statusSimple != 0 {
		return fmt.Errorf("%w: the btrfs has simple quotas, which count what a snapshot keeps against the volume that it was taken of: switch them off, and those with groups on (btrfs quota disable, then btrfs quota enable without --simple)", quota.ErrOff)
	}
	var rescan rescanArgs
	if err := ioctl(dir, rescanStatus, unsafe.Pointer(&rescan)); err != nil {
		return fmt.Errorf("look whether the filesystem is being counted: %w", err)
	}
	switch {
	case rescan.flags != 0:
		return fmt.Errorf("%w: the btrfs is counting what its subvolumes hold (btrfs quota rescan -s says how far it is)", quota.ErrUncounted)
	case flags&statusInconsistent != 0:
		return fmt.Errorf("%w: what the btrfs has counted is out of date: let it count anew (btrfs quota rescan)", quota.ErrUncounted)
	}
	return nil
}

// Usage returns what is counted for a subvolume. One that has no group is all zero, and so is
// all where quotas are off. Inodes are not counted.
func (Groups) Usage(dir int, subvolume uint64) (quota.Usage, error) {
	info, err := item(dir, quotaTree, 0, groupInfoKey, subvolume, subvolume)
	if err != nil {
		return quota.Usage{}, fmt.Errorf("read the quota of subvolume %d: %w", subvolume, err)
	}
	limit, err := item(dir, quotaTree, 0, groupLimitKey, subvolume, subvolume)
	if err != nil {
		return quota.Usage{}, fmt.Errorf("read the quota of subvolume %d: %w", subvolume, err)
	}
	var u quota.Usage
	if len(info) >= 16 {
		u.UsedBytes = int64(binary.LittleEndian.Uint64(info[8:]))
	}
	if len(limit) >= 16 && binary.LittleEndian.Uint64(limit)&limitReferenced != 0 {
		u.LimitBytes = int64(binary.LittleEndian.Uint64(limit[8:]))
	}
	return u, nil
}

// SetLimit lets a subvolume refer to so many bytes at most; 0 takes the limit away. What it
// refers to already stays, also where it is more. It is in force at once, and durable with the
// next transaction. EDQUOT: the directory is in a subvolume that has nothing left itself.
func (Groups) SetLimit(dir int, subvolume uint64, limitBytes int64) error {
	if limitBytes < 0 || subvolume < firstSubvolume {
		return fmt.Errorf("limit subvolume %d to %d bytes: %w", subvolume, limitBytes, unix.EINVAL)
	}
	args := limitArgs{group: subvolume, flags: limitReferenced, referenced: uint64(limitBytes)}
	if limitBytes == 0 {
		args.referenced = noLimit
	}
	err := ioctl(dir, groupLimit, unsafe.Pointer(&args))
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("limit subvolume %d to %d bytes: %w: the quotas of the btrfs are off: switch them on (btrfs quota enable)", subvolume, limitBytes, quota.ErrOff)
	case errors.Is(err, unix.ENOENT): // not that something is not there that somebody looks for
		return fmt.Errorf("limit subvolume %d to %d bytes: it has no quota group: make one (btrfs qgroup create 0/%d) and let the filesystem be counted (btrfs quota rescan)", subvolume, limitBytes, subvolume)
	case err != nil:
		return fmt.Errorf("limit subvolume %d to %d bytes: %w", subvolume, limitBytes, err)
	}
	return nil
}

// Remove removes the group of a subvolume that is gone; Linux does so by itself from 6.11 on. It
// does nothing when there is none. unix.EBUSY: the subvolume is there, or what was in it is
// still being removed.
func (Groups) Remove(dir int, subvolume uint64) error {
	if subvolume < firstSubvolume {
		return fmt.Errorf("remove the quota of subvolume %d: %w", subvolume, unix.EINVAL)
	}
	root, err := item(dir, rootTree, subvolume, rootItemKey, 0, noLimit)
	if err == nil && root != nil {
		err = unix.EBUSY // some kernels would remove it all the same
	}
	if err != nil {
		return fmt.Errorf("remove the quota of subvolume %d: %w", subvolume, err)
	}
	args := createArgs{group: subvolume}
	err = ioctl(dir, groupCreate, unsafe.Pointer(&args))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("remove the quota of subvolume %d: %w", subvolume, err)
	}
	return nil
}

// item reads the first item of a tree of the filesystem within a range of keys. It is nil when
// there is none, or no such tree, and is cut off where it is long.
func item(dir int, tree, object uint64, kind uint32, leastOffset, mostOffset uint64) ([]byte, error) {
	args := searchArgs{
		tree: tree, leastObject: object, mostObject: object, leastOffset: leastOffset, mostOffset: mostOffset,
		mostGeneration: math.MaxUint64, leastType: kind, mostType: kind, items: 1,
	}
	args.bytes = uint64(len(args.found))
	err := ioctl(dir, treeSearchV2, unsafe.Pointer(&args))
	if errors.Is(err, unix.ENOENT) || err == nil && args.items == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return firstItem(args.found[:])
}

// firstItem takes the content of an item from behind its struct btrfs_ioctl_search_header.
func firstItem(found []byte) ([]byte, error) {
	const header = 32
	if len(found) < header {
		return nil, errors.New("the kernel has answered with less than a header")
	}
	size := uint64(binary.LittleEndian.Uint32(found[28:]))
	if size == 0 || size > uint64(len(found)-header) {
		return nil, fmt.Errorf("the kernel has answered with an item of %d bytes", size)
	}
	return found[header:][:size], nil
}
