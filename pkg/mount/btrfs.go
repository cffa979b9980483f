// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// The layout of the btrfs superblock: struct btrfs_super_block in the kernel's
// include/uapi/linux/btrfs_tree.h. All fields are little-endian. Its copies, at 64 MiB
// and 256 GiB, are not looked at: the kernel mounts by the first.
const (
	btrfsSuperOffset = 64 << 10
	btrfsSuperBytes  = 4096
	btrfsSumBytes    = 32

	btrfsMagic = "_BHRfS_M"
	// btrfsUnfinished is what mkfs.btrfs writes until all the rest is on the disk
	// (btrfs-progs, kernel-shared/ctree.h: BTRFS_MAGIC_TEMPORARY).
	btrfsUnfinished = "!BHRfS_M"

	btrfsLabelBytes = 256
)

// readBtrfs reports whether a device has a btrfs superblock, and what it says.
func readBtrfs(r io.ReaderAt) (s Superblock, found bool, err error) {
	b := make([]byte, btrfsSuperBytes)
	switch _, err := io.ReadFull(io.NewSectionReader(r, btrfsSuperOffset, btrfsSuperBytes), b); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Superblock{}, false, nil
	case err != nil:
		return Superblock{}, false, fmt.Errorf("read the superblock: %w", err)
	}
	return parseBtrfs(b)
}

func parseBtrfs(b []byte) (s Superblock, found bool, err error) {
	magic := string(b[0x40:0x48])
	if magic != btrfsMagic && magic != btrfsUnfinished {
		return Superblock{}, false, nil
	}
	le32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	le64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	s = Superblock{FSType: Btrfs, UUID: formatUUID(b[0x20:0x30])}
	sum, err := btrfsSum(binary.LittleEndian.Uint16(b[0xC4:]), b[btrfsSumBytes:])
	if err != nil {
		return s, true, err
	}
	if !bytes.Equal(sum, b[:len(sum)]) {
		return s, true, fmt.Errorf("%w: checksum of the btrfs superblock is %x, should be %x", ErrDamaged, b[:len(sum)], sum)
	}
	if at := le64(0x30); at != btrfsSuperOffset {
		return s, true, fmt.Errorf("%w: the btrfs superblock says that it lies at %d", ErrDamaged, at)
	}
	if devices := le64(0x88); devices != 1 {
		return s, true, fmt.Errorf("%w: it is one of %d devices of a btrfs; only a btrfs of one device can be a volume", ErrDamaged, devices)
	}
	sector, total := le32(0x90), le64(0x70)
	if sector < 4096 || sector > 64<<10 || bits.OnesCount32(sector) != 1 {
		return s, true, fmt.Errorf("%w: btrfs superblock with sectors of %d bytes", ErrDamaged, sector)
	}
	if total < uint64(sector) || total > 1<<58 {
		return s, true, fmt.Errorf("%w: btrfs superblock with a size of %d bytes", ErrDamaged, total)
	}
	label, _, _ := bytes.Cut(b[0x12B:0x12B+btrfsLabelBytes], []byte{0})
	s.Label = string(label)
	s.BlockSizeBytes = int64(sector)
	s.Blocks = int64(total / uint64(sector))
	s.Complete = magic == btrfsMagic
	s.NeedsRecovery = le64(0x60) != 0 // the log tree of what was fsynced last
	return s, true, nil
}

// btrfsSum computes the checksum of a superblock (fs/btrfs/super.c,
// btrfs_check_super_csum; the kinds: enum btrfs_csum_type).
func btrfsSum(kind uint16, data []byte) ([]byte, error) {
	switch kind {
	case 0:
		return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli)), nil
	case 1:
		return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(data)), nil
	case 2:
		sum := sha256.Sum256(data)
		return sum[:], nil
	}
	return nil, fmt.Errorf("%w: btrfs superblock with checksum of kind %d; crc32c, xxhash and sha256 can be read", ErrDamaged, kind)
}
