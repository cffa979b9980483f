// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// Killed at any step, the first phase never removes anything, and the second one ends what it
// has begun and touches nothing else.
func TestPurgeKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for _, known := range []bool{true, false} {
			for n, alive := 0, false; !alive; n++ {
				h := newPurgeHost(t, mode)
				h.leave(1, known)
				h.leave(2, true)
				h.leave(3, false)
				req := h.request(1)
				h.killer.arm(n)
				h.tend(req)
				alive = !h.killer.died()
				h.start()
				h.wantKept(1, 2, 3)

				req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
				h.killer.arm(n)
				h.tend(req)
				died := h.killer.died()
				alive = alive && !died
				h.start()
				h.memory.Reboot()
				h.want(req, v1alpha1.PurgePurged, "")
				if _, err := h.book.Get(volumetest.ID(1)); h.isThere(1) || !errors.Is(err, ledger.ErrNotFound) {
					t.Fatalf("killed at step %d: it is there still, or in the ledger: %v", n, err)
				}
				h.wantKept(2, 3)
				if alive && n < 5 {
					t.Errorf("only %d steps were tried", n)
				}

				// The withdrawal, too.
				h.killer.arm(n)
				h.tend()
				alive = alive && !h.killer.died()
				h.start()
				h.tend()
				if files, err := os.ReadDir(h.purgeDir); err != nil || len(files) > 0 {
					t.Fatalf("killed at step %d: records are left: %v, %v", n, files, err)
				}
			}
		}
	}
}

// What has begun is gone on with, but for an owner, or another thing at its place.
func TestPurgeThatHadBegun(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T, known bool) (*purgeHost, v1alpha1.PurgeRequest) {
		t.Helper()
		h := newPurgeHost(t, volume.ModeLVM)
		h.leave(1, known)
		req := h.request(1)
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
		h.memory.SetHook(func(context.Context, volumetest.Step) error { return errKilled })
		status := h.want(req, v1alpha1.PurgePurging, "has begun")
		if status.Token != "" {
			t.Error("there is nothing to confirm any more")
		}
		h.memory.SetHook(nil)
		h.start()
		return h, req
	}
	t.Run("withdrawn", func(t *testing.T) {
		t.Parallel()
		h, _ := begin(t, true)
		if got := h.tend(); len(got) != 1 || got[0].State != v1alpha1.PurgePurged || h.isThere(1) {
			t.Errorf("it is %+v", got)
		}
	})
	t.Run("asked for something else", func(t *testing.T) {
		t.Parallel()
		h, req := begin(t, true)
		req.Identity = "another"
		h.want(req, v1alpha1.PurgeWaiting, "is ended first")
	})
	t.Run("an owner", func(t *testing.T) {
		t.Parallel()
		h, req := begin(t, true)
		owner := ownersOf(t, h)["PersistentVolume by-hand"]
		h.create(owner)
		h.want(req, v1alpha1.PurgePurging, "it belongs to PersistentVolume by-hand")
		h.wantKept(1)
		h.remove(owner)
		h.want(req, v1alpha1.PurgePurged, "")
	})
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("another one, known %v", known), func(t *testing.T) {
			t.Parallel()
			h, req := begin(t, known)
			if err := h.memory.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeNone); err != nil {
				t.Fatal(err)
			}
			h.leave(1, false)
			h.want(req, v1alpha1.PurgePurging, "another one by now")
			h.wantKept(1)
		})
	}
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		h, req := begin(t, false)
		release := h.memory.Hold(volumetest.ID(1))
		h.want(req, v1alpha1.PurgePurging, "in use")
		release()
		h.mounts = []string{"/var/lib/kubelet/x"}
		h.want(req, v1alpha1.PurgePurging, "published at")
		h.wantKept(1)
	})
}

func TestPurgeOfARecord(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(2, true)
	h.record(1, func(e *ledger.Entry) { e.State = ledger.Carving })
	e, err := h.book.Get(volumetest.ID(1))
	if err != nil {
		t.Fatal(err)
	}
	req := v1alpha1.PurgeRequest{UID: e.UID, Kind: v1alpha1.LeftOverRecord, Identity: identityOfEntry(e)}
	for owner, object := range map[string]client.Object{
		"LocalVolume pvc-1": &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", UID: types.UID(volumetest.ID(1))}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1"}},
	} {
		h.create(object)
		h.want(req, v1alpha1.PurgeRefused, owner)
		h.remove(object)
	}
	other := req
	other.Identity = "entry 00"
	h.want(other, v1alpha1.PurgeRefused, "another one than was named")

	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
	h.leave(1, false) // its disk came back
	h.want(req, v1alpha1.PurgeRefused, "there is storage")
	if err := h.memory.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	h.memory.Blind(errors.New("the disk does not answer"))
	h.want(req, v1alpha1.PurgeWaiting, "does not answer")
	h.memory.Blind(nil)
	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "another quarantine").Token
	h.want(req, v1alpha1.PurgePurged, "removed from the node's ledger")
	if _, err := h.book.Get(e.UID); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the ledger has it: %v", err)
	}
	h.wantKept(2)
}

// A pod does not get what is in quarantine, and has it looked at again.
func TestQuarantinedVolumeIsNotHandedOut(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	volumes := &Volumes{
		Ledger: h.book, Backends: h.purger.Carver.Backends, MachineID: machine, Cache: h.api, CacheSynced: func() bool { return true }, Quarantined: h.purger.Quarantined,
	}
	if _, err := volumes.Locate(t.Context(), "pvc-1"); err != nil {
		t.Fatal(err)
	}
	req := h.request(1)
	h.want(req, v1alpha1.PurgeQuarantined, "")
	touched := 0
	h.purger.Carver.Backends.OnTouch(func(string) { touched++ })
	if _, err := volumes.Locate(t.Context(), "pvc-1"); !errors.Is(err, volume.ErrBusy) || touched != 1 || len(h.purger.looks) != 0 {
		t.Errorf("Locate = %v; touched %d times, looks %v", err, touched, h.purger.looks)
	}
	h.create(ownersOf(t, h)["PersistentVolume by-hand"])
	h.want(req, v1alpha1.PurgeRefused, "belongs to")
	if _, err := volumes.Locate(t.Context(), "pvc-1"); err != nil {
		t.Errorf("a volume that was let go: %v", err)
	}
}
