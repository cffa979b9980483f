// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Bind names a directory or a device node and where it shall be seen too.
type Bind struct {
	// Source is a directory, or a block device's path, on the host.
	Source string
	// Target is made when only it, not its parent, is missing: a directory for a
	// directory, an empty file for a device node.
	Target string
	// ReadOnly makes the bind mount read-only, whatever the source is.
	ReadOnly bool
	// Options of a directory's mount: only those that belong to one mount point (ro,
	// nosuid, nodev, noexec, noatime, …). What the source's mount has stays on.
	Options []string
}

// BindDirectory makes a directory visible at another place. It does nothing when
// it is so already. What is mounted below the source is not taken along.
//
// volume.ErrExists: something else is mounted at the target. volume.ErrInvalid: an
// option that a bind mount cannot have, or a source that is no directory.
// volume.ErrNotFound: there is no source.
func (m *Mounter) BindDirectory(ctx context.Context, b Bind) error {
	options, err := parseOptions(b.Options)
	if err == nil && (options.data != "" || options.flags&^perMount != 0) {
		err = fmt.Errorf("%w: options %q need a filesystem of the volume's own, and this is a bind mount", volume.ErrInvalid, b.Options)
	}
	if b.ReadOnly {
		options.flags |= unix.MS_RDONLY
	}
	return m.bind(ctx, b, options.flags, unix.S_IFDIR, err)
}

// BindDevice makes a device node visible at another place, an empty file. Errors
// as BindDirectory.
func (m *Mounter) BindDevice(ctx context.Context, b Bind) error {
	var flags uintptr
	if b.ReadOnly {
		flags = unix.MS_RDONLY
	}
	return m.bind(ctx, b, flags, unix.S_IFBLK, nil)
}

func (m *Mounter) bind(ctx context.Context, b Bind, flags uintptr, kind uint32, err error) error {
	if err == nil {
		err = requirePath(b.Source)
	}
	if err == nil {
		err = m.host.InMountNamespace(ctx, func() error { return bind(b, flags, kind) })
	}
	if err != nil {
		return fmt.Errorf("bind %s to %s: %w", b.Source, b.Target, err)
	}
	return nil
}

func bind(b Bind, flags uintptr, kind uint32) error {
	var source unix.Stat_t
	switch err := unix.Stat(b.Source, &source); {
	case err == unix.ENOENT:
		return fmt.Errorf("source: %w", volume.ErrNotFound)
	case err != nil:
		return fmt.Errorf("stat %s: %w", b.Source, err)
	case source.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%w: the source is not of the right kind", volume.ErrInvalid)
	}
	target, err := resolve(b.Target)
	if err != nil {
		return err
	}
	current, err := mountAt(target)
	if err != nil {
		return err
	}
	fresh := current == nil
	if fresh {
		if kind == unix.S_IFDIR {
			err = makeDirectory(target)
		} else {
			err = makeFile(target)
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(b.Source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := sameFile(source, target); err != nil {
		return err
	}
	inherited, err := flagsOf(b.Source)
	if err != nil {
		return err
	}
	have, err := flagsOf(target)
	if err != nil {
		return err
	}
	if !fresh && (have&^inherited)&^flags&unix.MS_RDONLY != 0 {
		return fmt.Errorf("%w: it is mounted read-only there", volume.ErrExists)
	}
	return setFlags(target, have, flags)
}

// sameFile makes sure that what is seen at a target is the source itself.
func sameFile(source unix.Stat_t, target string) error {
	var seen unix.Stat_t
	if err := unix.Stat(target, &seen); err != nil {
		return fmt.Errorf("stat %s: %w", target, err)
	}
	if seen.Dev == source.Dev && seen.Ino == source.Ino {
		return nil
	}
	// A node that was made anew under the same number is the same device.
	if source.Mode&unix.S_IFMT == unix.S_IFBLK && seen.Mode&unix.S_IFMT == unix.S_IFBLK && seen.Rdev == source.Rdev {
		return nil
	}
	return fmt.Errorf("%w: something else is mounted there", volume.ErrExists)
}

// statfsFlags are the flags of one mount point as statfs(2) tells them and as
// mount(2) takes them.
var statfsFlags = []struct {
	told  int64
	taken uintptr
}{
	{unix.ST_RDONLY, unix.MS_RDONLY},
	{unix.ST_NOSUID, unix.MS_NOSUID},
	{unix.ST_NODEV, unix.MS_NODEV},
	{unix.ST_NOEXEC, unix.MS_NOEXEC},
	{unix.ST_NOATIME, unix.MS_NOATIME},
	{unix.ST_NODIRATIME, unix.MS_NODIRATIME},
	{unix.ST_RELATIME, unix.MS_RELATIME},
	{0x2000, msNosymfollow}, // ST_NOSYMFOLLOW,
}

// flagsOf returns the flags of the mount that shows a path.
func flagsOf(path string) (uintptr, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	var flags uintptr
	for _, f := range statfsFlags {
		if st.Flags&f.told != 0 {
			flags |= f.taken
		}
	}
	return flags, nil
}

// setFlags gives a bind mount its flags, besides those it has from its source: the
// kernel does not look at them when it makes one. It runs also when the mount was
// there before, for the call that made it may have been killed in between.
func setFlags(target string, have, flags uintptr) error {
	want := have | flags
	if flags&(unix.MS_NOATIME|unix.MS_STRICTATIME) != 0 {
		want &^= unix.MS_RELATIME
	}
	if flags&unix.MS_STRICTATIME != 0 {
		want &^= unix.MS_NOATIME
	}
	if want&^unix.MS_STRICTATIME == have {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|want, ""); err != nil {
		return fmt.Errorf("set the flags of the mount at %s: %w", target, err)
	}
	return nil
}

// makeFile makes the empty file that a device node is bound to.
func makeFile(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, fileMode)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make file %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != 0 {
		return fmt.Errorf("%w: %s is not an empty file", volume.ErrInvalid, path)
	}
	return nil
}
