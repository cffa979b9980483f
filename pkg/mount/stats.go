// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Stats are the sizes of what is at a path. Of a block device only TotalBytes and
// Block are known.
type Stats struct {
	Block bool

	TotalBytes     int64
	UsedBytes      int64
	AvailableBytes int64 // to an ordinary user

	TotalInodes     int64
	UsedInodes      int64
	AvailableInodes int64
}

// Stats measures a published volume: a mounted directory, or a device node. Of a subvolume of a
// btrfs with a limit the bytes are those of the limit.
// volume.ErrNotFound: there is no such path, or nothing is mounted at it, so that
// the numbers would be those of the host's own filesystem.
func (m *Mounter) Stats(ctx context.Context, path string) (s Stats, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		s, err = stats(path)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("measure %s: %w", path, err)
	}
	return s, nil
}

func stats(path string) (Stats, error) {
	resolved, err := resolve(path)
	if errors.Is(err, unix.ENOENT) {
		return Stats{}, volume.ErrNotFound
	}
	if err != nil {
		return Stats{}, err
	}
	current, err := mountAt(resolved)
	if err != nil {
		return Stats{}, err
	}
	if current == nil {
		return Stats{}, fmt.Errorf("%w: nothing is mounted there", volume.ErrNotFound)
	}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return Stats{}, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return deviceStats(resolved)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(resolved, &fs); err != nil {
		return Stats{}, err
	}
	unit := fs.Frsize
	s := Stats{
		TotalBytes:      int64(fs.Blocks) * unit,
		UsedBytes:       int64(fs.Blocks-fs.Bfree) * unit,
		AvailableBytes:  int64(fs.Bavail) * unit,
		TotalInodes:     int64(fs.Files),
		UsedInodes:      int64(fs.Files - fs.Ffree),
		AvailableInodes: int64(fs.Ffree),
	}
	if uint32(fs.Type) == unix.BTRFS_SUPER_MAGIC {
		if u, err := subvolumeUsage(resolved); err == nil { // else it is not the subvolume's to say
			s.limitTo(u)
		}
	}
	return s, nil
}

// subvolumeUsage is what a btrfs counts of the subvolume at a path: statfs(2) knows nothing of
// its limit, unlike of that of a project.
func subvolumeUsage(path string) (u quota.Usage, err error) {
	err = atMount(path, func(fd int) error {
		is, err := btrfs.Subvolumes{}.Is(fd)
		if err != nil || !is {
			return err
		}
		id, err := btrfs.Subvolumes{}.ID(fd)
		if err != nil {
			return err
		}
		u, err = btrfs.Groups{}.Usage(fd, id)
		return err
	})
	return u, err
}

// limitTo makes the sizes those of a limit, if there is one. What is available is no more than
// the filesystem has.
func (s *Stats) limitTo(u quota.Usage) {
	if u.LimitBytes == 0 {
		return
	}
	s.TotalBytes, s.UsedBytes = u.LimitBytes, u.UsedBytes
	s.AvailableBytes = max(0, min(s.AvailableBytes, u.LimitBytes-u.UsedBytes))
}

func deviceStats(path string) (s Stats, err error) {
	f, err := block.OpenReadOnly(path)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := block.SizeBytes(f)
	return Stats{Block: true, TotalBytes: size}, err
}
