// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"encoding/binary"
	"hash/crc32"
)

const bootSignature = 0xaa55

func filesystems() []Sample {
	return []Sample{
		{Name: "ext2", Type: "ext2", write: tool("mkfs.ext2", "-q", "-F")},
		{Name: "ext3", Type: "ext3", write: tool("mkfs.ext3", "-q", "-F")},
		{Name: "ext4", Type: "ext4", write: tool("mkfs.ext4", "-q", "-F")},
		{Name: "xfs", Type: "xfs", write: tool("mkfs.xfs", "-q", "-f")},
		{Name: "vfat", Type: "vfat", write: tool("mkfs.vfat", "-I")},
		{Name: "btrfs", Type: "btrfs", write: bytesAt(btrfs())},
		{Name: "f2fs", Type: "f2fs", write: bytesAt(f2fs())},
		{Name: "exfat", Type: "exfat", write: bytesAt(exfat())},
		{Name: "ntfs", Type: "ntfs", write: bytesAt(ntfs()...)},
		{Name: "iso9660", Type: "iso9660", write: bytesAt(iso9660()...)},
		{Name: "squashfs", Type: "squashfs", write: bytesAt(squashfs())},
		{Name: "erofs", Type: "erofs", write: bytesAt(erofs())},
		{Name: "nilfs2", Type: "nilfs2", write: bytesAt(nilfs2(nilfsFirst))},
		{Name: "nilfs2, its second superblock only", Type: "nilfs2", write: bytesAt(nilfs2(nilfsSecond))},
		{Name: "gfs2", Type: "gfs2", write: bytesAt(gfs2())},
		{Name: "ocfs2", Type: "ocfs2", write: bytesAt(ocfs2())},
		{Name: "jfs", Type: "jfs", write: bytesAt(jfs())},
		{Name: "apfs", Type: "apfs", write: bytesAt(apfs())},
	}
}

// btrfs is struct btrfs_super_block at 64 KiB (include/uapi/linux/btrfs_tree.h).
func btrfs() piece {
	const at, blockBytes = 64 << 10, 16 << 10
	r := newRecord(4096).uuid(32).le64(48, at).text(64, "_BHRfS_M").le64(72, 5).
		le64(112, SizeBytes).le64(136, 1).le32(144, 4096).le32(148, blockBytes).le32(152, blockBytes).le32(156, 4096)
	sum := crc32.Checksum(r[32:], crc32.MakeTable(crc32.Castagnoli))
	return r.le32(0, sum).at(at)
}

// f2fs is struct f2fs_super_block at 1 KiB (include/linux/f2fs_fs.h).
func f2fs() piece {
	return newRecord(3072).le32(0, 0xf2f52010).le16(4, 1).le16(6, 16).
		le32(8, 9).le32(12, 3).le32(16, 12).le32(20, 9).uuid(108).at(1024)
}

// exfat is the main boot region: eleven sectors and their checksum (exFAT file system
// specification, section 3).
func exfat() piece {
	const sector = 512
	r := newRecord(12*sector).raw(0, 0xeb, 0x76, 0x90).text(3, "EXFAT   ").
		le64(72, SizeBytes/sector).le32(80, 128).le32(84, 128).le32(88, 256).le32(92, 16000).le32(96, 4).
		le32(100, 0x12345678).le16(104, 0x0100).u8(108, 9).u8(109, 3).u8(110, 1).le16(510, bootSignature)
	for s := 1; s <= 8; s++ {
		r.le32(s*sector+sector-4, 0xaa550000)
	}
	var sum uint32
	for i, b := range r[:11*sector] {
		if i == 106 || i == 107 || i == 112 {
			continue // flags and percentage change without a new checksum
		}
		sum = sum<<31 | sum>>1
		sum += uint32(b)
	}
	for i := 11 * sector; i < 12*sector; i += 4 {
		r.le32(i, sum)
	}
	return r.at(0)
}

