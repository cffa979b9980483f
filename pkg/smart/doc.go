// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package smart asks disks what they know of their own health: SMART of ATA and
// SCSI disks and the health log of NVMe ones, through the host's smartctl
// (smartmontools), which knows what a hundred vendors have made of it.
//
// It reads only. A disk that sleeps is not woken.
package smart
