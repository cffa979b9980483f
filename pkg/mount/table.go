// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// The functions of this file run on a thread in the host's mount namespace. There
// /proc/thread-self/mountinfo, which mountinfo reads, is the host's mount table.

// tableReads bounds how often the table is read again when the kernel says that a
// path is a mount point and the table does not show it. Before Linux 5.8 a table
// that changes while it is read can lack entries.
const tableReads = 5

// resolve makes the path as the mount table spells it: links in its parent are
// followed, the path itself is left as it is.
func resolve(path string) (string, error) {
	if err := requirePath(path); err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

// mountAt returns the topmost mount at a resolved path, nil when there is none.
func mountAt(path string) (*mountinfo.Info, error) {
	for range tableReads {
		infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
		if err != nil {
			return nil, fmt.Errorf("read the mount table: %w", err)
		}
		if top := topmost(infos); top != nil {
			return top, nil
		}
		mounted, sure, err := mountinfo.MountedFast(path)
		if errors.Is(err, fs.ErrNotExist) || sure && err == nil && !mounted || !sure {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is %s a mount point: %w", path, err)
		}
	}
	return nil, fmt.Errorf("%s is a mount point and is not in the mount table", path)
}

// topmost of the mounts at one path is the one on which no other is mounted.
func topmost(infos []*mountinfo.Info) *mountinfo.Info {
	for _, i := range infos {
		covered := false
		for _, o := range infos {
			covered = covered || o.Parent == i.ID && o.ID != i.ID
		}
		if !covered {
			return i
		}
	}
	return nil
}

// deviceNumber returns the number of a block device; volume.ErrNotFound when there
// is no such node.
func deviceNumber(path string) (uint64, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case err == unix.ENOENT:
		return 0, fmt.Errorf("device %s: %w", path, volume.ErrNotFound)
	case err != nil:
		return 0, fmt.Errorf("stat %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return 0, fmt.Errorf("%w: %s is not a block device", volume.ErrInvalid, path)
	}
	return st.Rdev, nil
}

// DeviceNumber returns the number of a block device of the host. volume.ErrNotFound when there
// is no such node, volume.ErrInvalid when it is no block device.
func (m *Mounter) DeviceNumber(ctx context.Context, device string) (major, minor uint32, err error) {
	var number uint64
	err = m.host.InMountNamespace(ctx, func() error {
		number, err = deviceNumber(device)
		return err
	})
	return unix.Major(number), unix.Minor(number), err
}

// mountsDevice reports whether a mount shows a filesystem of the device, of any kind but
// btrfs.
func mountsDevice(i *mountinfo.Info, device uint64) bool {
	return i.Major == int(unix.Major(device)) && i.Minor == int(unix.Minor(device))
}

// atopDevice reports whether a mount that no other covers shows a filesystem of the
// device.
func atopDevice(i *mountinfo.Info, device uint64) (bool, error) {
	if i.FSType == Btrfs {
		return btrfsAt(i.Mountpoint, device)
	}
	return mountsDevice(i, device), nil
}

// MountsOf returns every mount point on the host that shows a thing: of a directory
// the mounts of this very directory, of a block device those of its filesystem,
// whole or in part, and of its node. A directory that does not exist has none.
//
// What is mounted in the namespaces of containers only is not seen; kubelet's and
// the runtime's mounts on the host are.
func (m *Mounter) MountsOf(ctx context.Context, path string) (targets []string, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		targets, err = mountsOf(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the mounts of %s: %w", path, err)
	}
	return targets, nil
}

// MountsBeside is MountsOf without the mounts at places that are known. These may be spelt with
// links in their parents, which the mount table has not.
func (m *Mounter) MountsBeside(ctx context.Context, path string, known ...string) (targets []string, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		if targets, err = mountsOf(path); err != nil {
			return err
		}
		for _, place := range known {
			resolved, err := resolve(place)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			targets = slices.DeleteFunc(targets, func(target string) bool { return target == resolved })
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the mounts of %s: %w", path, err)
	}
	return targets, nil
}

func mountsOf(path string) ([]string, error) {
	if err := requirePath(path); err != nil {
		return nil, err
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", resolved, err)
	}
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	cover := covering(infos, resolved)
	if cover == nil {
		return nil, fmt.Errorf("no mount in the table covers %s", resolved)
	}
	root := filepath.Join(cover.Root, strings.TrimPrefix(resolved, cover.Mountpoint))
	isDevice := st.Mode&unix.S_IFMT == unix.S_IFBLK
	var siblings []uint64
	if isDevice {
		if siblings, err = btrfsSiblings(st.Rdev); err != nil {
			return nil, err
		}
	}
	var targets []string
	for _, i := range infos {
		same := i.Major == cover.Major && i.Minor == cover.Minor && i.Root == root
		ofDevice := isDevice && mountsDevice(i, st.Rdev)
		if !ofDevice {
			if ofDevice, err = btrfsNames(i, siblings); err != nil {
				return nil, err
			}
		}
		if same || ofDevice {
			targets = append(targets, i.Mountpoint)
		}
	}
	return targets, nil
}

// covering returns the mount that shows a path: the topmost of those with the
// longest mount point.
func covering(infos []*mountinfo.Info, path string) *mountinfo.Info {
	var longest string
	var candidates []*mountinfo.Info
	for _, i := range infos {
		inside := i.Mountpoint == "/" || i.Mountpoint == path || strings.HasPrefix(path, i.Mountpoint+"/")
		switch {
		case !inside || len(i.Mountpoint) < len(longest):
		case len(i.Mountpoint) > len(longest):
			longest, candidates = i.Mountpoint, []*mountinfo.Info{i}
		default:
			candidates = append(candidates, i)
		}
	}
	return topmost(candidates)
}
