// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

var (
	oldSecret  = map[string]string{SecretPassphrase: "old"}
	newSecret  = map[string]string{SecretPassphrase: "new"}
	bothSecret = map[string]string{SecretPassphrase: "new", SecretPreviousPassphrase: "old"}
)

func encrypted(lv *v1alpha1.LocalVolume) { lv.Spec.Encryption = v1alpha1.EncryptionLUKS2 }

func encryptedKinds() map[string]func(*v1alpha1.LocalVolume) {
	return map[string]func(*v1alpha1.LocalVolume){
		"lvm filesystem": encrypted,
		"lvm block": func(lv *v1alpha1.LocalVolume) {
			encrypted(lv)
			lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, ""
		},
		"device filesystem": func(lv *v1alpha1.LocalVolume) {
			encrypted(lv)
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeDevice, "", "xfs"
		},
	}
}

func encryptedHost(t *testing.T, mutate func(*v1alpha1.LocalVolume)) *host {
	t.Helper()
	lv := localVolume(mutate)
	h := newHost(t, volume.Mode(lv.Spec.Mode), lv)
	h.settle()
	return h
}

// marker is what a pod has written behind the header.
var marker = []byte("written by a pod")

func (h *host) writeMarker() {
	h.t.Helper()
	f, err := os.OpenFile(h.located().Opened.Device, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(marker, 4096)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) wantMarker(when string) {
	h.t.Helper()
	content, err := os.ReadFile(h.located().Opened.Device)
	if err != nil || !bytes.Contains(content, marker) {
		h.t.Fatalf("%s: what the pod has written is gone (%v)", when, err)
	}
}

// A volume is carved plain and bare, and is sealed once, when it is staged first.
func TestSealedWhenStagedFirst(t *testing.T) {
	t.Parallel()
	for name, mutate := range encryptedKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := encryptedHost(t, mutate)
			lv := h.get()
			c := lv.Status.Encryption
			if !isReady(lv) || lv.Status.Formatted || c == nil || c.State != v1alpha1.EncryptionUnsealed || c.UUID != lvUID || len(h.vault.ran) != 0 {
				t.Fatalf("carved: %+v, ran %v", lv.Status, h.vault.ran)
			}
			if got := lv.Status.Capacity.Value(); got < lv.Spec.SizeBytes || got != h.entry().Record.SizeBytes-16*mib {
				t.Errorf("capacity %d of %d bytes of storage, asked for were %d", got, h.entry().Record.SizeBytes, lv.Spec.SizeBytes)
			}
			if !blank(head(t, h.device())) {
				t.Error("something was written before anybody knew the key")
			}
			if err := h.stage(nil); !errors.Is(err, volume.ErrKey) {
				t.Fatalf("without a passphrase: %v, want ErrKey", err)
			}
			if err := h.stage(map[string]string{SecretPassphrase: string(make([]byte, 600))}); !errors.Is(err, volume.ErrInvalid) {
				t.Fatalf("with a huge passphrase: %v, want ErrInvalid", err)
			}
			if h.entry().Encryption.Seal != ledger.Unsealed || len(h.vault.ran) != 0 {
				t.Fatalf("refused, and yet %+v, ran %v", h.entry().Encryption, h.vault.ran)
			}
			for range 2 {
				if err := h.stage(oldSecret); err != nil {
					t.Fatal(err)
				}
			}
			h.settle()
			lv = h.get()
			c = lv.Status.Encryption
			if c.State != v1alpha1.EncryptionSealed || c.KeyGeneration != 1 || c.Cipher != "aes-xts-plain64" || lv.Status.Formatted != (lv.Spec.FSType != "") {
				t.Errorf("sealed: %+v", lv.Status)
			}
			h.writeMarker()
			h.unstage()
			h.unstage()
			if err := h.stage(newSecret); !errors.Is(err, volume.ErrKey) {
				t.Errorf("another passphrase: %v, want ErrKey", err)
			}
			if h.located().Opened.Device != "" {
				t.Error("it is open after a refusal")
			}
			if err := h.stage(oldSecret); err != nil {
				t.Fatal(err)
			}
			h.wantMarker("staged again")
			if h.vault.made != 1 {
				t.Errorf("%d headers were made", h.vault.made)
			}
		})
	}
}

