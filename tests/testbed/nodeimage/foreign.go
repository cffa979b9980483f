// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeimage

import "strings"

// ForeignDisk is a disk with somebody else's data. It is made once, by the
// tools and the kernel that a real owner would use, and every node gets a copy.
type ForeignDisk struct {
	// Name says what is on it; the serial is FOREIGN-NAME-Nn on node n.
	Name      string
	SizeBytes int64
	// script makes it, as root in a guest, with DISK set to its device.
	script string
}

// ForeignSerialPrefix begins the serial of every foreign disk.
const ForeignSerialPrefix = "FOREIGN-"

// Serial is the disk's serial number on the node that suffix names.
func (d ForeignDisk) Serial(suffix string) string {
	serial := ForeignSerialPrefix + d.Name
	if suffix != "" {
		serial += "-" + suffix
	}
	return serial
}

// Image is the name of the disk's image.
func (d ForeignDisk) Image() string { return "foreign-" + strings.ToLower(d.Name) + ".img" }

// makeFilesystem is a shell function: it makes an ext4 filesystem on a device
// and files in it. Nothing is left for the kernel to initialize later.
const makeFilesystem = `
make_filesystem() {
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 -L "$2" "$1"
    mkdir -p /mnt
    mount "$1" /mnt
    mkdir /mnt/ledger
    for year in 2023 2024 2025; do seq -f "$2 $year booking %g" 20000 > "/mnt/ledger/$year.txt"; done
    head -c 4194304 /dev/urandom > /mnt/photo.raw
    ( cd /mnt && sha256sum ledger/*.txt photo.raw > SHA256SUMS )
    umount /mnt
}
`

// ForeignDisks are the foreign disks of every node.
var ForeignDisks = []ForeignDisk{
	{Name: "EXT4", SizeBytes: 128 << 20, script: `make_filesystem "$DISK" customer-fs`},
	{Name: "GPT", SizeBytes: 128 << 20, script: `
sgdisk --new=1:0:+64M --typecode=1:8300 --change-name=1:customer-data --new=2:0:0 --typecode=2:8300 --change-name=2:customer-spare "$DISK"
# When somebody closes a disk after writing to it, udev reads its partition table again, and
# the partitions are gone for that moment.
udevadm settle --timeout=120
udevadm wait --timeout=120 --settle "$DISK-part1"
make_filesystem "$DISK-part1" customer-part`},
	{Name: "LVM", SizeBytes: 192 << 20, script: `
vgcreate customer "$DISK"
lvcreate --yes --wipesignatures y --size 96M --name data customer
udevadm wait --timeout=120 /dev/customer/data
make_filesystem /dev/customer/data customer-lv
vgchange --activate n customer`},
	{Name: "MD", SizeBytes: 96 << 20, script: `
mdadm --create /dev/md/customer --run --level=1 --raid-devices=2 --metadata=1.2 --bitmap=none --homehost=customer --assume-clean "$DISK" missing
udevadm wait --timeout=120 /dev/md/customer
make_filesystem /dev/md/customer customer-md
mdadm --stop /dev/md/customer`},
	{Name: "SWAP", SizeBytes: 64 << 20, script: `mkswap --label customer-swap "$DISK"`},
}
