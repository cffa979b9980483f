// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// The layout of the xfs superblock: struct xfs_dsb in fs/xfs/libxfs/xfs_format.h.
// All fields are big-endian but the checksum.
const (
	xfsMagic         = "XFSB"
	xfsMinSuperBytes = 512
	xfsCRCOffset     = 224
	xfsVersionMask   = 0xF
)

// parseXFS reports whether the area has an xfs superblock, and what it says.
func parseXFS(area []byte) (s Superblock, found bool, err error) {
	if len(area) < xfsMinSuperBytes || string(area[:4]) != xfsMagic {
		return Superblock{}, false, nil
	}
	be16 := func(at int) uint16 { return binary.BigEndian.Uint16(area[at:]) }
	be32 := func(at int) uint32 { return binary.BigEndian.Uint32(area[at:]) }
	s = Superblock{FSType: XFS, UUID: formatUUID(area[32:48])}
	sector := int(be16(102))
	if sector < xfsMinSuperBytes || sector > len(area) || bits.OnesCount(uint(sector)) != 1 {
		return s, true, fmt.Errorf("%w: xfs superblock with sectors of %d bytes", ErrDamaged, sector)
	}
	switch version := be16(100) & xfsVersionMask; version {
	case 4:
	case 5:
		// The checksum covers the sector with its own field as zero.
		sum := crc32.Update(0, castagnoli, area[:xfsCRCOffset])
		sum = crc32.Update(sum, castagnoli, make([]byte, 4))
		sum = crc32.Update(sum, castagnoli, area[xfsCRCOffset+4:sector])
		if want := binary.LittleEndian.Uint32(area[xfsCRCOffset:]); want != sum {
			return s, true, fmt.Errorf("%w: checksum of the xfs superblock is %08x, should be %08x", ErrDamaged, want, sum)
		}
	default:
		return s, true, fmt.Errorf("%w: xfs superblock of version %d", ErrDamaged, version)
	}
	block := be32(4)
	if block < 512 || block > 64<<10 || bits.OnesCount32(block) != 1 {
		return s, true, fmt.Errorf("%w: xfs superblock with blocks of %d bytes", ErrDamaged, block)
	}
	blocks := binary.BigEndian.Uint64(area[8:])
	if blocks == 0 || blocks > 1<<46 {
		return s, true, fmt.Errorf("%w: xfs superblock with %d blocks", ErrDamaged, blocks)
	}
	s.Label = string(bytes.TrimRight(area[108:120], "\x00"))
	s.BlockSizeBytes = int64(block)
	s.Blocks = int64(blocks)
	s.Complete = area[126] == 0
	return s, true, nil
}
