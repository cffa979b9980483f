// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/berth-dev/berth/pkg/device"
)

var machineIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// readMachineID reads the identity of the host's installation (machine-id(5)).
func readMachineID(path string) (string, error) {
	data, err := os.ReadFile(path) //nolint:gosec // G703: the path is the operator's own option
	if err != nil {
		return "", fmt.Errorf("read the host's machine-id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if !machineIDPattern.MatchString(id) {
		return "", fmt.Errorf("%s holds %q, not a machine-id; run systemd-machine-id-setup on the host", path, id)
	}
	return id, nil
}

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
