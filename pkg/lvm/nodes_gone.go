// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Gone implements Nodes. device-mapper keeps what it opened: where that is gone, the link to it
// in sysfs leads nowhere, or to a disk that has got its place and knows nothing of who lies on it.
func (h HostNodes) Gone(ctx context.Context, loc volume.Location) (bool, error) {
	number, isNode, err := h.deviceNumber(loc.Device)
	if err != nil || !isNode {
		return false, err
	}
	gone, err := h.onGone(ctx, number)
	if err != nil {
		return false, fmt.Errorf("find what %s lies on: %w", loc.Device, err)
	}
	return gone, nil
}

func (h HostNodes) onGone(ctx context.Context, number string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	slaves := h.path("/sys/dev/block", number, "slaves")
	entries, err := os.ReadDir(slaves)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, minor, _ := strings.Cut(number, ":")
	for _, entry := range entries {
		below, err := readText(filepath.Join(slaves, entry.Name(), "dev"))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			if _, err := os.Lstat(filepath.Join(slaves, entry.Name())); err == nil {
				return true, nil
			}
			continue // the table was changed in between
		case err != nil:
			return false, err
		}
		if _, err := os.Lstat(h.path("/sys/dev/block", below, "holders", "dm-"+minor)); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(filepath.Join(slaves, entry.Name())); err == nil {
				return true, nil
			}
			continue
		} else if err != nil {
			return false, err
		}
		if gone, err := h.onGone(ctx, below); gone || err != nil {
			return gone, err
		}
	}
	return false, nil
}
