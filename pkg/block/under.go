// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Under returns the kernel names of what a block device or a directory stands on: the
// device itself, or the one that holds the directory's filesystem, and everything
// below it down to the disks. A filesystem without a device of its own (btrfs, tmpfs)
// has none. path is the host's. volume.ErrNotFound: it is not there.
func (s Sysfs) Under(ctx context.Context, path string) ([]string, error) {
	var st unix.Stat_t
	switch err := unix.Stat(s.hostPath(path), &st); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", path, volume.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	number := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		number = st.Rdev
	}
	link := filepath.Join(s.root(), "dev/block", fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number)))
	target, err := os.Readlink(link)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find the device of %s: %w", path, err)
	}
	var names []string
	if err := s.descend(ctx, filepath.Base(target), &names); err != nil {
		return nil, err
	}
	return names, nil
}

// descend adds a device and what it stands on, each once.
func (s Sysfs) descend(ctx context.Context, kernelName string, names *[]string) error {
	if slices.Contains(*names, kernelName) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	*names = append(*names, kernelName)
	reader, err := s.reader(kernelName)
	if errors.Is(err, volume.ErrNotFound) {
		return nil // gone meanwhile; what it stood on cannot be told
	}
	if err != nil {
		return err
	}
	below := reader.list("slaves")
	if reader.text("partition") != "" {
		below = append(below, filepath.Base(filepath.Dir(reader.directory)))
	}
	if reader.err != nil {
		return fmt.Errorf("device %s: %w", kernelName, reader.err)
	}
	for _, name := range below {
		if err := s.descend(ctx, name, names); err != nil {
			return err
		}
	}
	return nil
}