// TestKilledWhileSealing kills the process, or the power, at each step of the first stage.
func TestKilledWhileSealing(t *testing.T) {
	t.Parallel()
	for name, mutate := range encryptedKinds() {
		for _, power := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				steps := 0
				for n := 0; ; n++ {
					h := encryptedHost(t, mutate)
					h.killer.arm(n)
					_ = h.stage(oldSecret)
					died := h.killer.died()
					if power {
						h.memory.Reboot()
						h.vault.reboot()
					}
					h.start()
					if err := h.stage(oldSecret); err != nil {
						t.Fatalf("killed at step %d: %v (ran %v)", n, err, h.vault.ran)
					}
					h.settle()
					if h.get().Status.Encryption.State != v1alpha1.EncryptionSealed || h.get().Spec.FSType != "" && h.mkfs != 1 {
						t.Fatalf("killed at step %d: %+v, %d filesystems were finished", n, h.get().Status, h.mkfs)
					}
					h.writeMarker()
					h.unstage()
					if err := h.stage(oldSecret); err != nil {
						t.Fatal(err)
					}
					h.wantMarker("afterwards")
					if !died {
						break
					}
					steps = n
				}
				if steps < 9 {
					t.Errorf("only %d steps were tried", steps)
				}
			})
		}
	}
}

// A volume that was cut short may get another passphrase: it holds nothing yet. It is that
// one which opens it then, also where the attempt that was cut short has left it open.
func TestAnotherPassphraseBeforeItIsSealed(t *testing.T) {
	t.Parallel()
	for _, power := range []bool{false, true} {
		steps := 0
		for n := 0; ; n++ {
			h := encryptedHost(t, encrypted)
			h.killer.arm(n)
			_ = h.stage(oldSecret)
			died := h.killer.died()
			if power {
				h.vault.reboot()
			}
			h.start()
			if !died || h.entry().Encryption.Seal == ledger.Sealed {
				break
			}
			steps = n
			if err := h.stage(newSecret); err != nil {
				t.Fatalf("killed at step %d: %v (ran %v)", n, err, h.vault.ran)
			}
			h.unstage()
			if err := h.stage(oldSecret); !errors.Is(err, volume.ErrKey) {
				t.Errorf("killed at step %d, the passphrase of that attempt: %v (ran %v)", n, err, h.vault.ran)
			}
			h.unstage()
			if err := h.stage(newSecret); err != nil {
				t.Errorf("killed at step %d, the passphrase of the Secret: %v (ran %v)", n, err, h.vault.ran)
			}
		}
		if steps < 9 {
			t.Errorf("only %d steps were tried", steps)
		}
	}
}

// Whatever the header of a sealed volume looks like, another one is never made.
func TestSealedIsNeverMadeAgain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		damage func(*host)
		want   error
	}{
		"no header": {func(h *host) { delete(h.vault.headers, h.vault.store(h.device())) }, volume.ErrIdentity},
		"blank": {func(h *host) {
			delete(h.vault.headers, h.vault.store(h.device()))
			overwrite(h.t, h.device(), make([]byte, 4096))
		}, volume.ErrIdentity},
		"another header": {func(h *host) {
			h.vault.headers[h.vault.store(h.device())].uuid = "00000000-0000-4000-8000-00000000000f"
		}, volume.ErrIdentity},
		"no slot": {func(h *host) { clear(h.vault.headers[h.vault.store(h.device())].slots) }, volume.ErrKey},
	} {
		h := encryptedHost(t, encrypted)
		if err := h.stage(oldSecret); err != nil {
			t.Fatal(err)
		}
		h.unstage()
		h.settle()
		tt.damage(h)
		before := len(h.vault.ran)
		for _, lose := range []func(){func() {}, h.loseLedger, h.rollBack} {
			lose()
			_ = h.reconcile()
			if err := h.stage(bothSecret); err == nil {
				t.Errorf("%s: it was staged", name)
			}
			if slices.Contains(h.vault.ran[before:], "header") {
				t.Fatalf("%s: another header was made", name)
			}
		}
	}
	// With the ledger lost and a status of before the seal, content protects itself.
	h := encryptedHost(t, encrypted)
	if err := h.stage(oldSecret); err != nil {
		t.Fatal(err)
	}
	h.unstage()
	h.loseLedger()
	h.settle()
	if err := h.stage(oldSecret); !errors.Is(err, volume.ErrNotBlank) || h.vault.made != 1 {
		t.Errorf("neither ledger nor status know of the seal: %v, %d headers", err, h.vault.made)
	}
}

