// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package btrfs makes, copies, limits and removes subvolumes of a btrfs, by its ioctls
// (include/uapi/linux/btrfs.h). Directories are given as open descriptors, so that nobody can
// put another one in their place. It runs no program.
//
// A subvolume is a directory that can be copied whole, at one instant, without copying what is
// in it. Subvolumes in it are not copied with it. Its root has inode number 256 in every one.
//
// Where somebody has switched the quotas of the filesystem on, each subvolume has a group that
// counts what it refers to, and can limit that. This package switches none on.
package btrfs
