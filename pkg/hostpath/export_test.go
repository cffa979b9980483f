// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

// SetStep makes the backend call f before each step that changes something. An
// error ends the call there, as the end of the process would.
func (b *Backend) SetStep(f func(name string) error) { b.step = f }

// SetSync replaces what makes a copy durable: tests share their filesystem with others.
func (b *Backend) SetSync(f func(fd int) error) { b.syncAll = f }

// KernelUUID is what the kernel says of the filesystem of an open directory.
var KernelUUID = kernelUUID

// What is handed to the kernel to be filled in.
type (
	AnyUUID   = anyUUID
	Ext4UUID  = ext4UUID
	XFSInfo   = xfsInfo
	BtrfsInfo = btrfsInfo
)

// EmptyTrash is one round of Run.
var EmptyTrash = (*Backend).emptyTrash

// TendRetained is one look at what is kept of deleted volumes.
var TendRetained = (*Backend).tendRetained

// TakeTurn takes one of the turns in which trees are copied.
var TakeTurn = takeTurn
