// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// The layout of the ext4 superblock, from the kernel's
// Documentation/filesystems/ext4/super.rst. All fields are little-endian.
const (
	extSuperOffset = 1024
	extSuperBytes  = 1024

	extMagic        = 0xEF53
	extStateValid   = 0x1 // cleanly unmounted, or journalled
	extStateErrors  = 0x2 // the kernel found errors
	extCompatJour   = 0x4
	extIncompRecov  = 0x4
	extIncompJDev   = 0x8 // an external journal, not a filesystem
	extIncompExtent = 0x40
	extIncomp64Bit  = 0x80
	extROMetaCsum   = 0x400
	extCsumCRC32C   = 1
	extMaxLogBlock  = 6 // 64 KiB
)

// parseExt reports whether the area has an ext superblock, and what it says.
func parseExt(area []byte) (s Superblock, found bool, err error) {
	if len(area) < extSuperOffset+extSuperBytes {
		return Superblock{}, false, nil
	}
	b := area[extSuperOffset : extSuperOffset+extSuperBytes]
	le16 := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	le32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if le16(0x38) != extMagic {
		return Superblock{}, false, nil
	}
	state, compat, incompat, roCompat := le16(0x3A), le32(0x5C), le32(0x60), le32(0x64)
	s = Superblock{FSType: extType(compat, incompat, roCompat), UUID: formatUUID(b[0x68:0x78])}
	if incompat&extIncompJDev != 0 {
		return s, true, fmt.Errorf("%w: it is the external journal of an ext filesystem", ErrDamaged)
	}
	if roCompat&extROMetaCsum != 0 {
		if kind := b[0x175]; kind != extCsumCRC32C {
			return s, true, fmt.Errorf("%w: ext4 superblock with checksum of unknown kind %d", ErrDamaged, kind)
		}
		// The kernel's crc32c leaves out the final inversion that Go's makes.
		if want, got := le32(0x3FC), ^crc32.Checksum(b[:0x3FC], castagnoli); want != got {
			return s, true, fmt.Errorf("%w: checksum of the ext4 superblock is %08x, should be %08x", ErrDamaged, want, got)
		}
	}
	logBlock := le32(0x18)
	if logBlock > extMaxLogBlock {
		return s, true, fmt.Errorf("%w: ext4 superblock with block size 2^(10+%d)", ErrDamaged, logBlock)
	}
	blocks := uint64(le32(0x4))
	if incompat&extIncomp64Bit != 0 {
		blocks |= uint64(le32(0x150)) << 32
	}
	if blocks == 0 || blocks > 1<<46 {
		return s, true, fmt.Errorf("%w: ext4 superblock with %d blocks", ErrDamaged, blocks)
	}
	s.Made, s.Written = extTime(le32(0x108)), extTime(le32(0x30))
	s.Label = string(bytes.TrimRight(b[0x78:0x88], "\x00"))
	s.BlockSizeBytes = 1024 << logBlock
	s.Blocks = int64(blocks)
	s.Complete = true
	s.NeedsRecovery = incompat&extIncompRecov != 0
	s.HasErrors = state&extStateErrors != 0 || state&extStateValid == 0
	return s, true, nil
}

// extTime is a time of the superblock, in seconds since 1970; 0 was never set.
func extTime(seconds uint32) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// extType tells the three generations apart by their features.
func extType(compat, incompat, roCompat uint32) string {
	switch {
	case incompat&(extIncompExtent|extIncomp64Bit) != 0 || roCompat&extROMetaCsum != 0:
		return Ext4
	case compat&extCompatJour != 0:
		return "ext3"
	}
	return "ext2"
}
