// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

const gib = 1 << 30

func TestDeviceFacts(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name     string
		build    func(*tree)
		kernel   string
		want     block.Device // only the fields that are set are compared
		identity block.Identity
	}{
		{
			name: "virtio with a serial", kernel: "vdb",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb", "254:16", 10*gib, attributes{"serial": "FAST-1", "device/vendor": "0x1af4"})
				f.udev("254:16", "vdb", "S:disk/by-id/virtio-FAST-1", "S:disk/by-path/pci-0000:00:05.0", "E:ID_SERIAL=FAST-1")
			},
			want:     block.Device{Type: block.TypeDisk, Transport: "virtio", Serial: "FAST-1", SizeBytes: 10 * gib, Path: "/dev/vdb", DiskSeq: 9, UdevInitialized: true},
			identity: block.Identity{Scheme: "serial", Value: "0x1af4_FAST-1"},
		},
		{
			name: "virtio without a serial", kernel: "vdc",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:06.0/virtio3/block/vdc", "254:32", gib, attributes{"serial": ""})
				f.udev("254:32", "vdc", "S:disk/by-path/pci-0000:00:06.0")
			},
			want:     block.Device{Type: block.TypeDisk, Transport: "virtio"},
			identity: block.Identity{Scheme: "by-path", Value: "pci-0000:00:06.0", Weak: true},
		},
		{
			name: "virtio without a serial and without udev", kernel: "vdc",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:06.0/virtio3/block/vdc", "254:32", gib, nil)
			},
			want:     block.Device{Type: block.TypeDisk, Transport: "virtio"},
			identity: block.Identity{Scheme: "by-path", Value: "/devices/pci0000:00/0000:00:06.0/virtio3", Weak: true},
		},
		{
			name: "NVMe with an NGUID", kernel: "nvme0n1",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:07.0/nvme/nvme0/nvme0n1", "259:0", 100*gib, attributes{
					"device": "-> ..", "nsid": "1", "nguid": "36333030-5730-1234-0025-384500000001", "eui": "00 00 00 00 00 00 00 00", "wwid": "eui.36333030573012340025384500000001",
				})
				for file, content := range map[string]string{"model": "SAMSUNG X", "serial": "S5XYZ     ", "firmware_rev": "1.0", "transport": "pcie"} {
					f.file("sys/devices/pci0000:00/0000:00:07.0/nvme/nvme0/"+file, content+"\n")
				}
			},
			want:     block.Device{Type: block.TypeDisk, Transport: "nvme", Model: "SAMSUNG X", Serial: "S5XYZ", FirmwareRevision: "1.0", NamespaceID: "1"},
			identity: block.Identity{Scheme: "nguid", Value: "36333030573012340025384500000001_1"},
		},
		{
			name: "NVMe of QEMU, with a serial only", kernel: "nvme0n1",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:07.0/nvme/nvme0/nvme0n1", "259:0", gib, attributes{"device": "-> ..", "nsid": "1", "wwid": "nvme.1b36-4e564d45-5145-00000001"})
				for file, content := range map[string]string{"model": "QEMU NVMe Ctrl", "serial": "NVME-A", "transport": "pcie"} {
					f.file("sys/devices/pci0000:00/0000:00:07.0/nvme/nvme0/"+file, content+"\n")
				}
			},
			want:     block.Device{Transport: "nvme", Model: "QEMU NVMe Ctrl", Serial: "NVME-A"},
			identity: block.Identity{Scheme: "serial", Value: "QEMU NVMe Ctrl_NVME-A_1"},
		},
		{
			name: "NVMe over TCP, below a multipath subsystem", kernel: "nvme1n1",
			build: func(f *tree) {
				f.device("/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1", "259:3", gib, attributes{"device": "-> ..", "nsid": "1", "uuid": "6d9a1e5c-0000-4000-8000-000000000001"})
				f.file("sys/devices/virtual/nvme-subsystem/nvme-subsys1/model", "Linux\n")
				f.file("sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1/transport", "tcp\n")
			},
			want:     block.Device{Type: block.TypeDisk, Transport: "nvme-tcp", Model: "Linux"},
			identity: block.Identity{Scheme: "nguid", Value: "6d9a1e5c000040008000000000000001_1"},
		},
		{
			name: "SCSI with a WWN and a serial page", kernel: "sda",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:08.0/virtio4/host2/target2:0:0/2:0:0:0/block/sda", "8:0", gib, attributes{
					"device/vendor": "QEMU    ", "device/model": "QEMU HARDDISK   ", "device/rev": "2.5+", "device/wwid": "naa.5000c500aabbccdd",
					"device/vpd_pg80": "\x00\x80\x00\x06SCSI-A", "queue/rotational": "1",
				})
			},
			want:     block.Device{Transport: "virtio", Vendor: "QEMU", Model: "QEMU HARDDISK", Serial: "SCSI-A", WWN: "naa.5000c500aabbccdd", Rotational: true, FirmwareRevision: "2.5+"},
			identity: block.Identity{Scheme: "wwn", Value: "naa.5000c500aabbccdd_SCSI-A"},
		},
		{
			name: "SATA without a WWN", kernel: "sdb",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:1f.2/ata3/host3/target3:0:0/3:0:0:0/block/sdb", "8:16", gib, attributes{
					"device/vendor": "ATA", "device/model": "ACME SSD", "device/wwid": "t10.ATA     ACME SSD     XY1", "device/vpd_pg80": "\x00\x80\x00\x03XY1",
				})
			},
			want:     block.Device{Transport: "sata", Serial: "XY1"},
			identity: block.Identity{Scheme: "serial", Value: "ATA_ACME SSD_XY1"},
		},
		{
			name: "USB, whose serial is that of the USB device", kernel: "sdc",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host4/target4:0:0/4:0:0:0/block/sdc", "8:32", gib, attributes{"removable": "1", "device/model": "Stick"})
				f.file("sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/idVendor", "0781\n")
				f.file("sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/serial", "4C53\n")
			},
			want:     block.Device{Transport: "usb", Serial: "4C53", Removable: true},
			identity: block.Identity{Scheme: "serial", Value: "Stick_4C53"},
		},
		{
			name: "iSCSI", kernel: "sdd",
			build: func(f *tree) {
				f.device("/devices/platform/host5/session1/target5:0:0/5:0:0:0/block/sdd", "8:48", gib, attributes{"device/wwid": "naa.6001405aaaaaaaaa"})
			},
			want:     block.Device{Transport: "iscsi"},
			identity: block.Identity{Scheme: "wwn", Value: "naa.6001405aaaaaaaaa"},
		},
		{
			name: "a disk with a serial that udev alone knows", kernel: "sde",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:03:00.0/host6/port-6:0/end_device-6:0/target6:0:0/6:0:0:0/block/sde", "8:64", gib, nil)
				f.udev("8:64", "sde", "E:ID_SERIAL_SHORT=ONLY-UDEV", "E:ID_WWN_WITH_EXTENSION=0x5000000000000000")
			},
			want:     block.Device{Transport: "sas", Serial: "ONLY-UDEV"},
			identity: block.Identity{Scheme: "wwn", Value: "naa.5000000000000000_ONLY-UDEV"},
		},
		{
			name: "loop", kernel: "loop3",
			build: func(f *tree) {
				f.device("/devices/virtual/block/loop3", "7:3", gib, attributes{"loop/backing_file": "/var/disk.img", "loop/offset": "0"})
			},
			want:     block.Device{Type: block.TypeLoop, Transport: "loop", LoopBackingFile: "/var/disk.img", VirtualBlockDevice: true},
			identity: block.Identity{Scheme: "loop-file", Value: "/var/disk.img@0"},
		},
		{
			name: "logical volume", kernel: "dm-0",
			build: func(f *tree) {
				f.device("/devices/virtual/block/dm-0", "253:0", gib, attributes{"dm/name": "my--vg-data", "dm/uuid": "LVM-aaaa"})
			},
			want:     block.Device{Type: block.TypeLVM, DMName: "my--vg-data", DMUUID: "LVM-aaaa"},
			identity: block.Identity{Scheme: "dm-uuid", Value: "LVM-aaaa"},
		},
		{
			name: "md", kernel: "md127",
			build: func(f *tree) {
				f.device("/devices/virtual/block/md127", "9:127", gib, attributes{"md/level": "raid1"})
				f.udev("9:127", "md127", "E:MD_UUID=aa:bb:cc:dd")
			},
			want:     block.Device{Type: block.TypeMD},
			identity: block.Identity{Scheme: "md-uuid", Value: "aabbccdd"},
		},
		{
			name: "firmware that fills in nothing", kernel: "sdf",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:1f.2/ata4/host7/target7:0:0/7:0:0:0/block/sdf", "8:80", gib, attributes{
					"device/wwid": "naa.0000000000000000", "device/vpd_pg80": "\x00\x80\x00\x0800000000",
				})
				f.udev("8:80", "sdf", "S:disk/by-path/pci-0000:00:1f.2-ata-4")
			},
			want:     block.Device{Transport: "sata"},
			identity: block.Identity{Scheme: "by-path", Value: "pci-0000:00:1f.2-ata-4", Weak: true},
		},
		{
			name: "a serial with control characters", kernel: "vdg",
			build: func(f *tree) {
				f.device("/devices/pci0000:00/0000:00:09.0/virtio9/block/vdg", "254:96", gib, attributes{"serial": "A\x1b[31m\xffB"})
			},
			want:     block.Device{Serial: "A [31m B"},
			identity: block.Identity{Scheme: "serial", Value: "A [31m B"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newTree(t)
			c.build(f)
			d := f.read(c.kernel)
			if d.Err != nil {
				t.Fatal(d.Err)
			}
			compareFields(t, d, c.want)
			if got := block.Identify(&d); got != c.identity {
				t.Errorf("identity = %+v, want %+v", got, c.identity)
			}
		})
	}
}

