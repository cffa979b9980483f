// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"

	"github.com/berth-dev/berth/pkg/volume"
)

// Seal is how far the encryption of a volume has come. The key is known while a pod's
// volume is staged and at no other time, so this is apart from the State.
type Seal string

const (
	// Unsealed: the volume was carved and reads as zeroes at both ends. No pod had it.
	Unsealed Seal = ""
	// Sealing: it was found blank, and the header or the filesystem behind it is being
	// made. No pod had it, so both may be repeated.
	Sealing Seal = "Sealing"
	// Sealed: a pod may have had it. From here on neither is ever made again, whatever is
	// found on the volume.
	Sealed Seal = "Sealed"
	// Destroyed: the key slots were overwritten, because the volume is being deleted.
	Destroyed Seal = "Destroyed"
)

var sealOrder = map[Seal]int{Unsealed: 0, Sealing: 1, Sealed: 2, Destroyed: 3}

// Encryption is what the node knows of the encryption of a volume. It is no secret.
type Encryption struct {
	Format volume.Encryption `json:"format"`
	Seal   Seal              `json:"seal,omitempty"`
	// UUID of the header. A copy has that of its source.
	UUID string `json:"uuid"`
	// Cipher of the data, as the header has it; empty while Unsealed, and of a copy that no
	// pod had.
	Cipher string `json:"cipher,omitempty"`
	// KeyGeneration is how many passphrases there were, counted from 1; 0 before the first.
	KeyGeneration int64 `json:"keyGeneration,omitempty"`
	// RetiringSlot is the key slot of the last passphrase while it is being replaced.
	RetiringSlot *int `json:"retiringSlot,omitempty"`
}

func (e Entry) validateEncryption() error {
	c := e.Encryption
	if c == nil {
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Format != volume.EncryptionLUKS2 {
		bad("encryption %q is unknown", c.Format)
	}
	if e.Mode == volume.ModeHostpath || e.Adopted {
		bad("encryption in mode %s (adopted: %v)", e.Mode, e.Adopted)
	}
	if _, known := sealOrder[c.Seal]; !known {
		bad("seal %q is unknown", c.Seal)
	}
	if !uidPattern.MatchString(c.UUID) {
		bad("encryption: uuid %q is not a lower-case UUID", c.UUID)
	}
	if e.State == Formatting {
		bad("state Formatting of an encrypted volume, which is formatted when it is sealed")
	}
	if e.State != Ready && e.State != Deleting && c.Seal != Unsealed && !e.Copied {
		bad("seal %q in state %s", c.Seal, e.State)
	}
	if c.Seal == Destroyed && e.State != Deleting {
		bad("key slots destroyed in state %s", e.State)
	}
	if c.KeyGeneration < 0 || c.RetiringSlot != nil && *c.RetiringSlot < 0 {
		bad("key generation %d, retiring slot %v", c.KeyGeneration, c.RetiringSlot)
	}
	return errors.Join(errs...)
}

// allowedEncryption guards the one-way doors of a volume's encryption.
func allowedEncryption(old, e Entry) error {
	switch {
	case (old.Encryption == nil) != (e.Encryption == nil):
		return errors.New("a volume is encrypted from its beginning or never")
	case old.Encryption == nil:
		return nil
	case old.Encryption.UUID != e.Encryption.UUID:
		return fmt.Errorf("the UUID of the header cannot change from %s to %s", old.Encryption.UUID, e.Encryption.UUID)
	case sealOrder[e.Encryption.Seal] < sealOrder[old.Encryption.Seal]:
		return fmt.Errorf("seal %q cannot follow %q", e.Encryption.Seal, old.Encryption.Seal)
	}
	return nil
}

// OverheadBytes is how much of the volume's storage the encryption takes.
func (e Entry) OverheadBytes() int64 {
	if e.Encryption == nil {
		return 0
	}
	return e.Encryption.Format.OverheadBytes()
}
