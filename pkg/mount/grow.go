// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"unsafe"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// growTimeout bounds the growth of a filesystem. ext4 writes new inode tables.
const growTimeout = 30 * time.Minute

// Sizes of a filesystem and of the device it is on, in bytes.
type Sizes struct {
	FilesystemBytes int64
	DeviceBytes     int64
}

// Grow lets a mounted filesystem fill its device, and returns both sizes as they
// are then. A filesystem that has no room to grow by even a block is left alone
// and no program is run. ext4 may stay smaller by less than one of its block
// groups (128 MiB), when the rest is too small for a group's own tables.
//
// Like a check it outlives the caller's deadline.
//
// volume.ErrIdentity: at the mount point is not a filesystem of the device.
// volume.ErrToolMissing: resize2fs or xfs_growfs is needed and not installed.
func (m *Mounter) Grow(ctx context.Context, device, mountpoint, fsType string) (Sizes, error) {
	before, err := m.sizes(ctx, device, mountpoint, fsType)
	if err != nil {
		return before, fmt.Errorf("grow the filesystem at %s: %w", mountpoint, err)
	}
	if before.DeviceBytes-before.FilesystemBytes < growthUnitBytes {
		return before, nil
	}
	ctx = context.WithoutCancel(ctx)
	switch fsType {
	case Btrfs:
		err = m.host.InMountNamespace(ctx, func() error { return growBtrfs(mountpoint) })
	case XFS:
		_, err = m.host.Run(ctx, hostexec.Command{Name: "xfs_growfs", Args: []string{"-d", mountpoint}, Timeout: growTimeout})
	default:
		_, err = m.host.Run(ctx, hostexec.Command{Name: "resize2fs", Args: []string{device}, Timeout: growTimeout})
	}
	if err != nil {
		return before, fmt.Errorf("grow the filesystem at %s: %w", mountpoint, err)
	}
	after, err := m.sizes(ctx, device, mountpoint, fsType)
	if err != nil {
		return after, fmt.Errorf("after growing the filesystem at %s: %w", mountpoint, err)
	}
	return after, nil
}

// growthUnitBytes is the largest block a filesystem has here: less room cannot be
// used.
const growthUnitBytes = 64 << 10

func (m *Mounter) sizes(ctx context.Context, device, mountpoint, fsType string) (s Sizes, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		s, err = sizes(device, mountpoint, fsType)
		return err
	})
	return s, err
}

func sizes(device, mountpoint, fsType string) (s Sizes, err error) {
	number, err := deviceNumber(device)
	if err != nil {
		return s, err
	}
	path, err := resolve(mountpoint)
	if err != nil {
		return s, err
	}
	current, err := mountAt(path)
	if err != nil {
		return s, err
	}
	shows := false
	if current != nil {
		if shows, err = atopDevice(current, number); err != nil {
			return s, err
		}
	}
	if !shows || current.FSType != fsType {
		return s, fmt.Errorf("%w: %s of %s is not mounted there", volume.ErrIdentity, fsType, device)
	}
	f, err := block.OpenReadOnly(device)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if s.DeviceBytes, err = block.SizeBytes(f); err != nil {
		return s, err
	}
	switch fsType {
	case XFS:
		s.FilesystemBytes, err = mountedXFSSize(path)
		return s, err
	case Btrfs:
		s.FilesystemBytes, err = mountedBtrfsSize(path)
		return s, err
	}
	super, err := settledSuperblock(f)
	s.FilesystemBytes = super.SizeBytes()
	return s, err
}

// settleReads bounds how often the superblock of a mounted ext4 is read.
const settleReads = 100

// settledSuperblock reads the superblock of a mounted ext4. The kernel changes it
// in the page cache that a reader sees, field by field and the checksum last, so
// that a checksum can be wrong for some nanoseconds.
func settledSuperblock(f io.ReaderAt) (s Superblock, err error) {
	for range settleReads {
		if s, err = ReadSuperblock(f); !errors.Is(err, ErrDamaged) {
			return s, err
		}
	}
	return s, err
}

// xfsGeometry is struct xfs_fsop_geom_v1 of fs/xfs/libxfs/xfs_fs.h.
type xfsGeometry struct {
	BlockSize, RtExtSize, AGBlocks, AGCount     uint32
	LogBlocks, SectSize, InodeSize, IMaxPct     uint32
	DataBlocks, RtBlocks, RtExtents, LogStart   uint64
	UUID                                        [16]byte
	SUnit, SWidth                               uint32
	Version                                     int32
	Flags, LogSectSize, RtSectSize, DirBlockSiz uint32
}

// xfsIocFSGeometryV1 is _IOR('X', 100, struct xfs_fsop_geom_v1).
const xfsIocFSGeometryV1 = 2<<30 | 112<<16 | 'X'<<8 | 100

// mountedXFSSize asks the kernel: while xfs is mounted its superblock on the disk
// may be older than its log.
func mountedXFSSize(path string) (int64, error) {
	var g xfsGeometry
	if err := atMount(path, func(fd int) error { return ioctl(fd, xfsIocFSGeometryV1, unsafe.Pointer(&g)) }); err != nil {
		return 0, fmt.Errorf("read the geometry of the xfs at %s: %w", path, err)
	}
	return int64(g.DataBlocks) * int64(g.BlockSize), nil
}
