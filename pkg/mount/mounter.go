// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// directoryMode of mount points that are made here: only root may pass. What is
	// mounted there has its own mode.
	directoryMode = 0o750
	fileMode      = 0o640
)

// Mounter mounts volumes on the host. Calls for different targets may run at once;
// the caller keeps those for one volume apart.
type Mounter struct {
	host Host
	// sysBlock is the directory that has the numbers of all block devices.
	sysBlock string
}

// NewMounter returns a Mounter for the host.
func NewMounter(host Host) *Mounter { return &Mounter{host: host, sysBlock: "/sys/dev/block"} }

// Inspect reads the superblock of a device. Errors as ReadSuperblock,
// volume.ErrNotFound when there is no such device.
func (m *Mounter) Inspect(ctx context.Context, device string) (s Superblock, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		s, err = inspect(device)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("inspect %s: %w", device, err)
	}
	return s, nil
}

func inspect(device string) (s Superblock, err error) {
	f, err := block.OpenReadOnly(device)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return ReadSuperblock(f)
}

// Filesystem names a filesystem and where it shall be mounted.
type Filesystem struct {
	// Device is the block device's path on the host.
	Device string
	// Target is a directory; it is made when only it, not its parent, is missing.
	Target string
	// FSType is Ext4, XFS or Btrfs.
	FSType string
	// Options as a StorageClass has them.
	Options []string
}

// Mount mounts a filesystem. It does nothing when that device's filesystem is
// mounted at the target already. It does not check and never formats the device.
//
//   - volume.ErrExists: something else is mounted at the target.
//   - volume.ErrInvalid: an option that cannot be used, or that the filesystem
//     refuses.
//   - volume.ErrInUse: the device is held by somebody else.
//   - volume.ErrNotFound: there is no such device.
func (m *Mounter) Mount(ctx context.Context, fs Filesystem) error {
	options, err := parseOptions(fs.Options)
	if err == nil {
		err = requirePath(fs.Device)
	}
	if err == nil {
		err = m.host.InMountNamespace(ctx, func() error { return mountFilesystem(fs, options) })
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", fs.Device, fs.Target, err)
	}
	return nil
}

func mountFilesystem(fs Filesystem, options parsedOptions) error {
	if !slices.Contains(fsTypes, fs.FSType) {
		return fmt.Errorf("%w: unknown filesystem %q", volume.ErrInvalid, fs.FSType)
	}
	device, err := deviceNumber(fs.Device)
	if err != nil {
		return err
	}
	target, err := resolve(fs.Target)
	if err != nil {
		return err
	}
	current, err := mountAt(target)
	if err != nil {
		return err
	}
	if current != nil {
		return sameFilesystem(current, device, fs.FSType)
	}
	if err := makeDirectory(target); err != nil {
		return err
	}
	if err := unix.Mount(fs.Device, target, fs.FSType, options.flags, options.data); err != nil {
		return classifyMount(err, options)
	}
	current, err = mountAt(target)
	if err != nil {
		return err
	}
	if current == nil {
		return errors.New("the kernel took the mount and the mount table does not show it")
	}
	return sameFilesystem(current, device, fs.FSType)
}

func sameFilesystem(i *mountinfo.Info, device uint64, fsType string) error {
	shows, err := atopDevice(i, device)
	if err != nil {
		return err
	}
	if !shows || i.FSType != fsType || i.Root != "/" {
		return fmt.Errorf("%w: %s of %s is mounted there", volume.ErrExists, i.FSType, i.Source)
	}
	return nil
}

func classifyMount(err error, options parsedOptions) error {
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the filesystem refuses the mount, most often for an option (%q); the kernel's log says more: %w", volume.ErrInvalid, options.data, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", volume.ErrInUse, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the host's kernel does not know this filesystem: %w", volume.ErrToolMissing, err)
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG): // EFSCORRUPTED and EFSBADCRC
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// makeDirectory makes the directory of a mount point, and refuses a link in its
// place.
func makeDirectory(path string) error {
	switch err := unix.Mkdir(path, directoryMode); err {
	case nil:
		return nil
	case unix.EEXIST:
	default:
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%w: %s is not a directory", volume.ErrInvalid, path)
	}
	return nil
}

// Mounted reports whether something is mounted at a path. A path that does not
// exist is not mounted.
func (m *Mounter) Mounted(ctx context.Context, path string) (mounted bool, err error) {
	err = m.host.InMountNamespace(ctx, func() error {
		resolved, err := resolve(path)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		current, err := mountAt(resolved)
		mounted = current != nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("is %s mounted: %w", filepath.Clean(path), err)
	}
	return mounted, nil
}
