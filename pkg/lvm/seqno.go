// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
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

// textStart is how the text of a group begins (lib/format_text/export.c); the
// group's name stands before the brace.
var textStart = regexp.MustCompile(`^[^\s{]+ \{\nid = "([^"]+)"\nseqno = (\d+)\n`)

func readSeqno(r io.ReaderAt) (groupUUID string, seqno uint64, ok bool, err error) {
	offsets, err := metadataAreas(r)
	if err != nil {
		return "", 0, false, err
	}
	for _, offset := range offsets {
		a, err := readArea(r, offset)
		if err != nil {
			return "", 0, false, err
		}
		if !a.committed() {
			continue
		}
		head := make([]byte, min(textStartBytes, a.textSize))
		if err := a.readText(r, head); err != nil {
			return "", 0, false, err
		}
		uuid, seqno, err := generationOf(head)
		return uuid, seqno, err == nil, err
	}
	return "", 0, false, nil
}

// generationOf reads the beginning of a metadata text.
func generationOf(text []byte) (groupUUID string, seqno uint64, err error) {
	m := textStart.FindSubmatch(text)
	if m == nil {
		return "", 0, errors.New("the metadata does not begin as expected")
	}
	seqno, err = strconv.ParseUint(string(m[2]), 10, 64)
	return string(m[1]), seqno, err
}
