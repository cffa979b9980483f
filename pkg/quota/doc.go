// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package quota limits what a directory can hold, by project quotas of xfs and ext4.
//
// A project is a number that files carry; the filesystem counts what all files of a number
// take, and refuses what goes beyond the limit of the number. A directory that hands its
// number on gives it to all that is made in it. The filesystem must be mounted with the option
// prjquota, and an ext4 must have the features project and quota besides: without, the package
// says what is missing and changes nothing.
//
// It speaks to the kernel by system calls alone, and needs quotactl_fd(2) of Linux 5.14: that
// takes an open directory in the place of a device's path, which in a container may name
// another device or none.
//
// # What a project quota does not do
//
// It reserves nothing: the filesystem can run full before a limit is reached. On ext4 a process
// with CAP_SYS_RESOURCE is not limited (ignore_hardlimit in fs/quota/dquot.c), and a write that
// goes beyond fails with EDQUOT, on xfs with ENOSPC. The owner of a file may give it another
// number (FS_IOC_FSSETXATTR), and so take it out of the count.
package quota
