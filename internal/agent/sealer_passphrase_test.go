// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

// TestKilledWhileThePassphraseChanges: at each step one of the two opens the volume, and in
// the end the new one alone.
func TestKilledWhileThePassphraseChanges(t *testing.T) {
	t.Parallel()
	steps := 0
	for n := 0; ; n++ {
		h := encryptedHost(t, encrypted)
		if err := h.stage(oldSecret); err != nil {
			t.Fatal(err)
		}
		h.writeMarker()
		h.unstage()
		h.killer.arm(n)
		_ = h.stage(bothSecret)
		died := h.killer.died()
		h.vault.reboot()
		h.start()
		slots := h.vault.headers[h.vault.store(h.device())].slots
		if len(slots) == 0 || len(slots) > 2 {
			t.Fatalf("killed at step %d: slots %v", n, slots)
		}
		if err := h.stage(bothSecret); err != nil {
			t.Fatalf("killed at step %d: %v", n, err)
		}
		h.wantMarker("the passphrase has changed")
		h.settle()
		c := h.entry().Encryption
		if len(slots) != 1 || slots[1] != "new" || c.KeyGeneration != 2 || c.RetiringSlot != nil || h.get().Status.Encryption.KeyGeneration != 2 {
			t.Fatalf("killed at step %d: slots %v, %+v", n, slots, c)
		}
		h.unstage()
		if err := h.stage(oldSecret); !errors.Is(err, volume.ErrKey) {
			t.Fatalf("the old passphrase: %v, want ErrKey", err)
		}
		if err := h.stage(newSecret); err != nil {
			t.Fatal(err)
		}
		if !died {
			break
		}
		steps = n
	}
	if steps < 7 {
		t.Errorf("only %d steps were tried", steps)
	}
}

// A change that was cut short ends when the Secret has lost the previous passphrase, and
// one that was taken back leaves the slot that is used.
func TestPassphraseChangeWithoutThePrevious(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		after map[string]string
		slots map[int]string
	}{
		"goes on":    {newSecret, map[int]string{1: "new"}},
		"taken back": {oldSecret, map[int]string{0: "old", 1: "new"}},
	} {
		h := encryptedHost(t, encrypted)
		if err := h.stage(oldSecret); err != nil {
			t.Fatal(err)
		}
		h.unstage()
		h.killer.arm(3) // the new slot is there, and nothing has opened with it
		_ = h.stage(bothSecret)
		h.start()
		if err := h.stage(tt.after); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		slots := h.vault.headers[h.vault.store(h.device())].slots
		if len(slots) != len(tt.slots) || h.entry().Encryption.RetiringSlot != nil {
			t.Errorf("%s: slots %v, want %v, %+v", name, slots, tt.slots, h.entry().Encryption)
		}
	}
}
