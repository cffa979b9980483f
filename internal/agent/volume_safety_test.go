// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

var theirData = []byte("a user's data")

// TestRolledBackObjectIsNeverFormattedAgain: etcd was restored to before the volume was
// made, the disk was not.
func TestRolledBackObjectIsNeverFormattedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	was := h.wantReady()
	overwrite(t, h.device(), theirData) // whatever the user has done with it
	h.rollBack()
	h.settle()
	lv := h.wantReady()
	if h.mkfs != 1 || !bytes.HasPrefix(head(t, h.device()), theirData) {
		t.Fatal("formatted again")
	}
	if lv.Status.LVM == nil || *lv.Status.LVM != *was.Status.LVM {
		t.Errorf("the status came back as %+v, was %+v", lv.Status.LVM, was.Status.LVM)
	}
}

// TestRolledBackObjectSaysWhatWasMade: the provisioner deletes what never stood when its claim is
// gone, and the pool is not there to be asked.
func TestRolledBackObjectSaysWhatWasMade(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	was := h.wantReady()
	h.rollBack()
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Reason: "a disk is missing"})
	h.settle()
	h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonPoolNotReady)
	lv := h.get()
	lv.Status.Conditions, was.Status.Conditions = nil, nil
	if !equality.Semantic.DeepEqual(lv.Status, was.Status) {
		t.Errorf("the status is %+v, was %+v", lv.Status, was.Status)
	}
}

// TestStorageThatNobodyRemembers: status and ledger are lost, and the storage with the
// volume's identity holds something.
func TestStorageThatNobodyRemembers(t *testing.T) {
	t.Parallel()
	t.Run("data", func(t *testing.T) {
		t.Parallel()
		h := newHost(t, volume.ModeLVM, localVolume())
		h.settle()
		overwrite(t, h.device(), theirData)
		h.rollBack()
		h.loseLedger()
		for range 3 { // an attempt must not make the next one bolder
			_ = h.reconcile()
			h.start()
		}
		h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonIdentityMismatch)
		if h.mkfs != 1 || !bytes.HasPrefix(head(t, h.device()), theirData) {
			t.Fatal("formatted")
		}
	})
	t.Run("its own filesystem", func(t *testing.T) {
		t.Parallel()
		h := newHost(t, volume.ModeLVM, localVolume())
		h.settle()
		h.rollBack()
		h.loseLedger()
		h.settle()
		h.wantReady()
		if h.mkfs != 1 {
			t.Fatal("formatted again")
		}
	})
	t.Run("no room to make it as large as asked", func(t *testing.T) {
		t.Parallel()
		h := newHost(t, volume.ModeLVM, localVolume())
		h.settle()
		overwrite(t, h.device(), theirData)
		lv := h.get()
		lv.Spec.SizeBytes = 1 << 40
		if err := h.api.Update(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
		h.rollBack()
		h.loseLedger()
		_ = h.reconcile()
		if isFinal(h.get()) {
			t.Error("refused as if nothing were there")
		}
		if len(h.list()) != 1 || !bytes.HasPrefix(head(t, h.device()), theirData) {
			t.Fatal("the refusal deleted it")
		}
	})
}

func TestLostLedgerIsRenewedFromTheStatus(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	overwrite(t, h.device(), theirData)
	h.loseLedger()
	h.writes = 0
	h.settle()
	h.wantReady()
	e, err := h.agent.Ledger.Get(lvUID)
	if err != nil || e.State != ledger.Ready || h.writes != 0 || h.mkfs != 1 {
		t.Fatalf("entry %+v, %v; %d writes, %d mkfs", e, err, h.writes, h.mkfs)
	}
}

func TestMissingStorageIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*host){
		"status and ledger know": (*host).start,
		"ledger knows":           (*host).rollBack,
		"status knows":           (*host).loseLedger,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, volume.ModeLVM, localVolume())
			h.settle()
			rec := recordOf(h.get())
			if err := h.memory.Vanish(lvUID); err != nil {
				t.Fatal(err)
			}
			lose(h)
			h.settle()
			if name != "status and ledger know" { // then nobody looks while nothing changes
				h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonMissing)
			}
			_, err := h.memory.Locate(t.Context(), lvUID, *rec)
			if !errors.Is(err, volume.ErrNotFound) || h.mkfs != 1 {
				t.Fatalf("made anew: %v", err)
			}
		})
	}
}

func TestChangedIdentityIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	h.memory.Tamper(lvUID)
	h.rollBack()
	h.settle()
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonIdentityMismatch)
	h.delete()
	_ = h.reconcile()
	if h.get() == nil {
		t.Fatal("the object of storage that was not what was recorded is gone")
	}
}

func TestOtherMachineTouchesNothing(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*host){"by ledger": (*host).rollBack, "by status": (*host).loseLedger} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, volume.ModeLVM, localVolume())
			h.settle()
			h.machineID = "ffffffffffffffffffffffffffffffff"
			lose(h)
			h.settle()
			h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonIdentityMismatch)
			h.delete()
			h.settle()
			if h.get() == nil || len(h.list()) != 1 {
				t.Fatal("a machine that did not make the volume deleted it")
			}
		})
	}
}

// TestDeletionThatBeganIsNotTakenBack: etcd was restored to before the deletion, which
// had begun to wipe.
func TestDeletionThatBeganIsNotTakenBack(t *testing.T) {
	t.Parallel()
	lv := localVolume()
	h := newHost(t, volume.ModeLVM, lv.DeepCopy())
	h.settle()
	made := h.get()
	h.delete()
	h.killer.arm(2) // after the ledger's Deleting
	_ = h.reconcile()
	h.start()
	e, err := h.agent.Ledger.Get(lvUID)
	if err != nil || e.State != ledger.Deleting {
		t.Fatalf("the test killed at another step: %+v, %v", e, err)
	}
	restored := newHost(t, volume.ModeLVM)
	restored.ledgerDir, restored.memory = h.ledgerDir, h.memory
	made.ResourceVersion = ""
	if err := restored.api.Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	if err := restored.api.Status().Update(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	restored.start()
	restored.settle()
	restored.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonMissing)
}

func TestDamagedLedgerFileStopsEverythingForItsVolume(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	path := filepath.Join(h.ledgerDir, lvUID+".json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.rollBack()
	h.settle()
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonFailed)
	h.delete()
	h.settle()
	if h.get() == nil || len(h.list()) != 1 || h.mkfs != 1 {
		t.Fatal("a volume of which nothing is known was touched")
	}
	if _, err := h.view().Locate(t.Context(), lvName); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("located: %v", err)
	}
}

// TestForcedDeletion: the finalizer was taken away by hand. A volume whose deletion had
// begun is finished, any other is kept.
func TestForcedDeletion(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]bool{"deletion had begun": true, "still in use by somebody": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, volume.ModeLVM, localVolume())
			h.settle()
			if begun {
				h.delete()
				h.killer.arm(2)
				_ = h.reconcile()
			}
			lv := h.get()
			lv.Finalizers = nil
			if err := h.api.Update(t.Context(), lv); err != nil {
				t.Fatal(err)
			}
			if !begun {
				if err := h.api.Delete(t.Context(), lv); err != nil {
					t.Fatal(err)
				}
			}
			h.start()
			var orphaned []string
			h.backends.OnOrphan(func(pool string) { orphaned = append(orphaned, pool) })
			h.settle()
			switch {
			case begun:
				h.wantNothing()
			case len(h.list()) != 1:
				t.Fatal("data of an object that was taken away by force are gone")
			}
			// The pool is looked through for what is left over.
			if told := len(orphaned) > 0; told == begun || told && orphaned[0] != "fast" {
				t.Errorf("orphaned are volumes of %q", orphaned)
			}
		})
	}
}

func (h *host) view() *Volumes {
	return &Volumes{
		Ledger: h.agent.Ledger, Backends: h.backends, MachineID: h.machineID,
		Cache: h.api, CacheSynced: func() bool { return true },
	}
}

