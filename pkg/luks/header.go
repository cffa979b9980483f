// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

var (
	// ErrNoHeader: the device was read, and there is no LUKS header on it. It may hold
	// anything else: this is never a proof of emptiness.
	ErrNoHeader = errors.New("no LUKS header")
	// ErrDamaged: there is a LUKS header that cannot be used, or one of a kind that is not
	// made here.
	ErrDamaged = errors.New("the LUKS header is damaged")
)

// Header is what the LUKS2 header of a device says. It is no secret.
type Header struct {
	// UUID in lower case with dashes. Label and Subsystem may be empty.
	UUID, Label, Subsystem string
	// Sequence grows with each change.
	Sequence uint64
	// Keyslots are the numbers of the slots that hold a key, ascending.
	Keyslots []int
	// Cipher of the data ("aes-xts-plain64").
	Cipher string
	// DataOffsetBytes is where the encrypted data begin. They go on to the device's end.
	DataOffsetBytes int64
}

// The layout of the binary header (specification, 2.1). All numbers are big-endian.
const (
	binaryHeaderBytes = 4096
	offsetVersion     = 6
	offsetSize        = 8
	offsetSequence    = 16
	offsetLabel       = 24
	offsetChecksumAlg = 72
	offsetUUID        = 168
	offsetSubsystem   = 208
	offsetPosition    = 256
	offsetChecksum    = 448
	lengthLabel       = 48
	lengthChecksumAlg = 32
	lengthUUID        = 40
	lengthChecksum    = 64

	smallestCopyBytes = 16 << 10
	largestCopyBytes  = 4 << 20
)

var (
	magicPrimary   = []byte("LUKS\xba\xbe")
	magicSecondary = []byte("SKUL\xba\xbe")
)

// ReadHeader reads the header from the start of a device: the newer one of its two copies
// whose checksum is right.
//
// ErrNoHeader: neither copy is there. ErrDamaged: none that is there can be used. Any
// other error says that reading failed.
func ReadHeader(r io.ReaderAt) (Header, error) {
	type place struct {
		offset int64
		magic  []byte
	}
	places := []place{{0, magicPrimary}}
	// The second copy follows the first, whose size is one of these.
	for size := int64(smallestCopyBytes); size <= largestCopyBytes; size *= 2 {
		places = append(places, place{size, magicSecondary})
	}
	var found []Header
	var damage error
	for _, p := range places {
		h, err := readCopy(r, p.offset, p.magic)
		switch {
		case err == nil:
			found = append(found, h)
		case errors.Is(err, ErrDamaged):
			damage = errors.Join(damage, err)
		case !errors.Is(err, ErrNoHeader):
			return Header{}, err
		}
	}
	if len(found) == 0 {
		return Header{}, cmp.Or(damage, ErrNoHeader)
	}
	return slices.MaxFunc(found, func(a, b Header) int { return cmp.Compare(a.Sequence, b.Sequence) }), nil
}

func readCopy(r io.ReaderAt, offset int64, magic []byte) (Header, error) {
	fixed, err := read(r, offset, binaryHeaderBytes)
	if err != nil {
		return Header{}, err
	}
	if len(fixed) < binaryHeaderBytes || !bytes.HasPrefix(fixed, magic) {
		return Header{}, ErrNoHeader
	}
	damaged := func(format string, args ...any) (Header, error) {
		return Header{}, fmt.Errorf("%w: the copy at byte %d: %s", ErrDamaged, offset, fmt.Sprintf(format, args...))
	}
	if version := binary.BigEndian.Uint16(fixed[offsetVersion:]); version != 2 {
		return damaged("it is of LUKS version %d, 2 is used here", version)
	}
	size := binary.BigEndian.Uint64(fixed[offsetSize:])
	if size < smallestCopyBytes || size > largestCopyBytes || size&(size-1) != 0 {
		return damaged("it says that it has %d bytes", size)
	}
	if position := binary.BigEndian.Uint64(fixed[offsetPosition:]); position != uint64(offset) {
		return damaged("it says that it is at byte %d", position)
	}
	whole, err := read(r, offset, int(size))
	if err != nil {
		return Header{}, err
	}
	if len(whole) < int(size) {
		return damaged("the device ends within it")
	}
	if algorithm := cString(whole[offsetChecksumAlg:][:lengthChecksumAlg]); algorithm != "sha256" {
		return damaged("its checksum is %q, sha256 is used here", algorithm)
	}
	want := slices.Clone(whole[offsetChecksum:][:sha256.Size])
	clear(whole[offsetChecksum:][:lengthChecksum])
	if got := sha256.Sum256(whole); subtle.ConstantTimeCompare(got[:], want) != 1 {
		return damaged("its checksum is wrong")
	}
	h := Header{
		UUID:  cString(whole[offsetUUID:][:lengthUUID]),
		Label: cString(whole[offsetLabel:][:lengthLabel]), Subsystem: cString(whole[offsetSubsystem:][:lengthLabel]),
		Sequence: binary.BigEndian.Uint64(whole[offsetSequence:]),
	}
	if err := h.parseMetadata(whole[binaryHeaderBytes:]); err != nil {
		return damaged("%v", err)
	}
	return h, nil
}

// metadata is what is used of the JSON area (specification, 3).
type metadata struct {
	Keyslots map[string]struct {
		Type string `json:"type"`
	} `json:"keyslots"`
	Segments map[string]struct {
		Type       string `json:"type"`
		Offset     string `json:"offset"`
		Size       string `json:"size"`
		Encryption string `json:"encryption"`
	} `json:"segments"`
}

func (h *Header) parseMetadata(area []byte) error {
	text, _, _ := bytes.Cut(area, []byte{0})
	var m metadata
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("its metadata: %w", err)
	}
	for number, slot := range m.Keyslots {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 {
			return fmt.Errorf("it has a key slot %q", number)
		}
		if slot.Type == "luks2" {
			h.Keyslots = append(h.Keyslots, n)
		}
	}
	slices.Sort(h.Keyslots)
	// While a device is re-encrypted there are several.
	segment, ok := m.Segments["0"]
	if len(m.Segments) != 1 || !ok || segment.Type != "crypt" || segment.Size != "dynamic" {
		return errors.New("its data are not one piece up to the device's end")
	}
	offset, err := strconv.ParseInt(segment.Offset, 10, 64)
	if err != nil || offset <= 0 {
		return fmt.Errorf("its data begin at byte %q", segment.Offset)
	}
	h.Cipher, h.DataOffsetBytes = segment.Encryption, offset
	return nil
}

// read returns what there is of a range.
func read(r io.ReaderAt, offset int64, length int) ([]byte, error) {
	buffer := make([]byte, length)
	n, err := io.ReadFull(io.NewSectionReader(r, offset, int64(length)), buffer)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read the LUKS header at byte %d: %w", offset, err)
	}
	return buffer[:n], nil
}

func cString(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return string(before)
}
