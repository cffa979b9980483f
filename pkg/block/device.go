// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"regexp"
	"slices"
	"strings"
)

// DeviceType is what kind of block device the kernel shows.
type DeviceType string

// The kinds of device. Whole disks are those with hardware (or a hypervisor, or a
// network) behind them.
const (
	TypeDisk      DeviceType = "disk"
	TypePartition DeviceType = "partition"
	TypeLoop      DeviceType = "loop"
	TypeLVM       DeviceType = "lvm"
	TypeCrypt     DeviceType = "crypt"
	// TypeVolume is an encrypted volume of Berth that is open.
	TypeVolume    DeviceType = "volume"
	TypeMultipath DeviceType = "mpath"
	TypeMD        DeviceType = "md"
	// TypeOther is everything else: zram, ram, nbd, drbd, optical drives, floppies,
	// other device-mapper targets.
	TypeOther DeviceType = "other"
)

// Device is what sysfs and udev say of one block device at one moment. Strings
// are trimmed; what is not known is empty. Of a logical volume only its name, number,
// size, use and place among the devices are read.
type Device struct {
	// KernelName as in /sys/class/block ("vdb", "nvme0n1p1", "cciss!c0d0").
	KernelName string
	// Path of the device node on the host ("/dev/vdb").
	Path string
	// Major and Minor number of the node.
	Major, Minor uint32
	// DiskSeq changes whenever another disk or medium takes the kernel name; 0 on
	// kernels before 5.15. A partition has its disk's.
	DiskSeq uint64
	Type    DeviceType
	// Parent is the kernel name of a partition's disk.
	Parent string
	// PartitionNumber of a partition, from 1.
	PartitionNumber int

	SizeBytes              int64
	LogicalBlockSizeBytes  int64
	PhysicalBlockSizeBytes int64
	ReadOnly               bool
	Removable              bool
	Rotational             bool
	// Hidden devices are the paths of native NVMe multipath: they have no node.
	Hidden bool
	// Zoned is "none", "host-aware" or "host-managed".
	Zoned string

	// Transport is virtio, nvme, nvme-tcp, nvme-rdma, nvme-fc, sata, sas, scsi, usb,
	// iscsi, fc, mmc, xen, nbd, rbd, drbd, loop, … or empty. NVMe over PCIe is nvme.
	Transport        string
	Vendor           string
	Model            string
	Serial           string
	FirmwareRevision string
	// WWN is the world-wide name that a SCSI or ATA disk reports ("naa.…", "eui.…").
	WWN string
	// NGUID and EUI64 of an NVMe namespace, and its number.
	NGUID, EUI64, NamespaceID string
	// DMName and DMUUID of a device-mapper device.
	DMName, DMUUID string
	// MDUUID of an md array.
	MDUUID string
	// LoopBackingFile of a loop device, and where in it the device starts.
	LoopBackingFile    string
	LoopOffsetBytes    int64
	PartitionUUID      string
	SysfsPath          string // without the mount point of sysfs: "/devices/…"
	UdevInitialized    bool   // udev has finished with the device at least once
	UdevContent        UdevContent
	Links              []string // udev's links that lead here, sorted
	Partitions         []string // kernel names, sorted
	Holders            []string // kernel names of devices on top, sorted
	Slaves             []string // kernel names of devices below, sorted
	VirtualBlockDevice bool     // made by software: under /devices/virtual/block

	// Err is set when something that should be readable was not. What was read
	// stands in the other fields, but the identity cannot be relied on.
	Err error
}

// UdevContent is what udev's own probe noted when it last looked. It is stale
// whenever the device was written since, and good only to be shown.
type UdevContent struct {
	FSType, FSUUID, FSLabel string
	PartitionTable          string
}

// Controller is the PCI address of the adapter that the device is behind: the last one
// on the way to it. Empty for a device that is not behind PCI.
func (d *Device) Controller() string {
	address := ""
	for part := range strings.SplitSeq(d.SysfsPath, "/") {
		if pciAddress.MatchString(part) {
			address = part
		}
	}
	return address
}

// pciAddress is domain:bus:device.function, as the kernel names PCI devices.
var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// LinkUnder returns the first link below a directory of /dev, for example
// "/dev/disk/by-path/", or "".
func (d *Device) LinkUnder(prefix string) string {
	i := slices.IndexFunc(d.Links, func(link string) bool { return len(link) > len(prefix) && link[:len(prefix)] == prefix })
	if i < 0 {
		return ""
	}
	return d.Links[i]
}