func TestPartitionsAndLinks(t *testing.T) {
	t.Parallel()
	f := newTree(t)
	f.device("/devices/pci0000:00/0000:00:05.0/virtio2/block/vda", "254:0", 10*gib, attributes{"serial": "ROOT", "removable": "0"})
	f.partition("/devices/pci0000:00/0000:00:05.0/virtio2/block/vda/vda1", "254:1", 1, gib)
	f.partition("/devices/pci0000:00/0000:00:05.0/virtio2/block/vda/vda14", "254:14", 14, gib)
	f.udev("254:1", "vda1", "E:ID_PART_ENTRY_UUID=B6D1-1", "E:ID_FS_TYPE=ext4", "E:ID_FS_LABEL_ENC=root\\x20fs")
	f.udev("254:0", "vda", "S:disk/by-id/virtio-ROOT", "E:ID_PART_TABLE_TYPE=gpt")
	f.link("dev/disk/by-id/taken", "../../vdz")
	f.file("run/udev/data/b254:14", "S:disk/by-id/taken\n")

	disk, first, second := f.read("vda"), f.read("vda1"), f.read("vda14")
	if !slices.Equal(disk.Partitions, []string{"vda1", "vda14"}) {
		t.Errorf("partitions = %v", disk.Partitions)
	}
	if !slices.Equal(disk.Links, []string{"/dev/disk/by-id/virtio-ROOT"}) || disk.UdevContent.PartitionTable != "gpt" {
		t.Errorf("disk = %+v", disk)
	}
	if first.Type != block.TypePartition || first.Parent != "vda" || first.PartitionNumber != 1 || first.LogicalBlockSizeBytes != 512 || first.DiskSeq != 9 {
		t.Errorf("partition = %+v", first)
	}
	if first.UdevContent.FSLabel != "root fs" {
		t.Errorf("label = %q", first.UdevContent.FSLabel)
	}
	if got := block.IdentifyPartition(&first, &disk); got != (block.Identity{Scheme: "partuuid", Value: "b6d1-1"}) {
		t.Errorf("identity = %+v", got)
	}
	if got := block.IdentifyPartition(&second, &disk); got != (block.Identity{Scheme: "serial", Value: "ROOT-part14"}) {
		t.Errorf("identity = %+v", got)
	}
	if len(second.Links) != 0 {
		t.Errorf("a link that leads to another device was kept: %v", second.Links)
	}
}

