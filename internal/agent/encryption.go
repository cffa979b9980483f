// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/volume"
)

// Encrypted is what the Carver needs of encrypted volumes; *Sealer is it.
type Encrypted interface {
	// ProveClosed closes a volume that is open and that nobody has. volume.ErrInUse: it is
	// published, mounted, or open; nothing was changed.
	ProveClosed(ctx context.Context, e ledger.Entry, device string) error
	// HasHeader reports whether the volume's header is on the device. volume.ErrIdentity: that of
	// another one is, or a filesystem, which nobody sees from outside of one that is encrypted.
	HasHeader(ctx context.Context, e ledger.Entry, device string) (bool, error)
	// DestroyKeys makes the content of a volume that is being deleted unreadable for ever.
	// It returns false when the volume never had a header. volume.ErrIdentity as HasHeader: nothing
	// was changed.
	DestroyKeys(ctx context.Context, e ledger.Entry, device string) (bool, error)
	// Quiesce holds up what uses a volume that is open, with its filesystem frozen, until
	// release is called. It does nothing for one that is not open.
	Quiesce(ctx context.Context, id string, encryption ledger.Encryption, device string) (release func() error, err error)
}

// quiesce is Quiesce of what is to be copied. A snapshot, and what is not encrypted, need
// nothing.
func quiesce(ctx context.Context, q Encrypted, b volume.Backend, source copySource) (release func() error, err error) {
	nothing := func() error { return nil }
	if source.Encryption == nil || source.Snapshot {
		return nothing, nil
	}
	// What a killed lvm or agent has left suspended is resumed when the place is looked at
	// first: before this volume is suspended, and not while it is copied.
	if _, err := b.List(ctx); err != nil {
		return nothing, err
	}
	location, err := b.Locate(ctx, source.ID, source.Record)
	if err != nil {
		return nothing, err
	}
	return q.Quiesce(ctx, source.ID, *source.Encryption, location.Device)
}

// newEncryption is where the encryption of a volume begins. The UUID of its header is its
// own UID, so that a header of ours is known before it is made; that of a copy comes with
// its source.
func newEncryption(w Wish) *ledger.Encryption {
	switch {
	case w.Encryption == "":
		return nil
	case w.Sealed != nil:
		known := *w.Sealed
		return &known
	case w.CopyOf != nil:
		return &ledger.Encryption{Format: w.Encryption, Seal: ledger.Sealed}
	}
	return &ledger.Encryption{Format: w.Encryption, UUID: w.UID}
}

// recallEncryption combines the ledger with the status. Whichever of the two says that the
// volume was sealed is believed.
func recallEncryption(e *ledger.Entry, w Wish) error {
	if (e.Encryption != nil) != (w.Encryption != "") {
		return fmt.Errorf("volume %s is asked for with encryption %q, and the ledger has another: %w", w.Name, w.Encryption, volume.ErrIdentity)
	}
	if e.Encryption == nil || w.Sealed == nil {
		return nil
	}
	if e.Encryption.UUID != w.Sealed.UUID {
		return fmt.Errorf("volume %s: the ledger and the status name different LUKS headers: %w", w.Name, volume.ErrIdentity)
	}
	if w.Sealed.Seal == ledger.Sealed && e.Encryption.Seal != ledger.Destroyed {
		e.Encryption.Seal = ledger.Sealed
	}
	return nil
}

func validateEncryption(w Wish) error {
	switch {
	case w.Encryption == "":
		return nil
	case w.Encryption != volume.EncryptionLUKS2:
		return fmt.Errorf("encryption %q is unknown: %w", w.Encryption, volume.ErrInvalid)
	case w.Mode == volume.ModeHostpath:
		return fmt.Errorf("encryption needs a block device of the volume's own, which mode hostpath has not: %w", volume.ErrInvalid)
	case w.Adopt != nil:
		return fmt.Errorf("adopt hands a disk over as it is, so it is not encrypted: %w", volume.ErrInvalid)
	}
	return nil
}