// What is on the storage before it is sealed is nobody's to write over.
func TestSealRefusesContent(t *testing.T) {
	t.Parallel()
	h := encryptedHost(t, encrypted)
	overwrite(t, h.device(), []byte("somebody's data"))
	if err := h.stage(oldSecret); !errors.Is(err, volume.ErrNotBlank) {
		t.Errorf("got %v, want ErrNotBlank", err)
	}
	if !bytes.HasPrefix(head(t, h.device()), []byte("somebody's data")) || h.entry().Encryption.Seal != ledger.Unsealed {
		t.Error("something was changed")
	}
}

func TestHeldUpGoesOn(t *testing.T) {
	t.Parallel()
	h := encryptedHost(t, encrypted)
	if err := h.stage(oldSecret); err != nil {
		t.Fatal(err)
	}
	e := h.entry()
	release, err := h.sealer.Quiesce(t.Context(), e.UID, *e.Encryption, h.device())
	if err != nil || !h.vault.stopped[lvUID] {
		t.Fatalf("held up: %v, %v", h.vault.stopped, err)
	}
	if err := release(); err != nil || h.vault.stopped[lvUID] {
		t.Fatalf("released: %v, %v", h.vault.stopped, err)
	}
	for name, next := range map[string]func(){
		"recover": func() { h.sealer.Recover(t.Context(), h.agent.Ledger.All(), h.agent.Carver.Locks, h.known.Locate) },
		"stage": func() {
			if err := h.stage(nil); err != nil {
				t.Error(err)
			}
		},
	} {
		if _, err := h.sealer.Quiesce(t.Context(), e.UID, *e.Encryption, h.device()); err != nil {
			t.Fatal(err)
		}
		h.start()
		next()
		if h.vault.stopped[lvUID] {
			t.Errorf("%s: it is still held up", name)
		}
	}
	h.unstage()
	release, err = h.sealer.Quiesce(t.Context(), e.UID, *e.Encryption, h.device())
	if err != nil || h.vault.stopped[lvUID] || release() != nil {
		t.Errorf("what is not open is held up: %v", err)
	}
}

func TestEncryptionIsRefused(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]Wish{
		"hostpath": {Mode: volume.ModeHostpath, Encryption: volume.EncryptionLUKS2},
		"adopted":  {Mode: volume.ModeDevice, Encryption: volume.EncryptionLUKS2, Adopt: &volume.Adoption{}},
		"unknown":  {Mode: volume.ModeLVM, Encryption: "luks3"},
	} {
		if err := validateEncryption(w); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	h := newHost(t, volume.ModeLVM, localVolume(encrypted))
	h.noMkfs = true
	h.settle()
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonToolMissing)
	h.wantNothing()
	// The ledger and the spec must agree.
	h = encryptedHost(t, encrypted)
	w := wishOf(h.get())
	w.Encryption, w.Sealed = "", nil
	if _, err := h.agent.Carver.Make(t.Context(), w); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("asked for without encryption: %v, want ErrIdentity", err)
	}
}
