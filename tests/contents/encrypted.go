// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import "crypto/sha256"

const someUUID = "0e5b4d1a-8a9e-4c0e-9c4e-5a6b7c8d9e0f"

// encrypted are volumes that look like noise behind their header, and one that only
// keeps checksums.
func encrypted() []Sample {
	return []Sample{
		{Name: "LUKS1", Type: "crypto_LUKS", write: bytesAt(luks1())},
		{Name: "LUKS2", Type: "crypto_LUKS", write: bytesAt(luks2(0), luks2(luksHeaderBytes))},
		{Name: "LUKS2, its second header only", Type: "crypto_LUKS", write: bytesAt(luks2(luksHeaderBytes))},
		{Name: "BitLocker", Type: "BitLocker", write: bytesAt(bitLocker()...)},
		{Name: "dm-integrity", Type: "DM_integrity", write: bytesAt(newRecord(512).text(0, "integrt\x00").u8(8, 5).u8(9, 15).le16(10, 4).le64(16, SizeBytes/512-2048).at(0))},
	}
}

// luks1 is struct luks_phdr (LUKS1 On-Disk Format Specification 1.2.3, figure 1).
func luks1() piece {
	return newRecord(592).text(0, "LUKS\xba\xbe").be16(6, 1).text(8, "aes").text(40, "xts-plain64").text(72, "sha256").
		be32(104, 4096).be32(108, 64).uuid(112).be32(164, 100000).text(168, someUUID).at(0)
}

const luksHeaderBytes = 16 << 10

// luks2 is the binary header and its JSON area (LUKS2 On-Disk Format Specification
// 1.1.1, section 2.1).
func luks2(offset int64) piece {
	magic := "LUKS\xba\xbe"
	if offset > 0 {
		magic = "SKUL\xba\xbe"
	}
	r := newRecord(luksHeaderBytes).text(0, magic).be16(6, 2).be64(8, luksHeaderBytes).be64(16, 3).text(72, "sha256").
		uuid(104).text(168, someUUID).be64(256, uint64(offset)).text(4096, `{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{"json_size":"12288","keyslots_size":"16744448"}}`)
	sum := sha256.Sum256(r)
	return r.raw(448, sum[:]...).at(offset)
}

// bitLocker is the boot sector since Windows 7 and the first block of metadata (libbde,
// documentation of the BitLocker Drive Encryption format, sections 3 and 4).
func bitLocker() []piece {
	const metadata = 1 << 20
	boot := newRecord(512).raw(0, 0xeb, 0x58, 0x90).text(3, "-FVE-FS-").le16(11, 512).u8(13, 8).
		raw(160, 0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01).
		le64(176, metadata).le64(184, 2*metadata).le64(192, 3*metadata).le16(510, bootSignature)
	block := newRecord(512).text(0, "-FVE-FS-").le16(8, 512).le16(10, 2)
	return []piece{boot.at(0), block.at(metadata)}
}
