// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// adoption is a LocalVolume that asks for the left-over 1.
func (h *purgeHost) adoption(mutate ...func(*v1alpha1.LocalVolume)) *v1alpha1.LocalVolume {
	h.t.Helper()
	lv := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "again", UID: types.UID(volumetest.ID(7))},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: "n1", Mode: v1alpha1.Mode(h.mode), Pool: "fast", VolumeMode: v1alpha1.VolumeFilesystem, SizeBytes: mib, Wipe: v1alpha1.WipeDiscard,
			Adopt: &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: volumetest.ID(1), Identity: h.request(1).Identity}},
		},
	}
	if h.mode == volume.ModeLVM {
		lv.Spec.FSType = "ext4"
	}
	for _, f := range mutate {
		f(lv)
	}
	h.create(lv)
	return lv
}

func (h *purgeHost) adopt(lv *v1alpha1.LocalVolume) (ledger.Entry, error) {
	return h.purger.Carver.Make(h.t.Context(), wishOf(lv))
}

// wantAdopted is the entry of what was adopted: the volume 7 is what the volume 1 was.
func (h *purgeHost) wantAdopted(lv *v1alpha1.LocalVolume, when string) ledger.Entry {
	h.t.Helper()
	e, err := h.adopt(lv)
	if err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	kept, err := h.book.Get(e.UID)
	if err != nil || kept.State != ledger.Ready || kept.LeftOver != nil || kept.Name != lv.Name || (kept.FSUUID == "fs-uuid") != (h.mode == volume.ModeLVM) {
		h.t.Fatalf("%s: the ledger has %+v, %v", when, kept, err)
	}
	if _, err := h.book.Get(volumetest.ID(1)); !errors.Is(err, ledger.ErrNotFound) {
		h.t.Fatalf("%s: the ledger has the left-over still: %v", when, err)
	}
	if !h.isThere(7) || h.isThere(1) {
		h.t.Fatalf("%s: it is there under its old UID", when)
	}
	if _, err := h.memory.Locate(h.t.Context(), e.UID, *kept.Record); err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	return kept
}

// Killed at any step, it is the left-over or the volume, and becomes the volume at last; and
// whatever Berth forgets of it, it is the same volume.
func TestAdoptLeftOverKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for _, known := range []bool{true, false} {
			for n, alive := 0, false; !alive; n++ {
				h := newPurgeHost(t, mode)
				h.leave(1, known)
				h.leave(2, true)
				h.leave(3, false)
				lv := h.adoption()
				h.killer.arm(n)
				_, err := h.adopt(lv)
				alive = !h.killer.died()
				if alive && err != nil {
					t.Fatal(err)
				}
				h.start()
				h.memory.Reboot()
				if h.isThere(1) == h.isThere(7) {
					t.Fatalf("killed at step %d: it is there twice or not at all", n)
				}
				when := fmt.Sprintf("%s, killed at step %d", mode, n)
				e := h.wantAdopted(lv, when)
				h.wantKept(2, 3)
				if alive && n < 4 {
					t.Errorf("only %d steps were tried", n)
				}
				// The ledger is lost, before and after the status was written.
				for range 2 {
					h.ledgerDir = t.TempDir()
					h.start()
					h.wantAdopted(lv, when+", its ledger lost")
					setMade(lv, e)
				}
				h.killer.arm(n)
				_ = h.purger.Carver.Remove(t.Context(), wishOf(lv))
				h.start()
				if err := h.purger.Carver.Remove(t.Context(), wishOf(lv)); err != nil || h.isThere(7) {
					t.Fatalf("%s: deleted, it is there still: %v", when, err)
				}
				h.wantKept(2, 3)
			}
		}
	}
}

// A LocalVolume that has never said that it has the left-over takes none of its data along.
func TestAdoptLeftOverGivenUp(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for n, alive := 0, false; !alive; n++ {
			h := newPurgeHost(t, mode)
			h.leave(1, true)
			lv := h.adoption()
			h.killer.arm(n)
			_, _ = h.adopt(lv)
			alive = !h.killer.died()
			h.start()
			h.killer.arm(n)
			_ = h.purger.Carver.Remove(t.Context(), wishOf(lv))
			alive = alive && !h.killer.died()
			h.start()
			if err := h.purger.Carver.Remove(t.Context(), wishOf(lv)); err != nil {
				t.Fatal(err)
			}
			if h.isThere(1) == h.isThere(7) {
				t.Fatalf("%s, given up at step %d: it is there twice or not at all", mode, n)
			}
			if _, err := h.book.Get(volumetest.ID(7)); !errors.Is(err, ledger.ErrNotFound) {
				t.Fatalf("%s, given up at step %d: the ledger has it: %v", mode, n, err)
			}
		}
	}
}

