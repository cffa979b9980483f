// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"

	"github.com/berth-dev/berth/tests/workload"
)

// kind is one way to use a volume: a mode with a filesystem or as a block device.
type kind struct {
	name  string
	class func(Classes) string
	size  string
	block bool
}

// kinds are all the ways that are tested. mkfs.xfs refuses less than 300 MiB, mkfs.btrfs
// less than 109 MiB.
var kinds = []kind{
	{name: "lvm with ext4", class: func(c Classes) string { return c.LVM }, size: "96Mi"},
	{name: "lvm with xfs", class: func(c Classes) string { return c.LVMXFS }, size: "320Mi"},
	{name: "lvm as a block device", class: func(c Classes) string { return c.LVM }, size: "32Mi", block: true},
	{name: "device with ext4", class: func(c Classes) string { return c.Device }, size: "1Gi"},
	{name: "device as a block device", class: func(c Classes) string { return c.Device }, size: "1Gi", block: true},
	{name: "hostpath", class: func(c Classes) string { return c.Hostpath }, size: "32Mi"},
	{name: "lvm with btrfs", class: func(c Classes) string { return c.LVMBtrfs }, size: "128Mi"},
}

const contentBlocks = 32 // of 64 KiB

func (k kind) claim(name string) workload.Claim {
	return workload.Claim{Name: name, Class: k.class(suite.description.Classes), Size: k.size, Block: k.block}
}

// place is where a pod finds the claim's bytes.
func (k kind) place(claim string) string {
	if k.block {
		return workload.DeviceDirectory + "/" + claim
	}
	return workload.MountDirectory + "/" + claim + "/content"
}

// with adds the claim to a pod.
func (k kind) with(pod workload.Pod, claim string) workload.Pod {
	if k.block {
		pod.Devices = append(pod.Devices, claim)
	} else {
		pod.Claims = append(pod.Claims, claim)
	}
	return pod
}

// writeScript fills the claim with random bytes and reports their digest as it
// was computed from a copy outside the volume.
func (k kind) writeScript(claim string) string {
	return fmt.Sprintf(`set -e
dd if=/dev/urandom of=/tmp/content bs=65536 count=%[1]d 2>/dev/null
dd if=/tmp/content of=%[2]s bs=65536 count=%[1]d conv=fsync 2>/dev/null
sync
sha256sum </tmp/content >>/dev/termination-log
`, contentBlocks, k.place(claim))
}

// readScript reports the digest of what is on the volume.
func (k kind) readScript(claim string) string {
	return fmt.Sprintf(`set -e
dd if=%[2]s bs=65536 count=%[1]d 2>/dev/null | sha256sum >>/dev/termination-log
`, contentBlocks, k.place(claim))
}
