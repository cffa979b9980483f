// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"io"
	"regexp"
)

// The on-disk format of an LVM2 physical volume (lvm2, lib/format_text/layout.h):
// a label in one of the first four sectors, behind it a list of areas, and in each
// metadata area the text of the volume group.
const (
	labelSectors    = 4
	sectorBytes     = 512
	mdaHeaderMagic  = " LVM2 x[5A%r0N*>"
	maxMetadataArea = 16
)

var volumeGroupHeader = regexp.MustCompile(`^([a-zA-Z0-9+_.-]{1,127})\s*\{`)

// VolumeGroupOnDisk returns the name of the volume group that a physical volume
// says it is part of, "" when there is none or it cannot be made out. It is good
// for a message, not for a decision.
func VolumeGroupOnDisk(r io.ReaderAt) string {
	head := make([]byte, labelSectors*sectorBytes)
	if _, err := r.ReadAt(head, 0); err != nil {
		return ""
	}
	for sector := 0; sector < len(head); sector += sectorBytes {
		label := head[sector : sector+sectorBytes]
		if bytes.HasPrefix(label, []byte("LABELONE")) && bytes.Equal(label[24:32], []byte("LVM2 001")) {
			return groupByLabel(r, label)
		}
	}
	return ""
}

func groupByLabel(r io.ReaderAt, label []byte) string {
	start := binary.LittleEndian.Uint32(label[20:24])
	if start < 32 || start+40 > sectorBytes {
		return ""
	}
	areas := label[start+40:] // after the UUID (32 bytes) and the size (8)
	// Two lists of {offset, size}, each ended by a pair of zeroes: data areas, then
	// metadata areas.
	inMetadata := false
	for range maxMetadataArea {
		if len(areas) < 16 {
			return ""
		}
		offset, size := binary.LittleEndian.Uint64(areas), binary.LittleEndian.Uint64(areas[8:])
		areas = areas[16:]
		switch {
		case offset == 0 && size == 0 && inMetadata:
			return ""
		case offset == 0 && size == 0:
			inMetadata = true
		case inMetadata:
			if name := groupInArea(r, offset, size); name != "" {
				return name
			}
		}
	}
	return ""
}

func groupInArea(r io.ReaderAt, offset, size uint64) string {
	if offset > 1<<62 || size > 1<<40 {
		return ""
	}
	header := make([]byte, sectorBytes)
	if _, err := r.ReadAt(header, int64(offset)); err != nil || string(header[4:20]) != mdaHeaderMagic {
		return ""
	}
	text := binary.LittleEndian.Uint64(header[40:48]) // the first raw_locn: the committed text
	if text == 0 || text >= size {
		return ""
	}
	start := make([]byte, 160)
	n, _ := r.ReadAt(start, int64(offset+text))
	if found := volumeGroupHeader.FindSubmatch(start[:n]); found != nil {
		return string(found[1])
	}
	return ""
}
