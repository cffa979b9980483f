// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// ownersOf are the objects that each keep volume 1 from being purged, and how they are called.
func ownersOf(t *testing.T, h *purgeHost) map[string]client.Object {
	t.Helper()
	lv := func(name, uid string) *v1alpha1.LocalVolume {
		return &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Mode: v1alpha1.Mode(h.mode), Pool: "fast"}}
	}
	exam, err := h.memory.Examine(t.Context(), volumetest.ID(1))
	if err != nil {
		t.Fatal(err)
	}
	adopted := lv("adopted", volumetest.ID(8))
	setRecord(&adopted.Status, exam.Record)
	elsewhere := lv("pvc-1", volumetest.ID(8))
	elsewhere.Spec.NodeName = "n2"
	copying := lv("copy", volumetest.ID(8))
	copying.Spec.Source = &v1alpha1.VolumeSource{Kind: v1alpha1.SourceVolume, Name: "pvc-1", UID: types.UID(volumetest.ID(1))}
	pv := func(name string, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source}}
	}
	content := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
		"driver": v1alpha1.DriverName, "source": map[string]any{"volumeHandle": "pvc-1"},
	}}}
	content.SetGroupVersionKind(schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContent"})
	content.SetName("content")
	owners := map[string]client.Object{
		"LocalVolume pvc-back":     lv("pvc-back", volumetest.ID(1)),
		"LocalVolume pvc-1":        elsewhere,
		"LocalVolume adopted":      adopted,
		"LocalVolume copy":         copying,
		"PersistentVolume by-hand": pv("by-hand", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: "pvc-1"}}),
		"LocalSnapshot of-it": &v1alpha1.LocalSnapshot{
			ObjectMeta: metav1.ObjectMeta{Name: "of-it", UID: types.UID(volumetest.ID(8))},
			Spec:       v1alpha1.LocalSnapshotSpec{NodeName: "n1", Pool: "fast", VolumeName: "pvc-1", VolumeUID: types.UID(volumetest.ID(1))},
		},
		"VolumeSnapshotContent content": content,
	}
	if h.mode == volume.ModeHostpath {
		dir := filepath.Join(exam.Record.Hostpath.Root, exam.Record.Hostpath.Directory)
		owners["PersistentVolume local"] = pv("local", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir + "/sub"}})
		// The root is below a link, and this names the real path.
		owners["PersistentVolume linked"] = pv("linked", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/var/srv/dirs/volumes/" + volumetest.ID(1)}})
		owners["PersistentVolume path"] = pv("path", corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir + "/"}})
	}
	return owners
}

// The worst that could happen: something goes that was somebody's.
func TestPurgeKeepsWhatHasAnOwner(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for _, known := range []bool{true, false} {
			h := newPurgeHost(t, mode)
			h.leave(1, known)
			req := h.request(1)
			for owner, object := range ownersOf(t, h) {
				// Before it is asked for.
				h.create(object.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
				h.want(req, v1alpha1.PurgeRefused, owner)
				h.remove(object)
				// Between the phases, with the confirmation given.
				confirmed := req
				confirmed.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
				h.create(object.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
				h.want(confirmed, v1alpha1.PurgeRefused, owner)
				h.want(confirmed, v1alpha1.PurgeRefused, owner)
				// When the owner is gone again, the confirmation is of a quarantine that has ended.
				h.remove(object)
				if again := h.want(confirmed, v1alpha1.PurgeQuarantined, "another quarantine"); again.Token == confirmed.Confirm {
					t.Fatalf("%s: the token is the same", owner)
				}
				h.wantKept(1)
				h.tend()
			}
		}
	}
}

func TestPurgeNeedsBothPhases(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		for _, known := range []bool{true, false} {
			h := newPurgeHost(t, mode)
			h.leave(1, known)
			h.leave(2, true)
			req := h.request(1)
			first := h.want(req, v1alpha1.PurgeQuarantined, "confirmed by the token")
			if first.Since.IsZero() || first.Token == "" || !strings.Contains(first.Holds, "pvc-1, of claim shop/orders, 1 MiB") {
				t.Fatalf("the quarantine is %+v", first)
			}
			if mode == volume.ModeLVM && !strings.Contains(first.Holds, `ext4 "orders" (fs-uuid) made 1970-01-01T00:00:01Z and last mounted or unmounted 1970-01-01T00:01:00Z`) {
				t.Errorf("it holds %s", first.Holds)
			}
			h.start()
			if again := h.want(req, v1alpha1.PurgeQuarantined, ""); again.Token != first.Token || !again.Since.Equal(first.Since) {
				t.Fatalf("another process has the quarantine %+v, the first had %+v", again, first)
			}
			for _, wrong := range []string{"x", strings.ToUpper(first.Token), first.Token[1:], first.Token + " "} {
				req.Confirm = wrong
				h.want(req, v1alpha1.PurgeQuarantined, "another quarantine")
			}
			h.wantKept(1, 2)
			req.Confirm = first.Token
			policy := "wipe policy zero" // what nobody knows the policy of
			if known {
				policy = "wipe policy discard"
			}
			for range 2 {
				h.want(req, v1alpha1.PurgePurged, policy)
			}
			if h.isThere(1) {
				t.Fatal("it is there still")
			}
			if _, err := h.book.Get(volumetest.ID(1)); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("the ledger has it: %v", err)
			}
			h.wantKept(2)
			// Somebody takes the request back, and an etcd that is restored has it again.
			h.tend()
			h.want(req, v1alpha1.PurgeRefused, "not found")
			h.leave(1, false)
			h.want(req, v1alpha1.PurgeRefused, "another one than was named")
			h.wantKept(1, 2)
		}
	}
}