// requireEncryption asks for the program before anything is made.
func (c *Carver) requireEncryption(ctx context.Context, e ledger.Entry) error {
	if e.Encryption == nil {
		return nil
	}
	_, err := c.Tools.LookPath(ctx, luks.Tool)
	return err
}

// proveClosed is proveUnpublished of an encrypted volume, and closes it: what is open
// keeps the storage from being removed.
func (c *Carver) proveClosed(ctx context.Context, b volume.Backend, e ledger.Entry) error {
	location, err := b.Locate(ctx, e.UID, *e.Record)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for who has it: %w", err)
	}
	return c.Encrypted.ProveClosed(ctx, e, location.Device)
}

// destroyKeys destroys the key slots of a volume that is being deleted, before anything
// else is done to it, whatever the wipe policy.
func (c *Carver) destroyKeys(ctx context.Context, b volume.Backend, e *ledger.Entry) error {
	if e.Encryption == nil || e.Record == nil || e.Encryption.Seal == ledger.Destroyed {
		return nil
	}
	location, err := b.Locate(ctx, e.UID, *e.Record)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	destroyed, err := c.Encrypted.DestroyKeys(ctx, *e, location.Device)
	if err != nil || !destroyed {
		return err
	}
	e.Encryption.Seal = ledger.Destroyed
	return c.Journal.Put(*e)
}

// encryption of what is to be copied.
func (s copySource) encryption() volume.Encryption {
	if s.Encryption == nil {
		return ""
	}
	return s.Encryption.Format
}

// copiedEncryption is what a copy begins with: the header comes along, with its key slots.
func (s copySource) copiedEncryption() *ledger.Encryption {
	if s.Encryption == nil {
		return nil
	}
	return &ledger.Encryption{
		Format: s.Encryption.Format, Seal: ledger.Sealed, UUID: s.Encryption.UUID,
		Cipher: s.Encryption.Cipher, KeyGeneration: s.Encryption.KeyGeneration,
	}
}

func (s copySource) encryptionStatus() *v1alpha1.EncryptionStatus {
	return encryptionStatusOf(ledger.Entry{Encryption: s.Encryption})
}

func encryptionFormat(e v1alpha1.Encryption) volume.Encryption { return volume.Encryption(e) }

// encryptionStatusOf is what a status says of a volume's encryption.
func encryptionStatusOf(e ledger.Entry) *v1alpha1.EncryptionStatus {
	c := e.Encryption
	if c == nil {
		return nil
	}
	state := v1alpha1.EncryptionUnsealed
	if c.Seal == ledger.Sealed || c.Seal == ledger.Destroyed {
		state = v1alpha1.EncryptionSealed
	}
	return &v1alpha1.EncryptionStatus{
		Format: v1alpha1.Encryption(c.Format), State: state, UUID: c.UUID, Cipher: c.Cipher, KeyGeneration: c.KeyGeneration,
	}
}

// encryptionOf reads what a status says; nil when it says nothing.
func encryptionOf(s *v1alpha1.EncryptionStatus) *ledger.Encryption {
	if s == nil {
		return nil
	}
	seal := ledger.Unsealed
	if s.State == v1alpha1.EncryptionSealed {
		seal = ledger.Sealed
	}
	return &ledger.Encryption{
		Format: encryptionFormat(s.Format), Seal: seal, UUID: s.UUID, Cipher: s.Cipher, KeyGeneration: s.KeyGeneration,
	}
}

func sameSeal(a, b ledger.Entry) bool {
	return a.Encryption == nil || b.Encryption == nil || a.Encryption.Seal == b.Encryption.Seal
}

// isSealTold reports whether the status says of the encryption what the ledger has.
func isSealTold(lv *v1alpha1.LocalVolume, e ledger.Entry) bool {
	return lv.Status.Formatted == e.Formatted() && equality.Semantic.DeepEqual(lv.Status.Encryption, encryptionStatusOf(e))
}
