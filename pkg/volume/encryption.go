// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

// Encryption is how the content of a volume is encrypted; empty is not at all.
type Encryption string

// EncryptionLUKS2 is LUKS2 with a header at the start of the volume's storage.
const EncryptionLUKS2 Encryption = "luks2"

// luks2HeaderBytes is what lies before the data: both copies of the header and the key
// slots (cryptsetup's default, and what package luks makes).
const luks2HeaderBytes = 16 << 20

// OverheadBytes is how much more storage a volume needs than it has room for its user.
func (e Encryption) OverheadBytes() int64 {
	if e == EncryptionLUKS2 {
		return luks2HeaderBytes
	}
	return 0
}

// Usable is what a volume with that much storage has room for: never negative.
func (e Encryption) Usable(storageBytes int64) int64 { return max(storageBytes-e.OverheadBytes(), 0) }

// WithEncryption is what of a capacity is left for volumes that are encrypted so.
func (c Capacity) WithEncryption(e Encryption) Capacity {
	c.FreeBytes, c.MaxVolumeBytes = e.Usable(c.FreeBytes), e.Usable(c.MaxVolumeBytes)
	return c
}
