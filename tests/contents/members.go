// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import "hash/crc32"

// members are parts of something larger that is not made by the kernel's md.
func members() []Sample {
	return []Sample{
		{Name: "swap", Type: "swap", write: tool("mkswap")},
		{Name: "LVM2", Type: "LVM2_member", write: bytesAt(lvm2())},
		{Name: "ZFS", Type: "zfs_member", write: bytesAt(zfs(0, 256<<10, -512<<10, -256<<10)...)},
		{Name: "ZFS, its labels at the end only", Type: "zfs_member", write: bytesAt(zfs(-512<<10, -256<<10)...)},
		{Name: "Ceph bluestore", Type: "ceph_bluestore", write: bytesAt(newRecord(4096).text(0, "bluestore block device\n5c1c6d5e-6d3e-4a36-8d6c-1f0f1f6f2c11\n").at(0))},
		{Name: "DRBD", Type: "drbd", write: bytesAt(drbd())},
		{Name: "bcache", Type: "bcache", write: bytesAt(bcache())},
		{Name: "VDO", Type: "vdo", write: bytesAt(newRecord(4096).text(0, "dmvdo001").le32(8, 5).uuid(32).at(0))},
	}
}

// lvm2 is the label of a physical volume without a volume group (lvm2,
// lib/label/label.h and lib/format_text/layout.h).
func lvm2() piece {
	const sector, seed = 512, 0xf597a6cf
	r := newRecord(sector).text(0, "LABELONE").le64(8, 1).le32(20, 32).text(24, "LVM2 001").
		text(32, "abcdefghijklmnopqrstuvwxyz012345").le64(64, SizeBytes).le64(72, 1<<20).le64(104, 4096).le64(112, 1<<20-4096)
	return r.le32(16, ^crc32.Update(^uint32(seed), crc32.IEEETable, r[20:])).at(sector)
}

// zfs is the ring of uberblocks in each of the labels (OpenZFS,
// include/sys/uberblock_impl.h and vdev_impl.h).
func zfs(labels ...int64) []piece {
	const ring, step, uberblocks = 128 << 10, 1 << 10, 8
	var pieces []piece
	for _, label := range labels {
		r := newRecord(uberblocks * step)
		for i := range uberblocks {
			r.le64(i*step, 0x00bab10c).le64(i*step+8, 5000).le64(i*step+16, uint64(100+i)).le64(i*step+24, 0x1234).le64(i*step+32, 1700000000)
		}
		pieces = append(pieces, r.at(label+ring))
	}
	return pieces
}

// drbd is struct md_on_disk_08 with internal metadata: in the last 4 KiB (DRBD 8.4,
// drbd_main.c).
func drbd() piece {
	return newRecord(4096).be64(0, SizeBytes/512-128).be64(8, 0xabcdef0123456789).be64(40, 0x1122334455667788).
		be32(60, 0x8374026b).be32(64, 64).be32(68, 1237).be32(72, ^uint32(7)).at(-4096)
}

// bcache is struct cache_sb of a backing device (include/uapi/linux/bcache.h before
// Linux 5.18, drivers/md/bcache/bcache_ondisk.h since).
func bcache() piece {
	const header, fields = 4096, 208
	r := newRecord(4096).le64(8, 8).le64(16, 1).
		raw(24, 0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81).
		uuid(40).le64(184, 16).le16(192, 1).le16(194, 1024)
	return r.le64(0, crc64(r[8:fields])).at(header)
}

// crc64 is the kernel's crc64_be between two inversions (drivers/md/bcache/util.h).
func crc64(data []byte) uint64 {
	const polynomial = 0x42f0e1eba9ea3693
	crc := ^uint64(0)
	for _, b := range data {
		crc ^= uint64(b) << 56
		for range 8 {
			carry := crc >> 63
			crc = crc<<1 ^ carry*polynomial
		}
	}
	return ^crc
}