// An etcd that is restored to an hour ago has a request, with its confirmation, that was
// withdrawn since.
func TestPurgeConfirmedByARestoredEtcd(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	old := h.request(1)
	old.Confirm = h.want(old, v1alpha1.PurgeQuarantined, "").Token
	h.tend() // withdrawn: the volume got an owner, of which the restored etcd knows nothing
	for range 3 {
		h.want(old, v1alpha1.PurgeQuarantined, "another quarantine")
		h.start()
	}
	h.wantKept(1)
}

func TestPurgeKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	for _, mode := range purgeModes {
		h := newPurgeHost(t, mode)
		h.leave(1, true)
		req := h.request(1)
		release := h.memory.Hold(volumetest.ID(1))
		h.want(req, v1alpha1.PurgeRefused, "in use")
		release()
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
		release = h.memory.Hold(volumetest.ID(1))
		h.want(req, v1alpha1.PurgeRefused, "the quarantine since")
		release()
		h.want(req, v1alpha1.PurgeQuarantined, "another quarantine")
		h.wantKept(1)
	}
	// A raw device that a pod has, and does not read right now. The ledger does not know it.
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, false)
	req := h.request(1)
	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
	h.mounts = []string{"/var/lib/kubelet/x"}
	h.want(req, v1alpha1.PurgeRefused, "published at /var/lib/kubelet/x")
	h.wantKept(1)
}

func TestPurgeKeepsWhatIsAnother(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		known  bool
		change func(h *purgeHost)
		says   string
	}{
		"it was made anew": {change: func(h *purgeHost) {
			if err := h.memory.Delete(h.t.Context(), volumetest.ID(1), nil, volume.WipeNone); err != nil {
				h.t.Fatal(err)
			}
			h.leave(1, false)
		}, says: "another one than was named"},
		"it was exchanged": {change: func(h *purgeHost) { h.memory.Tamper(volumetest.ID(1)) }, says: "another one than was named"},
		"it is gone": {change: func(h *purgeHost) {
			if err := h.memory.Delete(h.t.Context(), volumetest.ID(1), nil, volume.WipeNone); err != nil {
				h.t.Fatal(err)
			}
		}, says: "not found"},
		"the ledger names other storage": {change: func(h *purgeHost) {
			h.record(1, func(e *ledger.Entry) {
				e.Record = &volume.Record{Mode: volume.ModeLVM, SizeBytes: mib, LVM: &volume.LVMRecord{VGName: "memory", VGUUID: "memory-vg", LVName: e.UID, LVUUID: "other"}}
			})
		}, says: "other storage"},
		"the ledger has it on another machine": {change: func(h *purgeHost) {
			h.record(1, func(e *ledger.Entry) { e.MachineID, e.State = "other", ledger.Carving })
		}, says: "machine other"},
		"the ledger has it in another pool": {change: func(h *purgeHost) {
			h.record(1, func(e *ledger.Entry) { e.Pool, e.State = "slow", ledger.Carving })
		}, says: `pool "slow"`},
		"its deletion has begun": {known: true, change: func(h *purgeHost) {
			e, err := h.book.Get(volumetest.ID(1))
			if err != nil {
				h.t.Fatal(err)
			}
			e.State = ledger.Deleting
			if err := h.book.Put(e); err != nil {
				h.t.Fatal(err)
			}
		}, says: "deletion has begun"},
		"the ledger cannot be read": {known: true, change: func(h *purgeHost) {
			if err := os.WriteFile(filepath.Join(h.ledgerDir, volumetest.ID(1)+".json"), []byte("{"), 0o600); err != nil {
				h.t.Fatal(err)
			}
			h.start()
		}, says: "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPurgeHost(t, volume.ModeLVM)
			h.leave(1, tc.known)
			h.leave(2, true)
			req := h.request(1)
			req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
			tc.change(h)
			there := h.isThere(1)
			for range 2 {
				h.want(req, v1alpha1.PurgeRefused, tc.says)
			}
			if h.isThere(1) != there {
				t.Error("it was removed")
			}
			h.wantKept(2)
		})
	}
}

