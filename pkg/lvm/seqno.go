// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// SeqnoReader reads which generation of which group's metadata a physical volume
// holds. ok is false when it holds no metadata (pvchange --metadataignore).
type SeqnoReader func(devicePath string) (groupUUID string, seqno uint64, ok bool, err error)

// unchanged reports whether a group's metadata is on all its devices what it was
// in the report. It starts no process, so it can be asked each time; any doubt
// means that it changed.
func unchanged(g *Group, read SeqnoReader) bool {
	if read == nil || g.State() != StateReady {
		return false
	}
	copies := 0
	for _, pv := range g.PVs {
		uuid, seqno, ok, err := read(pv.Path)
		if err != nil || ok && (uuid != g.UUID || seqno != g.Seqno) {
			return false
		}
		if ok {
			copies++
		}
	}
	return copies > 0
}

// DiskSeqno returns a SeqnoReader of the devices that are seen under root.
func DiskSeqno(root string) SeqnoReader {
	return func(path string) (string, uint64, bool, error) {
		f, err := os.OpenFile(filepath.Join(root, path), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", 0, false, err
		}
		uuid, seqno, ok, err := readSeqno(f)
		return uuid, seqno, ok, errors.Join(err, f.Close())
	}
}

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
	mdaMagic        = " LVM2 x[5A%r0N*>"
	mdaMagicAt      = 4
	mdaStartAt      = 24
	mdaSizeAt       = 32
	mdaTextAt       = 40
	mdaTextSizeAt   = 48
	mdaTextFlagsAt  = 60
	mdaIgnored      = 1
	textStartBytes  = 1024
	mostAreas       = 16
	mdaHeaderBytes  = sectorBytes
	areaRecordBytes = 16
)

// textStart is how the text of a group begins (lib/format_text/export.c); the
// group's name stands before the brace.
var textStart = regexp.MustCompile(`^[^\s{]+ \{\nid = "([^"]+)"\nseqno = (\d+)\n`)

func readSeqno(r io.ReaderAt) (groupUUID string, seqno uint64, ok bool, err error) {
	areas, err := metadataAreas(r)
	if err != nil {
		return "", 0, false, err
	}
	for _, offset := range areas {
		header := make([]byte, mdaHeaderBytes)
		if _, err := r.ReadAt(header, offset); err != nil {
			return "", 0, false, fmt.Errorf("read a metadata area's header: %w", err)
		}
		if string(header[mdaMagicAt:mdaMagicAt+len(mdaMagic)]) != mdaMagic {
			return "", 0, false, errors.New("a metadata area has another magic")
		}
		field := func(at int) int64 { return int64(binary.LittleEndian.Uint64(header[at:])) }
		start, size, text, textSize := field(mdaStartAt), field(mdaSizeAt), field(mdaTextAt), field(mdaTextSizeAt)
		if textSize == 0 || binary.LittleEndian.Uint32(header[mdaTextFlagsAt:])&mdaIgnored != 0 {
			continue
		}
		if start != offset || text < mdaHeaderBytes || textSize < 0 || size <= mdaHeaderBytes || text >= size {
			return "", 0, false, errors.New("a metadata area's header contradicts itself")
		}
		// The text may go on at the ring's start; its first line and a bit is what
		// matters, and that the ring may break too.
		head := make([]byte, min(textStartBytes, textSize))
		first := head[:min(int64(len(head)), size-text)]
		if _, err := r.ReadAt(first, offset+text); err != nil {
			return "", 0, false, fmt.Errorf("read metadata: %w", err)
		}
		if rest := head[len(first):]; len(rest) > 0 {
			if _, err := r.ReadAt(rest, offset+mdaHeaderBytes); err != nil {
				return "", 0, false, fmt.Errorf("read metadata: %w", err)
			}
		}
		m := textStart.FindSubmatch(head)
		if m == nil {
			return "", 0, false, errors.New("the metadata does not begin as expected")
		}
		seqno, err := strconv.ParseUint(string(m[2]), 10, 64)
		return string(m[1]), seqno, err == nil, err
	}
	return "", 0, false, nil
}

// metadataAreas returns the offsets of the metadata areas.
func metadataAreas(r io.ReaderAt) ([]int64, error) {
	sectors := make([]byte, labelSectors*sectorBytes)
	if _, err := r.ReadAt(sectors, 0); err != nil {
		return nil, fmt.Errorf("read the label: %w", err)
	}
	for ; len(sectors) >= sectorBytes; sectors = sectors[sectorBytes:] {
		sector := sectors[:sectorBytes]
		if !bytes.HasPrefix(sector, []byte(labelID)) || string(sector[labelTypeAt:labelTypeAt+len(labelType)]) != labelType {
			continue
		}
		at := int(binary.LittleEndian.Uint32(sector[labelOffsetAt:]))
		lists := 0
		var areas []int64
		for at += pvHeaderListAt; at+areaRecordBytes <= sectorBytes && len(areas) < mostAreas; at += areaRecordBytes {
			offset := int64(binary.LittleEndian.Uint64(sector[at:]))
			switch {
			case offset == 0:
				if lists++; lists == 2 {
					return areas, nil
				}
			case offset < 0:
				return nil, errors.New("a metadata area at a negative offset")
			case lists == 1:
				areas = append(areas, offset)
			}
		}
		return nil, errors.New("the list of metadata areas has no end")
	}
	return nil, errors.New("no label of LVM")
}
