// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// readHardware finds out what a whole device is and what it says of itself. What
// the kernel knows comes first, so that the answer does not depend on how far
// udev has come; udev fills the gaps.
func (r *attributes) readHardware(d *Device) {
	d.Type = r.deviceType(d)
	d.Transport = r.transport(d)
	switch {
	case d.Type == TypeLoop:
		d.LoopBackingFile = r.text("loop/backing_file")
		d.LoopOffsetBytes = r.optionalNumber("loop/offset")
	case strings.HasPrefix(d.KernelName, "dm-"):
		d.DMName, d.DMUUID = r.text("dm/name"), r.text("dm/uuid")
	case d.Type == TypeMD:
		if uuid := r.text("md/uuid"); uuid != "" {
			d.MDUUID = uuid
		}
	case strings.HasPrefix(d.KernelName, "nvme"):
		r.readNVMe(d)
	case strings.HasPrefix(d.KernelName, "mmcblk"):
		d.Vendor, d.Model = r.text("device/manfid"), r.text("device/name")
		d.Serial, d.FirmwareRevision = r.text("device/serial"), r.text("device/fwrev")
	default:
		r.readSCSI(d)
	}
	if d.VirtualBlockDevice {
		return
	}
	fill := func(field *string, keys ...string) {
		for _, key := range keys {
			if *field == "" {
				*field = printable([]byte(unescapeUdev(r.udev.Properties[key])))
			}
		}
	}
	fill(&d.Serial, "ID_SCSI_SERIAL", "ID_SERIAL_SHORT")
	fill(&d.Model, "ID_MODEL")
	fill(&d.Vendor, "ID_VENDOR")
	fill(&d.FirmwareRevision, "ID_REVISION")
	if d.WWN == "" && d.NGUID == "" && d.EUI64 == "" {
		if wwn := r.udev.Properties["ID_WWN_WITH_EXTENSION"]; strings.HasPrefix(wwn, "0x") {
			d.WWN = "naa." + wwn[2:]
		}
	}
}

// lvmUUIDPrefix begins the device-mapper UUID of every logical volume (lvm2,
// lib/activate/dev_manager.c: UUID_PREFIX).
const lvmUUIDPrefix = "LVM-"

func (r *attributes) deviceType(d *Device) DeviceType {
	name := d.KernelName
	switch {
	case strings.HasPrefix(name, "loop"):
		return TypeLoop
	case strings.HasPrefix(name, "md") && r.isDirectory("md"):
		return TypeMD
	case strings.HasPrefix(name, "dm-"):
		// The prefix of the UUID names who made it (lvm2, cryptsetup, multipath-tools).
		uuid := r.text("dm/uuid")
		switch {
		case strings.HasPrefix(uuid, "CRYPT-"):
			return TypeCrypt
		case strings.HasPrefix(uuid, "mpath-"):
			return TypeMultipath
		}
		return TypeOther
	case d.VirtualBlockDevice, optical.MatchString(name):
		return TypeOther
	}
	return TypeDisk
}

func (r *attributes) isDirectory(name string) bool {
	info, err := os.Stat(filepath.Join(r.directory, name))
	return err == nil && info.IsDir()
}

var (
	optical   = regexp.MustCompile("^(sr|scd|fd|pf|pcd)[0-9]+$")
	ataPort   = regexp.MustCompile("/ata[0-9]+/")
	namedKind = regexp.MustCompile("^(loop|zram|ram|nbd|rbd|drbd|zd|pmem|dasd|ublkb|bcache)[0-9]")
)

// transport tells how the device is reached, by the bus in its sysfs path.
func (r *attributes) transport(d *Device) string {
	path := d.SysfsPath
	switch {
	case strings.HasPrefix(d.KernelName, "nvme"):
		return r.nvmeTransport()
	case namedKind.MatchString(d.KernelName):
		return namedKind.FindStringSubmatch(d.KernelName)[1]
	case strings.HasPrefix(d.KernelName, "xvd"):
		return "xen"
	case strings.Contains(path, "/mmc_host/"):
		return "mmc"
	case strings.Contains(path, "/usb"):
		return "usb"
	case strings.Contains(path, "/session"):
		return "iscsi"
	case strings.Contains(path, "/rport-"):
		return "fc"
	case strings.Contains(path, "/tcm_loop"):
		return "tcm_loop"
	case ataPort.MatchString(path):
		return "sata"
	case strings.Contains(path, "/end_device-"):
		return "sas"
	case strings.Contains(path, "/virtio"):
		return "virtio"
	case strings.Contains(path, "/host") && strings.Contains(path, "/target"):
		return "scsi"
	}
	return ""
}

// readSCSI reads a SCSI disk (which ATA and USB disks are, to the kernel) and
// also virtio and Xen disks, which have a part of the same attributes.
func (r *attributes) readSCSI(d *Device) {
	d.Vendor, d.Model = r.text("device/vendor"), r.text("device/model")
	d.FirmwareRevision = r.text("device/rev")
	d.Serial = r.text("serial") // virtio
	if d.Serial == "" {
		// Page 80h: four bytes of header, then the serial number in ASCII (SPC-5, 7.7.17).
		if page := r.bytes("device/vpd_pg80"); len(page) > 4 {
			d.Serial = printable(page[4:])
		}
	}
	if d.Serial == "" && d.Transport == "usb" {
		d.Serial = r.usbSerial()
	}
	// "t10." names are made of vendor, model and serial, which is no more than those.
	if wwid := r.text("device/wwid"); strings.HasPrefix(wwid, "naa.") || strings.HasPrefix(wwid, "eui.") {
		d.WWN = wwid
	}
}

// usbSerial is the serial number of the USB device the disk is in.
func (r *attributes) usbSerial() string {
	for directory := filepath.Dir(r.directory); strings.HasPrefix(directory, r.root+"/"); directory = filepath.Dir(directory) {
		if _, err := os.Stat(filepath.Join(directory, "idVendor")); err == nil {
			usb := &attributes{sysfs: r.sysfs, root: r.root, directory: directory}
			return usb.text("serial")
		}
	}
	return ""
}

func (r *attributes) readNVMe(d *Device) {
	d.Vendor = r.text("device/vendor")
	d.Model, d.Serial = r.text("device/model"), r.text("device/serial")
	d.FirmwareRevision = r.text("device/firmware_rev")
	d.NGUID, d.EUI64, d.NamespaceID = r.text("nguid"), r.text("eui"), r.text("nsid")
	if d.NGUID == "" {
		// A namespace may have a UUID instead; the kernel hides what is all zero.
		d.NGUID = r.text("uuid")
	}
}

// nvmeTransport asks the controllers: a namespace of a multipath subsystem hangs
// below the subsystem, whose directory holds links to them.
func (r *attributes) nvmeTransport() string {
	name := r.text("device/transport")
	if name == "" {
		controllers, _ := filepath.Glob(filepath.Join(r.directory, "device/nvme*/transport"))
		for _, path := range controllers {
			relative, err := filepath.Rel(r.directory, path)
			if err != nil {
				continue
			}
			if name = r.text(relative); name != "pcie" && name != "" {
				break
			}
		}
	}
	if name == "pcie" || name == "" {
		return "nvme"
	}
	return "nvme-" + name
}