// What cannot be asked or seen is no answer, and ends no quarantine.
func TestPurgeWaitsForWhatItCannotSee(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	req := h.request(1)
	h.away = errors.New("the API server is away")
	h.want(req, v1alpha1.PurgeWaiting, "is away")
	h.away = nil
	first := h.want(req, v1alpha1.PurgeQuarantined, "")
	req.Confirm = first.Token
	h.away = errors.New("the API server is away")
	h.want(req, v1alpha1.PurgeWaiting, "is away")
	h.away = nil
	h.memory.Blind(errors.New("the disk does not answer"))
	h.want(req, v1alpha1.PurgeWaiting, "does not answer")
	h.memory.Blind(nil)
	h.wantKept(1)
	h.want(req, v1alpha1.PurgePurged, "")
}

// A look is not repeated at once, for it reads all PersistentVolumes; but what is asked anew, is
// confirmed, or was withdrawn, is looked at.
func TestPurgeIsNotLookedAtAllTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPurgeHost(t, volume.ModeLVM)
		h.leave(1, true)
		req := h.request(1)
		place := PurgePlace{PoolSet: "fast", Mode: h.mode, Backend: h.memory, Again: func() {}}
		want := func(state v1alpha1.PurgeState, requests ...v1alpha1.PurgeRequest) (token string) {
			t.Helper()
			all, wait := h.purger.Tend(t.Context(), place, requests)
			if len(all) != len(requests) || len(all) > 0 && (all[0].State != state || wait != purgeInterval) {
				t.Fatalf("it is %+v, again in %s; want %s", all, wait, state)
			}
			for _, s := range all {
				token = s.Token
			}
			return token
		}
		want(v1alpha1.PurgeQuarantined, req)
		h.away = errors.New("the API server is away")
		want(v1alpha1.PurgeQuarantined, req)
		time.Sleep(purgeInterval) //nolint:forbidigo // it is how the bubble's clock moves on
		want(v1alpha1.PurgeWaiting, req)
		h.away = nil
		want(v1alpha1.PurgeQuarantined, req)
		h.create(ownersOf(t, h)["PersistentVolume by-hand"])
		want(v1alpha1.PurgeQuarantined, req)
		confirmed := req
		confirmed.Confirm = "any"
		want(v1alpha1.PurgeRefused, confirmed)
		h.remove(ownersOf(t, h)["PersistentVolume by-hand"])
		want(v1alpha1.PurgeRefused, confirmed)
		want("")
		want(v1alpha1.PurgeQuarantined, confirmed)
		h.wantKept(1)
	})
}

// A removal that begins while an earlier look is under way has its record until it is done,
// whatever that look finds.
func TestPurgeThatBeginsDuringALook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPurgeHost(t, volume.ModeLVM)
		h.leave(1, true)
		req := h.request(1)
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
		staged, ok := h.purger.Carver.Locks.TryLock("pvc-1")
		if !ok {
			t.Fatal("the volume is locked")
		}
		h.want(req, v1alpha1.PurgePurging, "wiping") // as soon as the volume is let go
		wiped := make(chan struct{})
		wipe := sync.OnceFunc(func() { close(wiped) })
		defer wipe()
		h.memory.SetHook(func(context.Context, volumetest.Step) error { <-wiped; return nil })
		var looking atomic.Bool
		var release func()
		h.listing = func() {
			if looking.Swap(true) {
				return
			}
			staged()
			synctest.Wait()
			release = h.memory.Hold(volumetest.ID(1)) // by who wipes it
		}
		h.want(req, v1alpha1.PurgeWaiting, "in use")
		if rec, err := h.purger.records.get(volumetest.ID(1)); err != nil || rec == nil || rec.State != v1alpha1.PurgePurging {
			t.Errorf("while it is wiped its record is %+v, %v", rec, err)
		}
		release()
		wipe()
		synctest.Wait()
		h.want(req, v1alpha1.PurgePurged, "")
	})
}

// The kind of a request is the API server's to check, and the agent's.
func TestPurgeOfOtherKinds(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	for kind, says := range map[v1alpha1.LeftOverKind]string{
		v1alpha1.LeftOverSnapshot: "cannot be examined in its pool", v1alpha1.LeftOverDirectory: "cannot be purged", "": "cannot be purged",
	} {
		req := h.request(1)
		req.Kind = kind
		h.want(req, v1alpha1.PurgeRefused, says)
	}
	h.wantKept(1)
}

func TestPurgeRefusesWhatHasNoName(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	if _, err := h.memory.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), SizeBytes: mib, Access: volume.AccessBlock}); err != nil {
		t.Fatal(err)
	}
	h.want(h.request(1), v1alpha1.PurgeRefused, "what it was called is not known")
	h.wantKept(1)
}

// Of a name that the mark on the disk has a part of, each longer one may be the volume's.
func TestOwnerByThePartOfAName(t *testing.T) {
	t.Parallel()
	l := behind(volumetest.ID(1), []string{"pvc-1"}, true, nil)
	if !l.isCalled("pvc-1-and-more") || l.isCalled("pvc-") {
		t.Error("it is called by its prefix, and nothing else")
	}
	if l := behind(volumetest.ID(1), []string{"pvc-1"}, false, nil); l.isCalled("pvc-1-and-more") || l.isCalled("") || !l.isCalled("pvc-1") {
		t.Error("it is called by its whole name, and nothing else")
	}
}
