// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestWritesPerVolume(t *testing.T) {
	t.Parallel()
	for name, mutate := range kinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := localVolume(mutate)
			h := newHost(t, volume.Mode(lv.Spec.Mode), lv)
			h.settle()
			if h.writes != 1 {
				t.Errorf("%d writes for a creation, want 1", h.writes)
			}
			h.writes = 0
			for range 20 {
				if err := h.reconcile(); err != nil {
					t.Fatal(err)
				}
			}
			h.start()
			h.settle()
			if h.writes != 0 {
				t.Errorf("%d writes while nothing changed, want 0", h.writes)
			}
			h.delete()
			h.settle()
			if h.writes != 1 || h.get() != nil {
				t.Errorf("%d writes for a deletion, want 1", h.writes)
			}
			h.wantNothing()
		})
	}
}

// TestIdleDoesNotTouchTheDisks: what was verified once is not asked again.
func TestIdleDoesNotTouchTheDisks(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	h.memory.Blind(errors.New("the disks were asked"))
	h.start()
	h.settle()
	h.wantCondition(metav1.ConditionTrue, v1alpha1.ReasonCarved)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mutate func(*v1alpha1.LocalVolume)
		host   func(*host)
		reason string
	}{
		"too large":    {func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = 65 * mib }, nil, v1alpha1.ReasonNoSpace},
		"no such pool": {func(lv *v1alpha1.LocalVolume) { lv.Spec.Pool = "slow" }, nil, v1alpha1.ReasonPoolNotFound},
		"closed pool": {nil, func(h *host) {
			h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory, Closed: true})
		}, v1alpha1.ReasonPoolNotFound},
		"pool of a kind": {func(lv *v1alpha1.LocalVolume) { lv.Spec.Pool = "dirs" }, nil, v1alpha1.ReasonInvalid},
		"no mkfs":        {nil, func(h *host) { h.noMkfs = true }, v1alpha1.ReasonToolMissing},
		"size zero":      {func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = 0 }, nil, v1alpha1.ReasonInvalid},
		"unknown mode":   {func(lv *v1alpha1.LocalVolume) { lv.Spec.Mode = "tape" }, nil, v1alpha1.ReasonInvalid},
		"block on hostpath": {func(lv *v1alpha1.LocalVolume) {
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType, lv.Spec.VolumeMode = "hostpath", "dirs", "", "Block"
		}, nil, v1alpha1.ReasonInvalid},
		"kept of a logical volume": {func(lv *v1alpha1.LocalVolume) {
			lv.Spec.RetainFor = &metav1.Duration{Duration: time.Hour}
		}, nil, v1alpha1.ReasonInvalid},
		"directory of a logical volume": {func(lv *v1alpha1.LocalVolume) { lv.Spec.Directory = "shop/db" }, nil, v1alpha1.ReasonInvalid},
		"no filesystem":                 {func(lv *v1alpha1.LocalVolume) { lv.Spec.FSType = "" }, nil, v1alpha1.ReasonInvalid},
		"bad selector": {func(lv *v1alpha1.LocalVolume) {
			lv.Spec.Mode, lv.Spec.Pool, lv.Spec.DeviceSelector = "device", "", &v1alpha1.DeviceSelector{Serials: []string{"["}}
		}, nil, v1alpha1.ReasonInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lv := localVolume()
			if tc.mutate != nil {
				tc.mutate(lv)
			}
			h := newHost(t, volume.ModeLVM, lv)
			if tc.host != nil {
				tc.host(h)
			}
			h.settle()
			h.wantCondition(metav1.ConditionFalse, tc.reason)
			if !isFinal(h.get()) || h.writes != 1 {
				t.Errorf("final %v after %d writes", isFinal(h.get()), h.writes)
			}
			h.wantNothing()
			h.delete()
			h.settle()
			if h.get() != nil {
				t.Error("a refused volume cannot be deleted")
			}
		})
	}
}

func TestVolumeWaitsForItsPool(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.backends.OnChange(h.agent.PoolsChanged)
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Reason: "no disks yet"})
	h.settle()
	h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonPoolNotReady)
	h.agent.live.early = nil
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory})
	if len(h.agent.live.early) != 1 {
		t.Fatalf("nobody looks again at the volume: %v", h.agent.live.early)
	}
	h.settle()
	h.wantReady()
}

// TestNothingIsRefusedBeforeThePoolsAreKnown: an agent that has just started must not
// send volumes to other nodes, and does not write either.
func TestNothingIsRefusedBeforeThePoolsAreKnown(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.backends = NewBackends(h.memory)
	h.agent.Carver.Backends = h.backends
	h.settle()
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory, Closed: true, Reason: "it was not looked at yet"})
	h.settle()
	if h.writes != 0 {
		t.Errorf("%d writes: %+v", h.writes, h.get().Status)
	}
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory})
	h.backends.SetSynced()
	h.settle()
	h.wantReady()
}

func TestUnknownOutcomeIsNotARefusal(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.memory.Blind(errors.New("lvs hangs"))
	if err := h.reconcile(); err == nil {
		t.Error("no retry")
	}
	h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonFailed)
	if isFinal(h.get()) {
		t.Error("final")
	}
	h.memory.Blind(nil)
	h.settle()
	h.wantReady()
}

// Without lvm2 nobody can look whether anything was made, and nothing can have been.
func TestRefusalWithoutTheTool(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.memory.Blind(fmt.Errorf("lvm: %w", volume.ErrToolMissing))
	h.settle()
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonToolMissing)
	if !isFinal(h.get()) {
		t.Error("not final: the claim waits for a node that cannot make it")
	}
	h.delete()
	h.settle()
	if h.get() != nil {
		t.Error("a refused volume cannot be deleted")
	}
}

