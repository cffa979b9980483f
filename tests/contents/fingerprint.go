// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Disk makes a sparse file of SizeBytes with the sample on it.
func (s Sample) Disk(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, SizeBytes); err != nil {
		return err
	}
	return s.Write(path)
}

// Fingerprint is a checksum of everything in a file. It reads only what is not a hole,
// and holes and written zeroes are the same.
func Fingerprint(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	hash := sha256.New()
	block := make([]byte, 4096)
	for at := int64(0); ; {
		// The read position that it moves is of no use to ReadAt.
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole up to the end
		}
		if err != nil {
			return sum, fmt.Errorf("find the data of %s: %w", path, err)
		}
		at = data - data%int64(len(block))
		n, err := f.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return sum, err
		}
		if some := block[:n]; !zeroes(some) {
			hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(at)))
			hash.Write(some)
		}
		at += int64(len(block))
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}

func zeroes(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
