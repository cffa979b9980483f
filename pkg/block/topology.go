// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"slices"
	"strings"
)

// Topology is how the devices of a host are stacked.
type Topology map[string]*Device

// NewTopology indexes what Devices returned. The devices are shared, not copied.
func NewTopology(devices []Device) Topology {
	t := make(Topology, len(devices))
	for i := range devices {
		t[devices[i].KernelName] = &devices[i]
	}
	return t
}

// Below returns the kernel names of a device and of everything it stands on:
// the disk of a partition, the slaves of device-mapper and md devices, sorted.
func (t Topology) Below(kernelName string) []string {
	seen := map[string]bool{}
	var walk func(string)
	walk = func(name string) {
		d := t[name]
		if d == nil || seen[name] {
			return
		}
		seen[name] = true
		if d.Parent != "" {
			walk(d.Parent)
		}
		for _, slave := range d.Slaves {
			walk(slave)
		}
	}
	walk(kernelName)
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// SystemUse says why a device belongs to the operating system.
type SystemUse struct {
	// MountPoint of the host that stands on the device, and the Path of the device
	// that is mounted there (a partition, a logical volume).
	MountPoint, Path string
}

// SystemDevices returns every device that the operating system stands on: those
// that carry one of the mount points, and everything below and beside them on the
// same disks. "/" means the root filesystem alone; any other mount point also
// means those below it ("/boot" is "/boot/efi" too).
func (t Topology) SystemDevices(usage *Usage, mountPoints []string) map[string]SystemUse {
	system := map[string]SystemUse{}
	usage.Mounts(func(name, point string) {
		if t[name] == nil || !slices.ContainsFunc(mountPoints, func(want string) bool { return carries(point, want) }) {
			return
		}
		use := SystemUse{MountPoint: point, Path: t[name].Path}
		for _, below := range t.Below(name) {
			if old, found := system[below]; !found || use.MountPoint < old.MountPoint {
				system[below] = use
			}
		}
	})
	for name, d := range t {
		if use, found := system[d.Parent]; found && d.Parent != "" {
			if _, has := system[name]; !has {
				system[name] = use
			}
		}
	}
	return system
}

func carries(point, want string) bool {
	want = strings.TrimSpace(want)
	if want != "/" {
		want = strings.TrimRight(want, "/")
	}
	return want != "" && (point == want || want != "/" && strings.HasPrefix(point, want+"/"))
}

// VolumeGroup returns the volume group that an LVM device belongs to, from its
// device-mapper name: group and volume are joined by one '-', and every '-' in
// either is doubled (lvm2, lib/misc/lvm-string.c). "" for any other device.
func (d *Device) VolumeGroup() string {
	if d.Type != TypeLVM {
		return ""
	}
	name := d.DMName
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		return strings.ReplaceAll(name[:i], "--", "-")
	}
	return ""
}
