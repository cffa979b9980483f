// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import "encoding/binary"

// arrays are members of RAID arrays, of the kernel's and of firmware's.
func arrays() []Sample {
	return []Sample{
		{Name: "md 0.90, at the end", Type: "linux_raid_member", write: bytesAt(md090())},
		{Name: "md 1.0, at the end", Type: "linux_raid_member", write: bytesAt(md1((SizeBytes/512 - 16) &^ 7))},
		{Name: "md 1.1", Type: "linux_raid_member", write: bytesAt(md1(0))},
		{Name: "md 1.2", Type: "linux_raid_member", write: bytesAt(md1(8))},
		{Name: "DDF RAID, at the end", Type: "ddf_raid_member", write: bytesAt(ddf()...)},
		{Name: "IMSM RAID, at the end", Type: "isw_raid_member", write: bytesAt(newRecord(512).text(0, "Intel Raid ISM Cfg Sig. 1.3.00").le32(36, 480).at(-1024))},
	}
}

// md090 is mdp_super_t in the last 64 KiB that begin at a multiple of it
// (include/uapi/linux/raid/md_p.h).
func md090() piece {
	const reserved = 64 << 10
	r := newRecord(4096).le32(0, 0xa92b4efc).le32(8, 90).le32(20, 0x11223344).le32(28, 1).le32(32, SizeBytes/1024-64).
		le32(36, 2).le32(40, 2).le32(52, 0x55667788).le32(56, 0x99aabbcc).le32(60, 0xddeeff00)
	// The sum of all words, without itself.
	return r.le32(152, sumOfWords(r)).at(SizeBytes&^(reserved-1) - reserved)
}

// md1 is struct mdp_superblock_1, which says itself at which sector it is.
func md1(sector int64) piece {
	r := newRecord(256).le32(0, 0xa92b4efc).le32(4, 1).uuid(16).text(32, "somebody:data").le32(72, 1).
		le64(80, SizeBytes/512-4096).le32(92, 2).le64(128, 2048).le64(136, SizeBytes/512-4096).le64(144, uint64(sector)).uuid(168)
	return r.le32(216, sumOfWords(r)).at(sector * 512)
}

// sumOfWords is the checksum of both formats of md (calc_sb_csum and calc_sb_1_csum in
// drivers/md/md.c).
func sumOfWords(r record) uint32 {
	var sum uint64
	for i := 0; i+4 <= len(r); i += 4 {
		sum += uint64(binary.LittleEndian.Uint32(r[i:]))
	}
	return uint32(sum) + uint32(sum>>32)
}

// ddf is the anchor in the last sector and the header that it points to (SNIA Common
// RAID Disk Data Format 2.0, section 5.5).
func ddf() []piece {
	const sector, primary = 512, SizeBytes/512 - 64
	header := func() record {
		return newRecord(sector).be32(0, 0xde11de11).text(8, "LSI     ").text(32, "01.02.00").be64(96, primary).be64(104, ^uint64(0))
	}
	return []piece{header().at(-sector), header().at(primary * sector)}
}
