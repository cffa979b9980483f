// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/berth-dev/berth/pkg/block"
)

// Flusher makes what was written to a device durable: it returns when the device says
// that its volatile write cache is on the medium.
//
// lvm writes labels and metadata past the page cache and does not ask for that
// (_async_issue in lib/device/bcache.c; dev_flush in lib/device/dev-io.c is for devices
// that are not opened with O_DIRECT). A device may keep them in its cache for as long as
// nothing else on it is flushed; a physical volume that holds nothing yet then loses its
// label with the power, and its volume group is partial for good.
type Flusher func(devicePath string) error

// DiskFlusher returns a Flusher of the devices that are seen under root.
func DiskFlusher(root string) Flusher {
	return func(path string) error { return block.Flush(filepath.Join(root, path)) }
}

// errNotDurable: something was changed and may be undone by a loss of power.
var errNotDurable = errors.New("it may be lost with the power")

// makeDurable flushes the group's devices that are there.
func (c *Client) makeDurable(g *Group) error {
	var errs []error
	for _, pv := range g.PVs {
		if pv.Path == "" {
			continue
		}
		if err := c.flush(pv.Path); err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", errNotDurable, err))
		}
	}
	return errors.Join(errs...)
}
