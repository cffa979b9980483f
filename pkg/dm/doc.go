// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dm asks the kernel's device-mapper how its devices are, and lets several of them
// stand still for a moment, by ioctl on /dev/mapper/control: no process is started. lvm
// makes and unmakes the devices; only what a killed lvm has left is removed here.
//
// It waits for the events that targets send (a thin pool that crosses its low-water
// mark, a leg of a raid that fails) with poll(2) on the same file, so that nothing
// wakes up while nothing happens.
//
// Sources: include/uapi/linux/dm-ioctl.h and drivers/md/dm-ioctl.c of Linux, and
// Documentation/admin-guide/device-mapper of the same.
package dm