// ntfs is the boot sector and the records of the master file table that libblkid looks
// at: its own and that of the volume (fs/ntfs3/ntfs.h).
func ntfs() []piece {
	const sector, cluster, tableCluster, recordBytes = 512, 4096, 4, 1024
	boot := newRecord(sector).raw(0, 0xeb, 0x52, 0x90).text(3, "NTFS    ").le16(11, sector).u8(13, cluster/sector).
		u8(21, 0xf8).le64(40, SizeBytes/sector-1).le64(48, tableCluster).le64(56, 2).u8(64, 0xf6).u8(68, 1).
		le64(72, 0x1122334455667788).le16(510, bootSignature)
	pieces := []piece{boot.at(0)}
	for i := range int64(4) {
		entry := newRecord(recordBytes).text(0, "FILE").le16(20, 56).le32(24, 64).le32(28, recordBytes).le32(56, 0xffffffff)
		pieces = append(pieces, entry.at(tableCluster*cluster+i*recordBytes))
	}
	return pieces
}

// iso9660 is the primary volume descriptor and the terminator (ECMA-119, section 8).
func iso9660() []piece {
	const sector = 2048
	return []piece{
		newRecord(sector).u8(0, 1).text(1, "CD001").u8(6, 1).text(8, "LINUX").text(40, "SOMEBODYS BACKUP                ").at(16 * sector),
		newRecord(sector).u8(0, 255).text(1, "CD001").u8(6, 1).at(17 * sector),
	}
}

// squashfs is struct squashfs_super_block (fs/squashfs/squashfs_fs.h).
func squashfs() piece {
	return newRecord(96).text(0, "hsqs").le32(4, 1).le32(12, 128<<10).le16(20, 1).le16(22, 17).le16(28, 4).
		le64(40, 4096).at(0)
}

// erofs is struct erofs_super_block at 1 KiB (fs/erofs/erofs_fs.h).
func erofs() piece {
	return newRecord(128).le32(0, 0xe0f5e1e2).u8(12, 12).le64(16, 1).le32(36, SizeBytes/4096).uuid(48).at(1024)
}

const (
	nilfsFirst  = 1024
	nilfsSecond = -4096
)

// nilfs2 is struct nilfs_super_block, of which there is a second one in the last whole
// block (include/uapi/linux/nilfs2_ondisk.h).
func nilfs2(at int64) piece {
	const recordBytes, seed = 280, 0x76543210
	r := newRecord(1024).le32(0, 2).le16(6, 0x3434).le16(8, recordBytes).le32(12, seed).le32(20, 2).
		le64(24, 4).le64(32, SizeBytes).le64(40, 1).le32(48, 2048).uuid(152)
	// The kernel's crc32_le does not invert at either end.
	return r.le32(16, ^crc32.Update(^uint32(seed), crc32.IEEETable, r[:recordBytes])).at(at)
}

// gfs2 is struct gfs2_sb at 64 KiB (include/uapi/linux/gfs2_ondisk.h).
func gfs2() piece {
	return newRecord(512).be32(0, 0x01161970).be32(4, 1).be32(16, 100).be32(24, 1801).be32(28, 1900).
		be32(36, 4096).be32(40, 12).text(96, "lock_dlm").text(160, "cluster:data").at(64 << 10)
}

// ocfs2 is the superblock's inode in the third block (fs/ocfs2/ocfs2_fs.h).
func ocfs2() piece {
	const block = 4096
	return newRecord(block).text(0, "OCFSV2").le16(192, 0).le16(194, 90).le32(248, 12).le32(252, 20).at(2 * block)
}

// jfs is struct jfs_superblock at 32 KiB (fs/jfs/jfs_superblock.h).
func jfs() piece {
	return newRecord(512).text(0, "JFS1").le32(4, 1).le64(8, SizeBytes/512).le32(16, 4096).le16(20, 12).le16(22, 3).
		le32(24, 512).le16(28, 9).uuid(136).at(32 << 10)
}

// apfs is the container's superblock with its Fletcher checksum (Apple File System
// Reference, nx_superblock_t).
func apfs() piece {
	r := newRecord(4096).le64(8, 1).le64(16, 1).le16(24, 1).text(32, "NXSB").le32(36, 4096).le64(40, SizeBytes/4096).uuid(72)
	const modulus = 0xffffffff
	var low, high uint64
	for i := 8; i < len(r); i += 4 {
		low = (low + uint64(binary.LittleEndian.Uint32(r[i:]))) % modulus
		high = (high + low) % modulus
	}
	first := modulus - (low+high)%modulus
	second := modulus - (low+first)%modulus
	return r.le64(0, second<<32|first).at(0)
}
