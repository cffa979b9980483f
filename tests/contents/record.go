// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents

import "encoding/binary"

// record is a structure of an on-disk format, written field by field.
type record []byte

func newRecord(sizeBytes int) record { return make(record, sizeBytes) }

func (r record) text(offset int, s string) record { copy(r[offset:], s); return r }
func (r record) raw(offset int, b ...byte) record { copy(r[offset:], b); return r }
func (r record) u8(offset int, v byte) record     { r[offset] = v; return r }
func (r record) le16(offset int, v uint16) record {
	binary.LittleEndian.PutUint16(r[offset:], v)
	return r
}

func (r record) le32(offset int, v uint32) record {
	binary.LittleEndian.PutUint32(r[offset:], v)
	return r
}

func (r record) le64(offset int, v uint64) record {
	binary.LittleEndian.PutUint64(r[offset:], v)
	return r
}

func (r record) be16(offset int, v uint16) record {
	binary.BigEndian.PutUint16(r[offset:], v)
	return r
}

func (r record) be32(offset int, v uint32) record {
	binary.BigEndian.PutUint32(r[offset:], v)
	return r
}

func (r record) be64(offset int, v uint64) record {
	binary.BigEndian.PutUint64(r[offset:], v)
	return r
}

// uuid puts a UUID that is not zero.
func (r record) uuid(offset int) record {
	for i := range 16 {
		r[offset+i] = byte(0x10 + i)
	}
	return r
}

func (r record) at(offset int64) piece { return piece{offset: offset, data: r} }
