// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"reflect"
	"testing"

	"github.com/berth-dev/berth/pkg/mount/mounttest"
)

func TestMain(m *testing.M) { os.Exit(mounttest.Main(m)) }

const (
	testUUID = "0b6a1c1e-3f57-4f0e-9d3c-5a1f7f2f9a01"
	testJSON = `{"keyslots":{"3":{"type":"luks2"},"0":{"type":"luks2"},"1":{"type":"reencrypt"}},"tokens":{},` +
		`"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","encryption":"aes-xts-plain64"}}}`
)

// headerCopy builds one copy of a header as the specification has it.
func headerCopy(magic []byte, offset, sequence uint64, metadata string) []byte {
	b := make([]byte, smallestCopyBytes)
	copy(b, magic)
	binary.BigEndian.PutUint16(b[offsetVersion:], 2)
	binary.BigEndian.PutUint64(b[offsetSize:], smallestCopyBytes)
	binary.BigEndian.PutUint64(b[offsetSequence:], sequence)
	copy(b[offsetLabel:], "pvc-1")
	copy(b[offsetChecksumAlg:], "sha256")
	copy(b[offsetUUID:], testUUID)
	copy(b[offsetSubsystem:], Subsystem)
	binary.BigEndian.PutUint64(b[offsetPosition:], offset)
	copy(b[binaryHeaderBytes:], metadata)
	sign(b)
	return b
}

func sign(b []byte) {
	clear(b[offsetChecksum:][:lengthChecksum])
	sum := sha256.Sum256(b)
	copy(b[offsetChecksum:], sum[:])
}

func bothCopies(change func(primary, secondary []byte)) []byte {
	primary := headerCopy(magicPrimary, 0, 4, testJSON)
	secondary := headerCopy(magicSecondary, smallestCopyBytes, 4, testJSON)
	if change != nil {
		change(primary, secondary)
	}
	return append(primary, secondary...)
}

func TestReadHeader(t *testing.T) {
	t.Parallel()
	want := Header{
		UUID: testUUID, Label: "pvc-1", Subsystem: Subsystem, Sequence: 4, Keyslots: []int{0, 3},
		Cipher: "aes-xts-plain64", DataOffsetBytes: HeaderBytes,
	}
	newer := want
	newer.Sequence = 5
	for name, tt := range map[string]struct {
		image []byte
		want  Header
		err   error
	}{
		"both copies":                   {bothCopies(nil), want, nil},
		"the first is torn":             {bothCopies(func(p, _ []byte) { p[5000]++ }), want, nil},
		"the first is gone":             {bothCopies(func(p, _ []byte) { clear(p) }), want, nil},
		"the second is torn":            {bothCopies(func(_, s []byte) { s[5000]++ }), want, nil},
		"the second is newer":           {bothCopies(func(_, s []byte) { s[offsetSequence+7] = 5; sign(s) }), newer, nil},
		"both are torn":                 {bothCopies(func(p, s []byte) { p[5000]++; s[5000]++ }), Header{}, ErrDamaged},
		"zeroes":                        {make([]byte, 64<<10), Header{}, ErrNoHeader},
		"nothing":                       {nil, Header{}, ErrNoHeader},
		"something else":                {bytes.Repeat([]byte("data"), 16<<10), Header{}, ErrNoHeader},
		"the device ends early":         {bothCopies(nil)[:5000], Header{}, ErrDamaged},
		"LUKS1":                         {bothCopies(func(p, s []byte) { p[offsetVersion+1] = 1; sign(p); clear(s) }), Header{}, ErrDamaged},
		"an odd size":                   {bothCopies(func(p, s []byte) { p[offsetSize+7] = 1; sign(p); clear(s) }), Header{}, ErrDamaged},
		"a huge size":                   {bothCopies(func(p, s []byte) { p[offsetSize] = 0x80; sign(p); clear(s) }), Header{}, ErrDamaged},
		"another place":                 {bothCopies(func(p, s []byte) { p[offsetPosition+7] = 1; sign(p); clear(s) }), Header{}, ErrDamaged},
		"another checksum":              {bothCopies(func(p, s []byte) { copy(p[offsetChecksumAlg:], "sha512"); sign(p); clear(s) }), Header{}, ErrDamaged},
		"no metadata":                   {headerCopy(magicPrimary, 0, 1, ""), Header{}, ErrDamaged},
		"a slot without a number":       {headerCopy(magicPrimary, 0, 1, `{"keyslots":{"x":{"type":"luks2"}}}`), Header{}, ErrDamaged},
		"two segments":                  {headerCopy(magicPrimary, 0, 1, `{"segments":{"0":{"type":"crypt","size":"dynamic","offset":"1"},"1":{}}}`), Header{}, ErrDamaged},
		"a segment that ends":           {headerCopy(magicPrimary, 0, 1, `{"segments":{"0":{"type":"crypt","size":"4096","offset":"1"}}}`), Header{}, ErrDamaged},
		"data that begin at the header": {headerCopy(magicPrimary, 0, 1, `{"segments":{"0":{"type":"crypt","size":"dynamic","offset":"0"}}}`), Header{}, ErrDamaged},
	} {
		got, err := ReadHeader(bytes.NewReader(tt.image))
		if !errors.Is(err, tt.err) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, %v, want %+v, %v", name, got, err, tt.want, tt.err)
		}
	}
	if _, err := ReadHeader(brokenReader{}); err == nil || errors.Is(err, ErrNoHeader) || errors.Is(err, ErrDamaged) {
		t.Errorf("a device that cannot be read: %v, want an error that says nothing", err)
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func FuzzReadHeader(f *testing.F) {
	f.Add(bothCopies(nil))
	f.Add(bothCopies(func(p, _ []byte) { clear(p) }))
	f.Add([]byte("LUKS\xba\xbe\x00\x01"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, image []byte) {
		// A checksum would keep everything behind it from being tried.
		signed := bytes.Clone(image)
		if len(signed) >= smallestCopyBytes {
			sign(signed[:smallestCopyBytes])
		}
		for _, b := range [][]byte{image, signed} {
			h, err := ReadHeader(bytes.NewReader(b))
			switch {
			case err == nil && (h.DataOffsetBytes <= 0 || len(h.UUID) > lengthUUID):
				t.Errorf("a header that cannot be: %+v", h)
			case err != nil && !errors.Is(err, ErrNoHeader) && !errors.Is(err, ErrDamaged):
				t.Errorf("%v, though everything could be read", err)
			}
		}
	})
}