func TestVolumesForTheNodeService(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	if _, err := h.view().Locate(t.Context(), lvName); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("before it was made: %v", err)
	}
	if _, err := h.view().Locate(t.Context(), "pvc-2"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of a volume that is not here: %v", err)
	}
	h.settle()
	got, err := h.view().Locate(t.Context(), lvName)
	if err != nil || got.UID != lvUID || got.FSUUID != lvUID || got.FSType != "ext4" || got.Location.Device != h.device() {
		t.Fatalf("%+v, %v", got, err)
	}

	// The API server is away: a new process, whose cache has nothing and would wait.
	h.start()
	away := h.view()
	away.CacheSynced = func() bool { return false }
	away.Cache = nil
	if got, err := away.Locate(t.Context(), lvName); err != nil || got.UID != lvUID {
		t.Errorf("while the API server is away: %+v, %v", got, err)
	}
	away.MachineID = "ffffffffffffffffffffffffffffffff"
	if _, err := away.Locate(t.Context(), lvName); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("on another machine: %v", err)
	}

	// Another object of the same name.
	other := h.view()
	other.Cache = newHost(t, volume.ModeLVM, localVolume(func(lv *v1alpha1.LocalVolume) {
		lv.UID = "00000000-0000-4000-8000-000000000002"
	})).api
	if _, err := other.Locate(t.Context(), lvName); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("of an object made anew: %v", err)
	}
	h.delete()
	if _, err := h.view().Locate(t.Context(), lvName); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("while it is deleted: %v", err)
	}
}

// TestNothingIsMadeForWhatIsGone: a worker has read the object, and the deletion, which has
// workers of its own, is through before it comes to the volume. Nobody would delete what it makes.
func TestNothingIsMadeForWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, mutate := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := localVolume(mutate)
			h := newHost(t, volume.Mode(lv.Spec.Mode), lv)
			req := reconcile.Request{NamespacedName: types.NamespacedName{Name: lvName}}
			overtaken := false
			h.agent.Client = interceptor.NewClient(h.api, interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
					err := c.Get(ctx, key, o, opts...)
					if !overtaken {
						overtaken = true
						h.delete()
						if _, err := h.agent.ReconcileDeleted(ctx, req); err != nil {
							t.Error(err)
						}
					}
					return err
				},
			})
			if _, err := h.agent.ReconcileLive(t.Context(), req); err != nil {
				t.Error(err)
			}
			if h.get() != nil {
				t.Fatal("the object is there still")
			}
			h.wantNothing()
		})
	}
}

// An orphan of which nobody had said that it stands, after a restore of etcd to before it did: the
// provisioner deletes it while the agent is away, whose ledger knows better.
func TestDeletedAsNeverReadyAndYetItStands(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		annotations map[string]string
		lost, kept  bool
	}{
		"as never ready":         {map[string]string{v1alpha1.AnnotationNeverReady: "true"}, true, true},
		"and a person allows it": {map[string]string{v1alpha1.AnnotationNeverReady: "true", v1alpha1.AnnotationAllowDelete: "true"}, true, false},
		"the status says it":     {map[string]string{v1alpha1.AnnotationNeverReady: "true"}, false, false},
		"with its PV":            {nil, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, volume.ModeLVM, localVolume())
			h.settle()
			h.wantReady()
			if tt.lost {
				h.rollBack()
			}
			lv := h.get()
			lv.Annotations = tt.annotations
			if err := h.api.Update(t.Context(), lv); err != nil {
				t.Fatal(err)
			}
			h.delete()
			h.settle()
			if h.get() != nil {
				t.Errorf("the object is still there: %+v", h.get())
			}
			if found := h.list(); (len(found) == 1) != tt.kept {
				t.Errorf("on the disk: %+v", found)
			}
			if tt.kept {
				h.news.expect(t, "Warning Kept of *v1alpha1.LocalVolume")
			}
		})
	}
}
