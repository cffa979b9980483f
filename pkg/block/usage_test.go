// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
)

// systemTree is a host whose root is a logical volume on an encrypted partition of
// vda, with /boot on another partition, data on vdb and swap on vdc.
func systemTree(t *testing.T) *tree {
	f := newTree(t)
	f.device("/devices/pci0000:00/virtio1/block/vda", "254:0", 10*gib, nil)
	f.partition("/devices/pci0000:00/virtio1/block/vda/vda1", "254:1", 1, gib)
	f.partition("/devices/pci0000:00/virtio1/block/vda/vda2", "254:2", 2, gib)
	f.partition("/devices/pci0000:00/virtio1/block/vda/vda3", "254:3", 3, gib)
	f.device("/devices/pci0000:00/virtio2/block/vdb", "254:16", gib, nil)
	f.device("/devices/pci0000:00/virtio3/block/vdc", "254:32", gib, nil)
	f.device("/devices/pci0000:00/virtio4/block/vdd", "254:48", gib, nil)
	f.device("/devices/pci0000:00/virtio5/block/vde", "254:64", gib, nil)
	f.device("/devices/virtual/block/dm-0", "253:0", gib, attributes{"dm/name": "crypt", "dm/uuid": "CRYPT-LUKS2-x"})
	f.device("/devices/virtual/block/dm-1", "253:1", gib, attributes{"dm/name": "sys-root", "dm/uuid": "LVM-y"})
	f.stack("dm-0", "vda2")
	f.stack("dm-1", "dm-0")
	f.file("proc/1/mountinfo", `22 1 253:1 / / rw - ext4 /dev/mapper/sys-root rw
23 22 254:1 / /boot/efi rw - vfat /dev/vda1 rw
24 22 254:16 / /srv/my\040data rw - xfs /dev/vdb rw
25 22 0:44 /sub /srv/btrfs rw - btrfs /dev/vdd rw
26 22 0:5 / /proc rw - proc proc rw
`)
	f.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/vdc  partition 1048572 0 -2\n/swapfile file 1 0 -3\n")
	f.file("sys/fs/btrfs/aaaa/devices/vdd", "")
	f.file("sys/fs/btrfs/aaaa/devices/vde", "")
	return f
}

func TestUsage(t *testing.T) {
	t.Parallel()
	f := systemTree(t)
	devices, err := f.sysfs().Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	usage, err := f.sysfs().Usage(t.Context(), devices)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"vda": nil, "vda1": {"/boot/efi"}, "vda2": nil, "dm-1": {"/"}, "vdb": {"/srv/my data"}, "vdc": nil,
		"vdd": {"/srv/btrfs"}, "vde": {"/srv/btrfs"},
	} {
		if got := usage.MountPoints(name); !slices.Equal(got, want) {
			t.Errorf("%s is mounted at %q, want %q", name, got, want)
		}
		if got, want := usage.Swap(name), name == "vdc"; got != want {
			t.Errorf("%s is swap = %v", name, got)
		}
	}
	f.file("proc/1/mountinfo", "rubbish\n")
	if _, err := f.sysfs().Usage(t.Context(), devices); err == nil {
		t.Error("a mount table that cannot be read says nothing is mounted")
	}
}

func TestSystemDevices(t *testing.T) {
	t.Parallel()
	f := systemTree(t)
	devices, err := f.sysfs().Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	usage, err := f.sysfs().Usage(t.Context(), devices)
	if err != nil {
		t.Fatal(err)
	}
	topology := block.NewTopology(devices)
	system := topology.SystemDevices(usage, []string{"/", "/boot"})
	root := block.SystemUse{MountPoint: "/", Path: "/dev/dm-1"}
	boot := block.SystemUse{MountPoint: "/boot/efi", Path: "/dev/vda1"}
	want := map[string]block.SystemUse{"dm-1": root, "dm-0": root, "vda2": root, "vda": root, "vda1": boot, "vda3": root}
	for name, use := range want {
		if system[name] != use {
			t.Errorf("%s: %+v, want %+v", name, system[name], use)
		}
	}
	if len(system) != len(want) {
		t.Errorf("system devices: %v, want %d", system, len(want))
	}
	if got := topology.SystemDevices(usage, nil); len(got) != 0 {
		t.Errorf("without mount points: %v", got)
	}
	if got := topology.SystemDevices(usage, []string{"/srv/"}); len(got) != 3 {
		t.Errorf("below /srv: %v, want vdb, vdd, vde", got)
	}
}

func TestVolumeGroup(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"sys-root": "sys", "my--vg-data": "my-vg", "a--b--c-d--e": "a-b-c", "plain": "", "": "", "--": "",
	} {
		d := block.Device{Type: block.TypeLVM, DMName: name}
		if got := d.VolumeGroup(); got != want {
			t.Errorf("VolumeGroup of %q = %q, want %q", name, got, want)
		}
	}
}
