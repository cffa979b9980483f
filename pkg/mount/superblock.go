// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

var (
	// ErrNoFilesystem: the device was read, and no superblock of ext2, ext3, ext4, xfs
	// or btrfs is on it. It may hold anything else: this is never a proof of emptiness.
	ErrNoFilesystem = errors.New("no ext4, xfs or btrfs superblock")
	// ErrDamaged: the filesystem is there and cannot be used before a person has
	// looked at it.
	ErrDamaged = errors.New("filesystem is damaged")
)

// Superblock is what the primary superblock of a filesystem says.
type Superblock struct {
	// FSType is ext2, ext3, ext4, xfs or btrfs.
	FSType string
	// UUID in lower case with dashes.
	UUID string
	// Label may be empty.
	Label string
	// Made is when mkfs made it, and Written when the kernel wrote the superblock last, which it
	// does when it mounts and unmounts. Zero where the superblock does not tell: only those of
	// ext2, ext3 and ext4 do, by the time of day that the node believed it was.
	Made, Written time.Time
	// BlockSizeBytes and Blocks give the filesystem's size.
	BlockSizeBytes int64
	Blocks         int64
	// Complete is false while mkfs has not finished: xfs keeps a flag for it, btrfs
	// another magic number, and mkfs.ext4 writes the primary superblock last.
	Complete bool
	// NeedsRecovery is true when the journal of ext4 or the log of btrfs has to be
	// replayed, which the kernel does when it mounts. xfs does not tell in the
	// superblock.
	NeedsRecovery bool
	// HasErrors is true when ext4 was marked by the kernel as having errors, or was
	// not unmounted cleanly and has no journal. xfs and btrfs do not tell in the
	// superblock.
	HasErrors bool
}

// SizeBytes is the size of the filesystem, not of its device.
func (s Superblock) SizeBytes() int64 { return s.Blocks * s.BlockSizeBytes }

// superblockAreaBytes holds the superblocks at the start: ext4's lies at 1024 and is
// 1024 long, xfs's lies at 0 and is one sector, at most 32 KiB, long.
const superblockAreaBytes = 32 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ReadSuperblock reads the primary superblock from the start of a device and
// checks its checksum. ErrNoFilesystem when there is none; ErrDamaged when there
// is one that cannot be true; FSType and UUID then say what it claims to be. Any
// other error says that reading failed.
//
// A btrfs is looked for only where neither of the others is: its superblock lies where
// they keep the data of files, which may look like anything, while mkfs.btrfs zeroes the
// place of theirs (btrfs-progs, common/device-utils.c: ZERO_DEV_BYTES).
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	area := make([]byte, superblockAreaBytes)
	n, err := io.ReadFull(io.NewSectionReader(r, 0, superblockAreaBytes), area)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return Superblock{}, fmt.Errorf("read the superblock: %w", err)
	}
	area = area[:n]
	ext, isExt, extErr := parseExt(area)
	xfs, isXFS, xfsErr := parseXFS(area)
	switch {
	case isExt && isXFS:
		return Superblock{FSType: "ext4 and xfs"}, fmt.Errorf("%w: it has the superblocks of both ext4 and xfs", ErrDamaged)
	case isExt:
		return ext, extErr
	case isXFS:
		return xfs, xfsErr
	}
	btrfs, isBtrfs, err := readBtrfs(r)
	if err != nil || isBtrfs {
		return btrfs, err
	}
	return Superblock{}, ErrNoFilesystem
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
