// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Condition is what the kernel says of a mounted filesystem.
type Condition struct {
	// ReadOnly is true when the kernel has made a filesystem read-only that was mounted
	// to be written, as ext4 does after an error.
	ReadOnly bool
	// ShutDown is true when it answers every access with an error, as xfs does after one.
	ShutDown bool
	// Errors are those that ext4 has counted since it was last checked, or btrfs since
	// its counters were last set back.
	Errors int64
}

// Condition looks at the filesystem that is mounted at a path. volume.ErrNotFound:
// nothing is mounted there. Block devices have none.
func (m *Mounter) Condition(ctx context.Context, path string) (c Condition, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		c, err = condition(path)
		return err
	})
	if err != nil {
		return c, fmt.Errorf("look at the filesystem at %s: %w", path, err)
	}
	return c, nil
}

func condition(path string) (c Condition, err error) {
	resolved, err := resolve(path)
	if errors.Is(err, unix.ENOENT) {
		return c, volume.ErrNotFound
	}
	if err != nil {
		return c, err
	}
	at, err := mountAt(resolved)
	switch {
	case err != nil:
		return c, err
	case at == nil:
		return c, fmt.Errorf("%w: nothing is mounted there", volume.ErrNotFound)
	}
	wanted, super := strings.Split(at.Options, ","), strings.Split(at.VFSOptions, ",")
	c.ReadOnly = !slices.Contains(wanted, "ro") && (slices.Contains(super, "ro") || slices.Contains(super, "emergency_ro"))
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) {
		c.ShutDown = true
		return c, nil
	} else if err != nil {
		return c, err
	}
	switch at.FSType {
	case Ext4:
		c.Errors, err = ext4Errors(at.Major, at.Minor)
	case Btrfs:
		c.Errors, err = btrfsErrors(resolved)
	}
	return c, err
}

// ext4Errors reads how many errors ext4 has counted on a device (Linux,
// Documentation/ABI/testing/sysfs-fs-ext4: errors_count).
func ext4Errors(major, minor int) (int64, error) {
	target, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(target), "errors_count"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}
