// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"path/filepath"

	"github.com/berth-dev/berth/pkg/device"
)

// hostDisks opens the host's disks by their paths on the host. The container's own
// /dev is a copy from when it started, without what was plugged in since.
type hostDisks struct{ root string }

// Open implements device.Opener.
func (h hostDisks) Open(ctx context.Context, path string) (device.OpenDisk, error) {
	disk, err := device.BlockOpener{}.Open(ctx, filepath.Join(h.root, path))
	if err != nil {
		return nil, err
	}
	return hostDisk{disk, h.root}, nil
}

type hostDisk struct {
	device.OpenDisk
	root string
}

// Is implements device.OpenDisk.
func (d hostDisk) Is(path string) (bool, error) {
	return d.OpenDisk.Is(filepath.Join(d.root, path))
}
