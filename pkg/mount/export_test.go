// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import "time"

// MkfsTimeout is how long the mkfs of a request may take.
func MkfsTimeout(req FormatRequest) (time.Duration, error) {
	command, err := mkfs(req)
	return command.Timeout, err
}

// SetSysBlock lets the kernel have the block devices whose numbers are in that directory.
func (m *Mounter) SetSysBlock(dir string) { m.sysBlock = dir }
