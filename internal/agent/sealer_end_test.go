// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// TestKilledWhileDeletingEncrypted: the key slots go before the storage, at most once each
// for a kill, and nothing is left.
func TestKilledWhileDeletingEncrypted(t *testing.T) {
	t.Parallel()
	steps := 0
	for n := 0; ; n++ {
		h := encryptedHost(t, encrypted)
		if err := h.stage(oldSecret); err != nil {
			t.Fatal(err)
		}
		h.settle()
		h.delete()
		h.mounts = []string{"/var/lib/kubelet/pods/x/volumes/kubernetes.io~csi/pvc-1/mount"}
		_ = h.reconcile()
		if h.get() == nil || h.entry().State == ledger.Deleting {
			t.Fatal("its deletion began while it was published")
		}
		h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonInProgress)
		h.mounts = nil
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.memory.Reboot()
		h.vault.reboot()
		h.start()
		h.settle()
		if h.get() != nil {
			t.Fatalf("killed at step %d: the object is still there: %+v", n, h.get().Status)
		}
		h.wantNothing()
		if destroyed := slices.Index(h.vault.ran, "destroy"); destroyed < 0 {
			t.Fatalf("killed at step %d: the key slots were not destroyed: %v", n, h.vault.ran)
		}
		if !died {
			break
		}
		steps = n
	}
	if steps < 8 {
		t.Errorf("only %d steps were tried", steps)
	}
	// A volume that no pod had has no slots.
	h := encryptedHost(t, encrypted)
	h.delete()
	h.settle()
	h.wantNothing()
	if len(h.vault.ran) != 0 {
		t.Errorf("ran %v", h.vault.ran)
	}
}

// Another disk that has taken the place of an encrypted one keeps its key slots, whoever deletes the
// volume.
func TestForeignKeySlotsAreKept(t *testing.T) {
	t.Parallel()
	for name, mutate := range encryptedKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := encryptedHost(t, mutate)
			if err := h.stage(oldSecret); err != nil {
				t.Fatal(err)
			}
			h.settle()
			h.vault.reboot()
			for _, header := range h.vault.headers {
				header.uuid = "theirs"
			}
			h.delete()
			_ = h.reconcile()
			if slices.Contains(h.vault.ran, "destroy") || h.get() == nil {
				t.Fatalf("ran %v", h.vault.ran)
			}
			for _, header := range h.vault.headers {
				header.uuid = lvUID
			}
			h.settle()
			h.wantNothing()
		})
	}
}

func TestGrowEncrypted(t *testing.T) {
	t.Parallel()
	h := encryptedHost(t, encrypted)
	if err := h.stage(oldSecret); err != nil {
		t.Fatal(err)
	}
	h.settle()
	lv := h.get()
	lv.Spec.SizeBytes, lv.Generation = 16*mib, 2
	if err := h.api.Update(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
	h.settle()
	if got := h.get().Status.Capacity.Value(); got < 16*mib || h.entry().Record.SizeBytes != got+16*mib {
		t.Errorf("capacity %d, storage %d", got, h.entry().Record.SizeBytes)
	}
	v := h.located()
	if v.UsableBytes() < 16*mib || v.Opened.Device == "" {
		t.Errorf("located %+v", v)
	}
	v.Opened = volume.Location{}
	if _, err := h.sealer.Grow(t.Context(), v, oldSecret); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("growth of what is not open: %v, want ErrBusy", err)
	}
}

// What an agent that was killed has held up goes on with the next one, or with a stage.
func TestCopiesOfEncrypted(t *testing.T) {
	t.Parallel()
	c := &ledger.Encryption{Format: volume.EncryptionLUKS2, Seal: ledger.Sealed, UUID: lvUID, Cipher: "aes-xts-plain64", KeyGeneration: 3}
	record := &volume.Record{Mode: volume.ModeLVM, SizeBytes: 24 * mib}
	e := ledger.Entry{UID: lvUID, Name: lvName, MachineID: machine, State: ledger.Ready, Pool: "fast", Access: volume.AccessBlock, Record: record, Encryption: c}
	source, err := sourceOf(e, machine)
	if err != nil || source.encryption() != volume.EncryptionLUKS2 {
		t.Fatalf("got %+v, %v", source, err)
	}
	copied := source.copiedEncryption()
	if *copied != *c {
		t.Errorf("the copy begins with %+v, want %+v", copied, c)
	}
	w := Wish{Mode: volume.ModeLVM, Pool: "fast", Access: volume.AccessBlock, SizeBytes: 24 * mib, Encryption: volume.EncryptionLUKS2}
	if err := source.fits(w); err != nil {
		t.Error(err)
	}
	w.Encryption = ""
	if err := source.fits(w); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a copy without encryption: %v, want ErrInvalid", err)
	}
	e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, UUID: lvUID}
	if _, err := sourceOf(e, machine); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("a source that no pod had: %v, want ErrBusy", err)
	}
}

// The disk of a volume that is open is pulled out and put back: what is open leads nowhere. It is
// not used, and closed as soon as nobody has it.
func TestOpenOnADiskThatIsGone(t *testing.T) {
	t.Parallel()
	for name, mutate := range encryptedKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := encryptedHost(t, mutate)
			if err := h.stage(oldSecret); err != nil {
				t.Fatal(err)
			}
			h.writeMarker()
			h.vault.gone[lvUID] = true
			if _, err := h.known.Locate(t.Context(), lvName); !errors.Is(err, volume.ErrGone) || !errors.Is(err, volume.ErrIdentity) {
				t.Fatalf("located: %v, want volume.ErrGone", err)
			}
			h.mounts = []string{"/var/lib/kubelet/pods/x/volumes/kubernetes.io~csi/pvc-1/mount"}
			err := h.sealer.CloseGone(t.Context(), lvName)
			if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), h.mounts[0]) || !strings.Contains(err.Error(), "kubectl delete pod") {
				t.Errorf("closed while a pod has it: %v, want ErrInUse", err)
			}
			if h.vault.open[lvUID] == "" {
				t.Fatal("it was closed under a pod")
			}
			h.mounts = nil
			if err := h.sealer.CloseGone(t.Context(), lvName); err != nil {
				t.Fatal(err)
			}
			if err := h.stage(oldSecret); err != nil {
				t.Fatal(err)
			}
			h.wantMarker("after the disk was put back")
		})
	}
}

// A deletion does not take it from under a pod, either.
func TestDeletedWhileOpenOnADiskThatIsGone(t *testing.T) {
	t.Parallel()
	h := encryptedHost(t, encrypted)
	if err := h.stage(oldSecret); err != nil {
		t.Fatal(err)
	}
	h.vault.gone[lvUID] = true
	h.mounts = []string{"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/x"}
	h.delete()
	_ = h.reconcile()
	h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonInProgress)
	if h.vault.open[lvUID] == "" {
		t.Fatal("it was closed while its node was published")
	}
	h.mounts = nil
	h.settle()
	h.wantNothing()
}