// A disk that takes the name and the number of one that was pulled out is not taken for that
// one as long as udev's record still is of it.
func TestRecordOfTheDiskBefore(t *testing.T) {
	t.Parallel()
	const path = "/devices/pci0000:00/0000:00:03.0/virtio1/block/vdb"
	record := []string{"S:disk/by-id/virtio-OLD", "S:disk/by-diskseq/9", "E:ID_SERIAL_SHORT=OLD", "E:ID_FS_TYPE=ext4"}
	for name, tt := range map[string]struct {
		diskSeq string
		stale   bool
	}{
		"of the disk": {diskSeq: "9"}, "of the one before": {diskSeq: "10", stale: true}, "of an old kernel": {diskSeq: ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTree(t)
			f.device(path, "254:16", 1<<30, attributes{"diskseq": tt.diskSeq})
			f.partition(path+"/vdb1", "254:17", 1, 1<<20)
			f.udev("254:16", "vdb", record...)
			f.udev("254:17", "vdb1", "S:disk/by-diskseq/9-part1", "E:ID_PART_ENTRY_UUID=old")
			d, part := f.read("vdb"), f.read("vdb1")
			if stale := d.Serial != "OLD"; stale != tt.stale || d.UdevInitialized == tt.stale || (len(d.Links) == 0) != tt.stale || (d.UdevContent.FSType == "") != tt.stale {
				t.Errorf("%+v", d)
			}
			if (part.PartitionUUID != "old") != tt.stale {
				t.Errorf("%+v", part)
			}
		})
	}
}

