// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"errors"
	"fmt"
)

// Flush returns when everything that was written to a block device, also by others, is
// on its medium and no longer in a cache that a loss of power empties (blkdev_fsync in
// block/fops.c). It opens the device read-only, so that udev does not look at it again.
func Flush(path string) (err error) {
	f, err := OpenReadOnly(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	return nil
}
