// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package devicetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// FileOpener opens plain files as disks; an exclusive flock stands for O_EXCL.
type FileOpener struct{}

// Open implements device.Opener.
func (FileOpener) Open(_ context.Context, path string) (device.OpenDisk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", volume.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %w", path, volume.ErrInUse, err), f.Close())
	}
	return fileDisk{f}, nil
}

type fileDisk struct{ f *os.File }

func (d fileDisk) Is(path string) (bool, error) {
	mine, err := d.f.Stat()
	if err != nil {
		return false, err
	}
	other, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, other), err
}

func (d fileDisk) SizeBytes() (int64, error) { return block.SizeBytes(d.f) }

func (d fileDisk) Blank() error {
	size, err := d.SizeBytes()
	if err != nil {
		return err
	}
	offset, blank, err := block.Blank(d.f, size)
	if err == nil && !blank {
		err = fmt.Errorf("%s holds data at offset %d: %w", d.f.Name(), offset, volume.ErrNotBlank)
	}
	return err
}

func (d fileDisk) Wipe(ctx context.Context, sizeBytes int64, policy volume.WipePolicy, progress func(int64)) error {
	return block.Wipe(ctx, d.f, sizeBytes, policy, progress)
}

func (d fileDisk) Close() error { return d.f.Close() }
