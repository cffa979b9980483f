// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mount makes, checks, mounts, grows and measures the filesystems of
// volumes on the host.
//
// Mounts are made by system calls on a thread in the host's mount namespace, and
// superblocks are read here, in Go; only mkfs, e2fsck, resize2fs and xfs_growfs
// are programs of the host (docs/adr/0002-mount-by-syscall.md).
//
// Two rules stand above the rest. A device is formatted only when the record says
// that it never was, it exists, and its head and tail read as zeroes: a failed
// probe is never taken for an empty disk. And nothing is ever removed by more than
// rmdir or unlink, so that an unmount that did not happen costs no data.
package mount
