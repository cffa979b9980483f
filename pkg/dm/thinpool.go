// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ThinPoolMode is in which condition a thin pool takes writes.
type ThinPoolMode string

// The modes of a thin pool.
const (
	// ThinPoolWritable: all is well.
	ThinPoolWritable ThinPoolMode = "rw"
	// ThinPoolReadOnly: its metadata cannot be changed any more. What is mapped can be
	// written, nothing new.
	ThinPoolReadOnly ThinPoolMode = "ro"
	// ThinPoolOutOfData: no chunk is free. Writes that need one wait or fail.
	ThinPoolOutOfData ThinPoolMode = "out_of_data_space"
	// ThinPoolFailed: nothing can be read or written.
	ThinPoolFailed ThinPoolMode = "Fail"
)

// ThinPool is the status of a thin pool.
type ThinPool struct {
	Mode ThinPoolMode
	// TransactionID of the pool's metadata: lvm's must agree.
	TransactionID uint64
	// MetadataUsed of MetadataBlocks blocks of 4 KiB, and DataUsed of DataBlocks chunks,
	// are taken.
	MetadataUsed, MetadataBlocks uint64
	DataUsed, DataBlocks         uint64
	// HeldRoot is the block of a snapshot of the metadata that is held for a program that
	// reads them (reserve_metadata_snap); 0 when there is none. It outlives a reboot.
	HeldRoot uint64
	// ChunkBytes is the size of a chunk, and LowWaterBlocks how many of them are free when the
	// kernel tells of it; 0 is never. They are of the pool's table.
	ChunkBytes, LowWaterBlocks uint64
	// FailsWhenFull: a write that needs a chunk when there is none fails at once, and does
	// not wait.
	FailsWhenFull bool
	// NeedsCheck: the metadata must be repaired (thin_repair) before it is changed again.
	NeedsCheck bool
}

// ThinPoolOf reads the status and the table of a device that is one thin pool.
func ThinPoolOf(status, table []Target) (ThinPool, error) {
	for _, targets := range [][]Target{status, table} {
		if len(targets) != 1 || targets[0].Type != "thin-pool" {
			return ThinPool{}, fmt.Errorf("the device is no thin pool: it has %d targets (%+v)", len(targets), targets)
		}
	}
	pool, err := parseThinPool(status[0].Status)
	if err != nil {
		return ThinPool{}, fmt.Errorf("the status %q of a thin pool: %w", status[0].Status, err)
	}
	// Metadata device, data device, sectors of a chunk, low-water mark in chunks, features.
	words := strings.Fields(table[0].Status)
	const least = 4
	if len(words) < least {
		return ThinPool{}, fmt.Errorf("the table %q of a thin pool has %d words, %d are the least", table[0].Status, len(words), least)
	}
	if pool.LowWaterBlocks, err = strconv.ParseUint(words[3], 10, 64); err != nil {
		return ThinPool{}, fmt.Errorf("the low-water mark in the table %q of a thin pool: %w", table[0].Status, err)
	}
	sectors, err := strconv.ParseUint(words[2], 10, 32) // the kernel's are of 1 GiB at most
	if err != nil {
		return ThinPool{}, fmt.Errorf("the chunks in the table %q of a thin pool: %w", table[0].Status, err)
	}
	const sectorBytes = 512
	pool.ChunkBytes = sectors * sectorBytes
	return pool, nil
}

// parseThinPool reads what pool_status in drivers/md/dm-thin.c writes; see also
// Documentation/admin-guide/device-mapper/thin-provisioning.rst.
func parseThinPool(status string) (ThinPool, error) {
	words := strings.Fields(status)
	if len(words) == 1 && (words[0] == string(ThinPoolFailed) || words[0] == "Error") {
		return ThinPool{Mode: ThinPoolFailed}, nil
	}
	const least = 7 // the words that every kernel writes
	if len(words) < least {
		return ThinPool{}, fmt.Errorf("%d words, %d are the least", len(words), least)
	}
	var (
		p    ThinPool
		err  error
		errs [3]error
	)
	p.TransactionID, errs[0] = strconv.ParseUint(words[0], 10, 64)
	p.MetadataUsed, p.MetadataBlocks, errs[1] = fraction(words[1])
	p.DataUsed, p.DataBlocks, errs[2] = fraction(words[2])
	if err := errors.Join(errs[:]...); err != nil {
		return ThinPool{}, err
	}
	if held := words[3]; held != "-" {
		if p.HeldRoot, err = strconv.ParseUint(held, 10, 64); err != nil {
			return ThinPool{}, fmt.Errorf("the root that is held: %w", err)
		}
	}
	switch mode := ThinPoolMode(words[4]); mode {
	case ThinPoolWritable, ThinPoolReadOnly, ThinPoolOutOfData:
		p.Mode = mode
	default:
		return ThinPool{}, fmt.Errorf("the mode %q is unknown", words[4])
	}
	p.FailsWhenFull = words[6] == "error_if_no_space"
	p.NeedsCheck = len(words) > least && words[least] == "needs_check"
	return p, nil
}

func fraction(text string) (part, whole uint64, err error) {
	before, after, _ := strings.Cut(text, "/")
	part, err = strconv.ParseUint(before, 10, 64)
	if err != nil {
		return 0, 0, err
	}
	whole, err = strconv.ParseUint(after, 10, 64)
	if err == nil && part > whole {
		err = fmt.Errorf("%d of %d", part, whole)
	}
	return part, whole, err
}

// DataPercent is how much of the data is taken, rounded up, so that only an empty pool
// shows 0 and what shows 80 has at most that.
func (p ThinPool) DataPercent() int { return percent(p.DataUsed, p.DataBlocks) }

// MetadataPercent is DataPercent of the metadata.
func (p ThinPool) MetadataPercent() int { return percent(p.MetadataUsed, p.MetadataBlocks) }

func percent(part, whole uint64) int {
	if whole == 0 {
		return 0
	}
	// Blocks are far fewer than 2^57.
	return int((part*100 + whole - 1) / whole)
}