// change changes what the ledger has of the left-over.
func (h *purgeHost) change(change func(*ledger.Entry)) {
	h.t.Helper()
	e, err := h.book.Get(volumetest.ID(1))
	if err != nil {
		h.t.Fatal(err)
	}
	change(&e)
	// What would be refused of one that goes on is as it was from its beginning.
	if err := h.book.Remove(e.UID); err != nil {
		h.t.Fatal(err)
	}
	if err := h.book.Put(e); err != nil {
		h.t.Fatal(err)
	}
}

// wantNotAdopted looks whether the left-over is as it was after a refusal.
func (h *purgeHost) wantNotAdopted(lv *v1alpha1.LocalVolume, says string, want error) {
	h.t.Helper()
	before := h.book.All()
	_, err := h.adopt(lv)
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		h.t.Fatalf("it is %v, want %v that says %q", err, want, says)
	}
	if !h.isThere(1) || h.isThere(7) || len(h.book.All()) != len(before) {
		h.t.Fatalf("a refusal has changed something: %+v", h.book.All())
	}
}

// The worst that could happen: two have one volume.
func TestAdoptLeftOverThatHasAnOwner(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for _, known := range []bool{true, false} {
			h := newPurgeHost(t, mode)
			h.leave(1, known)
			lv := h.adoption()
			for owner, object := range ownersOf(t, h) {
				h.create(object.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
				h.wantNotAdopted(lv, owner, volume.ErrNotAdoptable)
				h.remove(object)
			}
			other := lv.DeepCopy()
			other.Name, other.UID, other.ResourceVersion = "other", types.UID(volumetest.ID(8)), ""
			h.create(other)
			h.wantNotAdopted(lv, "LocalVolume other, which asks to adopt it", volume.ErrNotAdoptable)
			h.remove(other)

			h.away = errors.New("the API server is away")
			_, err := h.adopt(lv)
			if errors.Is(err, volume.ErrNotAdoptable) || !errors.Is(err, h.away) || h.isThere(7) {
				t.Fatalf("without the API server: %v", err)
			}
			h.away = nil
			h.wantAdopted(lv, "with no owner")
		}
	}
}

func TestAdoptLeftOverRefused(t *testing.T) {
	t.Parallel()
	spec := func(change func(*v1alpha1.LocalVolumeSpec)) func(*v1alpha1.LocalVolume) {
		return func(lv *v1alpha1.LocalVolume) { change(&lv.Spec) }
	}
	for name, test := range map[string]struct {
		mode    volume.Mode
		mutate  func(*v1alpha1.LocalVolume)
		prepare func(h *purgeHost)
		want    error
		says    string
	}{
		"another one": {
			mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Adopt.LeftOver.Identity += "x" }), says: "named is",
		},
		"its own name":    {mutate: func(lv *v1alpha1.LocalVolume) { lv.Name = "pvc-1" }, says: "needs another name"},
		"held":            {prepare: func(h *purgeHost) { h.memory.Hold(volumetest.ID(1)) }, says: "in use"},
		"in a quarantine": {prepare: func(h *purgeHost) { h.tend(h.request(1)) }, says: "asked to purge it"},
		"being deleted":   {prepare: func(h *purgeHost) { h.change(func(e *ledger.Entry) { e.State = ledger.Deleting }) }, says: "deletion has begun"},
		"at work": {
			prepare: func(h *purgeHost) { h.purger.Carver.Locks.TryLock("pvc-1") }, want: errAtWork, says: "volume pvc-1",
		},
		"adopted by what the ledger knows": {prepare: func(h *purgeHost) {
			h.record(6, func(e *ledger.Entry) {
				e.State, e.LeftOver = ledger.Carving, &ledger.LeftOver{UID: volumetest.ID(1), Identity: "x"}
			})
		}, says: "adoption as volume pvc-6"},
		"encrypted": {mode: volume.ModeLVM, prepare: func(h *purgeHost) {
			h.change(func(e *ledger.Entry) {
				e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, UUID: volumetest.ID(1), Seal: ledger.Unsealed}
			})
		}, says: "it is encrypted"},
		"of another filesystem": {
			mode: volume.ModeLVM, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.FSType = "xfs" }), says: "ext4 is on it, and spec.fsType is xfs",
		},
		"as a raw volume": {
			mode: volume.ModeLVM, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.FSType, s.VolumeMode = "", v1alpha1.VolumeBlock }), says: "it was of volumeMode Filesystem",
		},
		"published": {mode: volume.ModeLVM, prepare: func(h *purgeHost) {
			h.change(func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" })
			h.mounts = []string{"/var/lib/kubelet/x"}
		}, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.FSType, s.VolumeMode = "", v1alpha1.VolumeBlock }), says: "published at"},
		"to a path": {
			mode: volume.ModeHostpath, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Directory = "shop/db" }), want: volume.ErrInvalid, says: "names nothing else",
		},
		"with a directory": {
			mode: volume.ModeHostpath, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Adopt.Directory = "/srv/x" }), want: volume.ErrInvalid, says: "names nothing else",
		},
		"to be encrypted": {
			mode: volume.ModeLVM, mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Encryption = v1alpha1.EncryptionLUKS2 }), want: volume.ErrInvalid, says: "names nothing else",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, mode := range purgeModes {
				if test.mode != "" && mode != test.mode {
					continue
				}
				h := newPurgeHost(t, mode)
				h.leave(1, true)
				if test.prepare != nil {
					test.prepare(h)
				}
				mutate := test.mutate
				if mutate == nil {
					mutate = func(*v1alpha1.LocalVolume) {}
				}
				want := test.want
				if want == nil {
					want = volume.ErrNotAdoptable
				}
				h.wantNotAdopted(h.adoption(mutate), test.says, want)
			}
		})
	}
}