func TestDevicesIsCompleteOrAnError(t *testing.T) {
	t.Parallel()
	f := newTree(t)
	f.device("/devices/pci0000:00/virtio1/block/vda", "254:0", gib, nil)
	f.device("/devices/pci0000:00/virtio2/block/vdb", "254:16", gib, attributes{"size": "rubbish"})
	f.device("/devices/pci0000:00/virtio3/block/vdc", "254:32", gib, nil)
	devices, err := f.sysfs().Devices(t.Context())
	if err != nil || len(devices) != 3 {
		t.Fatalf("%d devices, %v", len(devices), err)
	}
	if devices[0].Err != nil || devices[1].Err == nil || devices[2].Err != nil {
		t.Errorf("errors: %v, %v, %v", devices[0].Err, devices[1].Err, devices[2].Err)
	}
	if _, err := f.sysfs().Device(t.Context(), "vdz"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a device that is not there: %v, want ErrNotFound", err)
	}
	if err := os.RemoveAll(filepath.Join(f.root, "sys/class")); err != nil {
		t.Fatal(err)
	}
	if devices, err := f.sysfs().Devices(t.Context()); err == nil {
		t.Errorf("no class directory: %v, want an error", devices)
	}
	for _, name := range []string{"", "..", "../block", "a/b"} {
		if _, err := f.sysfs().Device(t.Context(), name); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("Device(%q): %v, want ErrInvalid", name, err)
		}
	}
}

// TestDevicesOfThisMachine reads the real sysfs: no attribute of it may be
// unreadable to us.
func TestDevicesOfThisMachine(t *testing.T) {
	t.Parallel()
	devices, err := block.Sysfs{}.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(devices) == 0 {
		t.Skip("this machine has no block device")
	}
	for _, d := range devices {
		if d.Err != nil {
			t.Errorf("%s: %v", d.KernelName, d.Err)
		}
	}
}

func compareFields(t *testing.T, got, want block.Device) {
	t.Helper()
	check := func(field string, got, want any, unset bool) {
		if !unset && got != want {
			t.Errorf("%s = %v, want %v", field, got, want)
		}
	}
	check("Type", got.Type, want.Type, want.Type == "")
	check("Path", got.Path, want.Path, want.Path == "")
	check("Transport", got.Transport, want.Transport, want.Transport == "")
	check("Vendor", got.Vendor, want.Vendor, want.Vendor == "")
	check("Model", got.Model, want.Model, want.Model == "")
	check("Serial", got.Serial, want.Serial, want.Serial == "")
	check("WWN", got.WWN, want.WWN, want.WWN == "")
	check("FirmwareRevision", got.FirmwareRevision, want.FirmwareRevision, want.FirmwareRevision == "")
	check("SizeBytes", got.SizeBytes, want.SizeBytes, want.SizeBytes == 0)
	check("DiskSeq", got.DiskSeq, want.DiskSeq, want.DiskSeq == 0)
	check("Removable", got.Removable, want.Removable, !want.Removable)
	check("Rotational", got.Rotational, want.Rotational, !want.Rotational)
	check("UdevInitialized", got.UdevInitialized, want.UdevInitialized, !want.UdevInitialized)
	check("NamespaceID", got.NamespaceID, want.NamespaceID, want.NamespaceID == "")
	check("DMName", got.DMName, want.DMName, want.DMName == "")
	check("DMUUID", got.DMUUID, want.DMUUID, want.DMUUID == "")
	check("LoopBackingFile", got.LoopBackingFile, want.LoopBackingFile, want.LoopBackingFile == "")
	check("VirtualBlockDevice", got.VirtualBlockDevice, want.VirtualBlockDevice, !want.VirtualBlockDevice)
}
