// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package contents makes samples of what is found on disks that belong to somebody:
// filesystems, members of arrays and pools, partition tables, encrypted volumes, and
// data that nobody knows. Tests hold them against everything that could write to a disk.
//
// A sample is made by the tool that makes the real thing where every machine has the
// tool, and otherwise written byte by byte in the format of the real thing, with valid
// checksums, far enough that libblkid takes it for the real thing. The formats are those
// of the Linux kernel's headers (include/uapi/linux, fs, drivers/md) and of what
// libblkid looks for (util-linux, libblkid/src/superblocks and partitions).
package contents