// What is asked to be adopted is not purged, nor what is being adopted.
func TestPurgeKeepsWhatIsAdopted(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	req := h.request(1)
	lv := h.adoption()
	h.want(req, v1alpha1.PurgeRefused, "LocalVolume again, which asks to adopt it")
	h.killer.arm(2) // what is meant is in the ledger
	if _, err := h.adopt(lv); err == nil {
		t.Fatal("it was not killed")
	}
	h.start()
	h.remove(lv) // its finalizer was taken away by force
	h.want(req, v1alpha1.PurgeRefused, "its adoption as volume again")
	h.wantKept(1)
}

// What began as a copy stays one: another volume may have a filesystem of its UUID.
func TestAdoptLeftOverKeepsWhatTheLedgerKnew(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	h.change(func(e *ledger.Entry) { e.Copied = true })
	if got := h.wantAdopted(h.adoption(), "a copy"); !got.Copied {
		t.Error("it is no copy any more, whose filesystem another one may have, too")
	}
}

// keptLeftOvers are not to be had.
type keptLeftOvers struct {
	LeftOvers

	why error
}

func (k keptLeftOvers) Adoptable(context.Context, volume.Backend, Wish) (ledger.Entry, func(), error) {
	return ledger.Entry{}, nil, k.why
}

// TestAdoptionIsNotLookedAtAllTheTime: each look at a left-over reads all PersistentVolumes, and in a
// pool something happens every moment.
func TestAdoptionIsNotLookedAtAllTheTime(t *testing.T) {
	t.Parallel()
	for why, says := range map[error]struct {
		status metav1.ConditionStatus
		reason string
	}{
		fmt.Errorf("%w: %w", volume.ErrNotAdoptable, volume.ErrInUse): {metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable},
		fmt.Errorf("somebody looks at it: %w", volume.ErrBusy):        {metav1.ConditionUnknown, v1alpha1.ReasonInProgress},
	} {
		h := adoptKept(t, why)
		h.wantCondition(says.status, says.reason)
	}
}

func adoptKept(t *testing.T, why error) *host {
	t.Helper()
	from := &v1alpha1.AdoptedLeftOver{UID: volumetest.ID(8)}
	lv := localVolume(func(lv *v1alpha1.LocalVolume) { lv.Spec.Adopt = &v1alpha1.Adoption{LeftOver: from} })
	h := newHost(t, volume.ModeLVM)
	h.agent.Carver.LeftOvers = keptLeftOvers{why: why}
	if _, err := h.memory.Create(t.Context(), volume.Spec{ID: from.UID, Name: "pvc-8", SizeBytes: mib, Access: volume.AccessFilesystem}); err != nil {
		t.Fatal(err)
	}
	exam, err := h.memory.Examine(t.Context(), from.UID)
	if err != nil {
		t.Fatal(err)
	}
	from.Identity = exam.Identity
	if err := h.api.Create(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
	result, err := h.agent.ReconcileLive(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: lvName}})
	if waiting := h.agent.takeWaiting(); err != nil || result.RequeueAfter != purgeInterval || len(waiting) > 0 {
		t.Errorf("it is looked at again in %v, %v, and when something happens: %v", result.RequeueAfter, err, waiting)
	}
	return h
}
