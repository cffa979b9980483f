// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"reflect"
	"testing"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

func encryptedEntry(state ledger.State, seal ledger.Seal) ledger.Entry {
	e := entry(state)
	slot := 1
	e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, Seal: seal, UUID: uid1, Cipher: "aes-xts-plain64", KeyGeneration: 2, RetiringSlot: &slot}
	return e
}

func TestSealSurvivesReopening(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	for _, step := range []ledger.Entry{
		encryptedEntry(ledger.Carving, ledger.Unsealed), encryptedEntry(ledger.Carved, ledger.Unsealed), encryptedEntry(ledger.Ready, ledger.Unsealed),
		encryptedEntry(ledger.Ready, ledger.Sealing), encryptedEntry(ledger.Ready, ledger.Sealed),
		encryptedEntry(ledger.Deleting, ledger.Sealed), encryptedEntry(ledger.Deleting, ledger.Destroyed),
	} {
		if err := l.Put(step); err != nil {
			t.Fatalf("put %s %s: %v", step.State, step.Encryption.Seal, err)
		}
		got, err := open(t, dir).Get(uid1)
		step.SchemaVersion = ledger.SchemaVersion
		if err != nil || !reflect.DeepEqual(got, step) {
			t.Fatalf("got %+v, %v, want %+v", got.Encryption, err, step.Encryption)
		}
		if want := step.State == ledger.Ready && step.Encryption.Seal == ledger.Sealed; got.Formatted() != want {
			t.Errorf("%s %s: formatted %t", step.State, step.Encryption.Seal, got.Formatted())
		}
		if got.OverheadBytes() != 16<<20 {
			t.Errorf("an overhead of %d bytes", got.OverheadBytes())
		}
		// What a caller does with its copy is no business of the ledger's.
		*got.Encryption.RetiringSlot, got.Encryption.Seal = 7, ledger.Destroyed
		if again, err := l.Get(uid1); err != nil || *again.Encryption.RetiringSlot != 1 || again.Encryption.Seal != step.Encryption.Seal {
			t.Fatalf("the ledger was changed from outside: %+v, %v", again.Encryption, err)
		}
	}
}

func TestOneWayDoorsOfEncryption(t *testing.T) {
	t.Parallel()
	other := encryptedEntry(ledger.Ready, ledger.Sealed)
	other.Encryption.UUID = "11111111-2222-3333-4444-666666666666"
	for name, tc := range map[string]struct{ from, to ledger.Entry }{
		"sealed is never sealed again": {encryptedEntry(ledger.Ready, ledger.Sealed), encryptedEntry(ledger.Ready, ledger.Sealing)},
		"sealed is never bare":         {encryptedEntry(ledger.Ready, ledger.Sealed), encryptedEntry(ledger.Ready, ledger.Unsealed)},
		"destroyed keys do not return": {encryptedEntry(ledger.Deleting, ledger.Destroyed), encryptedEntry(ledger.Deleting, ledger.Sealed)},
		"the encryption goes":          {encryptedEntry(ledger.Ready, ledger.Sealed), entry(ledger.Ready)},
		"an encryption comes":          {entry(ledger.Ready), encryptedEntry(ledger.Ready, ledger.Unsealed)},
		"another header":               {encryptedEntry(ledger.Ready, ledger.Sealed), other},
	} {
		l := open(t, t.TempDir())
		if err := l.Put(tc.from); err != nil {
			t.Fatal(err)
		}
		if err := l.Put(tc.to); err == nil {
			t.Errorf("%s: it was allowed", name)
		}
		if got, err := l.Get(uid1); err != nil || !reflect.DeepEqual(got.Encryption, tc.from.Encryption) {
			t.Errorf("%s: the old entry is not what stands: %+v, %v", name, got.Encryption, err)
		}
	}
}

func TestEncryptionIsRead(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*ledger.Entry){
		"an unknown format":          func(e *ledger.Entry) { e.Encryption.Format = "luks3" },
		"an unknown seal":            func(e *ledger.Entry) { e.Encryption.Seal = "sealed" },
		"no UUID":                    func(e *ledger.Entry) { e.Encryption.UUID = "" },
		"of a directory":             func(e *ledger.Entry) { e.Mode, e.FSType, e.FSUUID = volume.ModeHostpath, "", "" },
		"formatted before its seal":  func(e *ledger.Entry) { e.State, e.Encryption.Seal = ledger.Formatting, ledger.Unsealed },
		"sealed before it stands":    func(e *ledger.Entry) { e.State = ledger.Carved },
		"destroyed while it is used": func(e *ledger.Entry) { e.Encryption.Seal = ledger.Destroyed },
		"a negative slot":            func(e *ledger.Entry) { *e.Encryption.RetiringSlot = -1 },
		"a negative generation":      func(e *ledger.Entry) { e.Encryption.KeyGeneration = -1 },
	} {
		e := encryptedEntry(ledger.Ready, ledger.Sealed)
		change(&e)
		if _, err := ledger.Encode(e); err == nil {
			t.Errorf("%s: it was written", name)
		}
	}
	copied := encryptedEntry(ledger.Carving, ledger.Sealed)
	copied.Copied = true
	if _, err := ledger.Encode(copied); err != nil {
		t.Errorf("a copy, which has its header from its source: %v", err)
	}
}
