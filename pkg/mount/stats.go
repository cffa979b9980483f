// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
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

// Stats measures a published volume: a mounted directory, or a device node.
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
	return Stats{
		TotalBytes:      int64(fs.Blocks) * unit,
		UsedBytes:       int64(fs.Blocks-fs.Bfree) * unit,
		AvailableBytes:  int64(fs.Bavail) * unit,
		TotalInodes:     int64(fs.Files),
		UsedInodes:      int64(fs.Files - fs.Ffree),
		AvailableInodes: int64(fs.Ffree),
	}, nil
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