// A tool that was removed after the volume had begun proves nothing.
func TestNoRefusalWhenItHadBegun(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	h.wantReady()
	h.memory.Blind(fmt.Errorf("lvm: %w", volume.ErrToolMissing))
	h.delete()
	h.settle()
	if h.get() == nil {
		t.Fatal("the object of a volume that stands is gone")
	}
	h.memory.Blind(nil)
	h.settle()
	h.wantNothing()
}

func TestDeletionWaitsWhileInUse(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	release := h.memory.Hold(lvUID)
	h.delete()
	h.settle()
	h.wantCondition(metav1.ConditionUnknown, v1alpha1.ReasonInProgress)
	if len(h.list()) != 1 {
		t.Fatal("deleted under its user")
	}
	h.writes = 0
	h.settle()
	if h.writes != 0 {
		t.Errorf("%d writes while waiting", h.writes)
	}
	release()
	h.settle()
	if h.get() != nil {
		t.Error("still there after it was let go")
	}
	h.wantNothing()
}

// A raw block device that a pod has and does not read right now is held by nobody the
// kernel would name.
func TestDeletionWaitsWhilePublishedAsBlock(t *testing.T) {
	t.Parallel()
	lv := localVolume()
	lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, ""
	h := newHost(t, volume.ModeLVM, lv)
	h.settle()
	h.wantReady()
	h.mounts = []string{"/var/lib/kubelet/pods/p/volumeDevices/v"}
	h.delete()
	h.settle()
	if len(h.list()) != 1 {
		t.Fatal("deleted under its user")
	}
	if e, err := h.agent.Ledger.Get(lvUID); err != nil || e.State != ledger.Ready {
		t.Errorf("ledger %+v, %v", e, err)
	}
	h.mounts = nil
	h.settle()
	h.wantNothing()
}

func TestGrowth(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	grow := func(size int64) {
		t.Helper()
		lv := h.get()
		lv.Spec.SizeBytes = size
		lv.Generation++
		if err := h.api.Update(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
		h.writes = 0
		h.settle()
	}
	grow(16 * mib)
	lv := h.wantReady()
	if lv.Status.Capacity.Value() != 16*mib || h.writes != 1 || h.mkfs != 1 {
		t.Fatalf("capacity %v after %d writes, %d mkfs", lv.Status.Capacity, h.writes, h.mkfs)
	}
	if e, err := h.agent.Ledger.Get(lvUID); err != nil || e.Record.SizeBytes != 16*mib {
		t.Errorf("ledger %+v, %v", e, err)
	}

	grow(1 << 40)
	lv = h.get()
	c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeResized)
	if !isReady(lv) || c == nil || c.Status != metav1.ConditionFalse || c.Reason != v1alpha1.ReasonNoSpace {
		t.Errorf("ready %v, resized %+v", isReady(lv), c)
	}
	if lv.Status.Capacity.Value() != 16*mib || h.writes != 1 {
		t.Errorf("capacity %v after %d writes", lv.Status.Capacity, h.writes)
	}

	// The wish is taken back in part, and then as a whole.
	for _, size := range []int64{32 * mib, 1 << 40, 32 * mib} {
		grow(size)
		lv = h.get()
		if refused := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeResized) != nil; refused != (size == 1<<40) || lv.Status.Capacity.Value() != 32*mib || h.writes != 1 {
			t.Errorf("%d bytes asked for: refused %v, capacity %v after %d writes", size, refused, lv.Status.Capacity, h.writes)
		}
	}
}

func TestObjectWithoutFinalizerGetsItFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume(func(lv *v1alpha1.LocalVolume) { lv.Finalizers = nil }))
	if err := h.reconcile(); err != nil {
		t.Fatal(err)
	}
	h.wantNothing()
	if !controllerutil.ContainsFinalizer(h.get(), v1alpha1.AgentFinalizer) {
		t.Fatal("no finalizer")
	}
	h.settle()
	h.wantReady()
}

// TestStaleCacheWritesNothing: the object in the cache is the one before our own write.
func TestStaleCacheWritesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	before := h.get()
	if err := h.reconcile(); err != nil {
		t.Fatal(err)
	}
	// The live and the deletion controller both saw the old version.
	h.agent.written.wrote(h.get(), before.ResourceVersion)
	if !h.agent.written.isBehind(before) {
		t.Error("the version that was replaced is not known")
	}
	if h.agent.written.isBehind(h.get()) {
		t.Error("the version that was written is taken for old")
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, sentinel := range []error{volume.ErrNoSpace, ErrPoolNotFound, volume.ErrToolMissing, volume.ErrInvalid} {
		f := classify(sentinel)
		if f.status == metav1.ConditionFalse {
			t.Errorf("%v without proof became %+v", sentinel, f)
		}
		if f := classify(errors.Join(errRefused, sentinel)); f.status != metav1.ConditionFalse {
			t.Errorf("%v with proof became %+v", sentinel, f)
		}
	}
	if f := classify(ledger.ErrCorrupt); f.status != metav1.ConditionFalse || f.reason != v1alpha1.ReasonFailed {
		t.Errorf("damaged ledger became %+v", f)
	}
	if f := classify(errors.New("anything")); f.settled || f.status != metav1.ConditionUnknown {
		t.Errorf("an unknown error became %+v", f)
	}
}
