// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The format on disk: lib/format_text/layout.h and lib/label/label.h. The label is
// in one of the first four sectors; it leads to the physical volume's header,
// which lists the data areas and then the metadata areas, each list ended by a
// zero; a metadata area starts with a header whose first entry says where in the
// area's ring the committed text is.
const (
	sectorBytes     = 512
	labelSectors    = 4
	labelID         = "LABELONE"
	labelType       = "LVM2 001"
	labelOffsetAt   = 20
	labelTypeAt     = 24
	pvHeaderListAt  = 40
	pvUUIDBytes     = 32
	mdaSumAt        = 0
	mdaMagic        = " LVM2 x[5A%r0N*>"
	mdaMagicAt      = 4
	mdaStartAt      = 24
	mdaSizeAt       = 32
	mdaTextAt       = 40
	mdaTextSizeAt   = 48
	mdaTextSumAt    = 56
	mdaTextFlagsAt  = 60
	mdaIgnored      = 1
	textStartBytes  = 1024
	mostAreas       = 16
	mdaHeaderBytes  = sectorBytes
	areaRecordBytes = 16
)

// area is a metadata area, as its header describes it.
type area struct {
	// offset of the area on the device, and the first sector there.
	offset int64
	header [mdaHeaderBytes]byte
	// sizeBytes of the area. The ring is what lies behind the header.
	sizeBytes int64
	// text and textSize say where in the area the committed metadata is; it may go on
	// at the ring's beginning. textSize is 0 when nothing was ever committed.
	text, textSize int64
	textSum        uint32
	// ignored is set by pvchange --metadataignore.
	ignored bool
}

func readArea(r io.ReaderAt, offset int64) (area, error) {
	var header [mdaHeaderBytes]byte
	if _, err := r.ReadAt(header[:], offset); err != nil {
		return area{}, fmt.Errorf("read a metadata area's header: %w", err)
	}
	return parseArea(header, offset)
}

func parseArea(header [mdaHeaderBytes]byte, offset int64) (area, error) {
	if string(header[mdaMagicAt:mdaMagicAt+len(mdaMagic)]) != mdaMagic {
		return area{}, errors.New("a metadata area has another magic")
	}
	if sum := binary.LittleEndian.Uint32(header[mdaSumAt:]); sum != checksum(header[mdaMagicAt:]) {
		return area{}, errors.New("the header of a metadata area is damaged")
	}
	field := func(at int) int64 { return int64(binary.LittleEndian.Uint64(header[at:])) }
	a := area{
		offset: offset, header: header, sizeBytes: field(mdaSizeAt), text: field(mdaTextAt), textSize: field(mdaTextSizeAt),
		textSum: binary.LittleEndian.Uint32(header[mdaTextSumAt:]),
		ignored: binary.LittleEndian.Uint32(header[mdaTextFlagsAt:])&mdaIgnored != 0,
	}
	if !a.committed() {
		return a, nil
	}
	if field(mdaStartAt) != offset || a.sizeBytes <= mdaHeaderBytes || a.text < mdaHeaderBytes || a.text >= a.sizeBytes ||
		a.textSize < 0 || a.textSize > a.sizeBytes-mdaHeaderBytes {
		return area{}, errors.New("a metadata area's header contradicts itself")
	}
	return a, nil
}

// committed reports whether the area holds metadata that counts.
func (a *area) committed() bool { return a.textSize != 0 && !a.ignored }

// readText reads the beginning of the committed text, or all of it.
func (a *area) readText(r io.ReaderAt, text []byte) error {
	first := text[:min(int64(len(text)), a.sizeBytes-a.text)]
	if _, err := r.ReadAt(first, a.offset+a.text); err != nil {
		return fmt.Errorf("read metadata: %w", err)
	}
	if rest := text[len(first):]; len(rest) > 0 {
		if _, err := r.ReadAt(rest, a.offset+mdaHeaderBytes); err != nil {
			return fmt.Errorf("read metadata: %w", err)
		}
	}
	return nil
}

// whole returns the committed text if it is what the header was written for.
func (a *area) whole(r io.ReaderAt) (text []byte, whole bool, err error) {
	text = make([]byte, a.textSize)
	if err := a.readText(r, text); err != nil {
		return nil, false, err
	}
	return text, checksum(text) == a.textSum, nil
}

// next is where in the area the text is put that follows this one
// (_raw_write_mda_header and vg_write in lib/format_text/format-text.c): in the next
// sector, behind the header when the ring is at its end.
func (a *area) next() int64 {
	end := a.text + a.textSize
	if end > a.sizeBytes {
		end += mdaHeaderBytes - a.sizeBytes
	}
	next := (end + sectorBytes - 1) / sectorBytes * sectorBytes
	if next >= a.sizeBytes {
		next = mdaHeaderBytes
	}
	return next
}

// checksum is lvm's (calc_crc in lib/misc/crc.c): CRC-32 of another beginning, without
// the inversion at the ends.
func checksum(data []byte) uint32 {
	const seed = 0xf597a6cf
	return ^crc32.Update(^uint32(seed), crc32.IEEETable, data)
}

// metadataAreas returns the offsets of the metadata areas.
func metadataAreas(r io.ReaderAt) ([]int64, error) {
	_, offsets, err := readLabel(r)
	return offsets, err
}

// readLabel returns the UUID of a physical volume, without hyphens, and the offsets of
// its metadata areas.
func readLabel(r io.ReaderAt) (pvUUID string, areas []int64, err error) {
	sectors := make([]byte, labelSectors*sectorBytes)
	if _, err := r.ReadAt(sectors, 0); err != nil {
		return "", nil, fmt.Errorf("read the label: %w", err)
	}
	for ; len(sectors) >= sectorBytes; sectors = sectors[sectorBytes:] {
		sector := sectors[:sectorBytes]
		if !bytes.HasPrefix(sector, []byte(labelID)) || string(sector[labelTypeAt:labelTypeAt+len(labelType)]) != labelType {
			continue
		}
		at := int(binary.LittleEndian.Uint32(sector[labelOffsetAt:]))
		if at+pvHeaderListAt > sectorBytes {
			return "", nil, errors.New("the label leads nowhere")
		}
		pvUUID = string(sector[at : at+pvUUIDBytes])
		lists := 0
		for at += pvHeaderListAt; at+areaRecordBytes <= sectorBytes && len(areas) < mostAreas; at += areaRecordBytes {
			offset := int64(binary.LittleEndian.Uint64(sector[at:]))
			switch {
			case offset == 0:
				if lists++; lists == 2 {
					return pvUUID, areas, nil
				}
			case offset < 0:
				return "", nil, errors.New("a metadata area at a negative offset")
			case lists == 1:
				areas = append(areas, offset)
			}
		}
		return "", nil, errors.New("the list of metadata areas has no end")
	}
	return "", nil, errors.New("no label of LVM")
}
