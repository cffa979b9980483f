// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

const (
	// EdgeBytes is how much of each end of a disk is read by Blank and zeroed by
	// Wipe. Every signature that libblkid knows lies within it (the farthest from
	// the start is VMFS at 2 MiB), and so does what is written at the end of a
	// disk: md 0.90 and 1.0, the backup GPT, two of ZFS's labels, DDF and IMSM,
	// DRBD's internal superblock, nilfs2's second superblock.
	EdgeBytes = 4 << 20

	readChunkBytes = 256 << 10
)

// readBuffers are buffers of readChunkBytes that direct reads can use. A wipe is read
// back in some hundred pieces; memory made anew for each of them cost more than the
// reading.
var readBuffers = sync.Pool{New: func() any { return new(alignedBuffer(readChunkBytes)) }}

// Blank reports whether the first and the last EdgeBytes of a device hold nothing
// but zeroes; a device smaller than both is read as a whole. When it does not,
// offset is where the first other byte is.
//
// This is stronger than any search for signatures: what nobody knows is not
// blank. An error says nothing about the content and never comes with blank.
func Blank(r io.ReaderAt, sizeBytes int64) (offset int64, blank bool, err error) {
	if sizeBytes <= 0 {
		return 0, false, fmt.Errorf("examine a device of %d bytes: there is nothing to read", sizeBytes)
	}
	if sizeBytes <= 2*EdgeBytes {
		return zeroRange(r, 0, sizeBytes)
	}
	offset, blank, err = zeroRange(r, 0, EdgeBytes)
	if err != nil || !blank {
		return offset, blank, err
	}
	return zeroRange(r, sizeBytes-EdgeBytes, EdgeBytes)
}

// BlankOnDisk is Blank of an open block device, past the page cache: it tells what is on
// the disk, and does not fill the memory with zeroes. The cache stays as long as anybody has
// the device open, and does not have what came past it: from an NVMe target of this
// node, a device-mapper device, or another machine.
func BlankOnDisk(f *os.File, sizeBytes int64) (offset int64, blank bool, err error) {
	reader, closeReader, err := uncached(f)
	if err != nil {
		return 0, false, err
	}
	defer closeReader()
	return Blank(reader, sizeBytes)
}

// zeroRange reports whether a range holds only zeroes, and where the first other
// byte is.
func zeroRange(r io.ReaderAt, start, lengthBytes int64) (offset int64, zero bool, err error) {
	buffer, _ := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buffer)
	for done := int64(0); done < lengthBytes; {
		chunk := (*buffer)[:min(int64(len(*buffer)), lengthBytes-done)]
		n, err := readWhole(r, start+done, chunk)
		if i := firstNonZero(chunk[:n]); i >= 0 {
			return start + done + int64(i), false, nil
		}
		if err != nil {
			return 0, false, err
		}
		done += int64(n)
	}
	return 0, true, nil
}

// readWhole fills a buffer from a device, or says how much of it was read and why no more.
func readWhole(r io.ReaderAt, start int64, buffer []byte) (readBytes int, err error) {
	n, err := io.ReadFull(io.NewSectionReader(r, start, int64(len(buffer))), buffer)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the device ends early: %w", io.ErrUnexpectedEOF)
	}
	return n, fmt.Errorf("read %d bytes at %d: %w", len(buffer), start, err)
}

// firstNonZero returns the index of the first byte that is not zero, or -1.
func firstNonZero(b []byte) int {
	// Words are as fast as memory everywhere. bytes.Equal is faster where the processor
	// has vectors, and seven times slower where these are emulated.
	rest := b
	for len(rest) >= 64 {
		w := rest[:64]
		if word(w)|word(w[8:])|word(w[16:])|word(w[24:])|word(w[32:])|word(w[40:])|word(w[48:])|word(w[56:]) != 0 {
			break
		}
		rest = rest[64:]
	}
	for i, c := range rest {
		if c != 0 {
			return len(b) - len(rest) + i
		}
	}
	return -1
}

func word(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
