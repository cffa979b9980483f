// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

// SetSysBlock lets the kernel have the block devices whose numbers are in that directory.
func (m *Mounter) SetSysBlock(dir string) { m.sysBlock = dir }
