// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

// Limits bound the I/O of one pod on one volume. 0 is no limit.
type Limits struct {
	// ReadIOPS and WriteIOPS are operations in a second.
	ReadIOPS  int64 `json:"readIOPS,omitempty"`
	WriteIOPS int64 `json:"writeIOPS,omitempty"`
	// ReadBytesPerSecond and WriteBytesPerSecond are bytes in a second.
	ReadBytesPerSecond  int64 `json:"readBytesPerSecond,omitempty"`
	WriteBytesPerSecond int64 `json:"writeBytesPerSecond,omitempty"`
}

// IsZero reports whether nothing is limited.
func (l Limits) IsZero() bool { return l == Limits{} }

// Valid reports whether no limit is negative.
func (l Limits) Valid() bool {
	return min(l.ReadIOPS, l.WriteIOPS, l.ReadBytesPerSecond, l.WriteBytesPerSecond) >= 0
}
