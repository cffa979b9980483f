// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// purgeHost is a node with left-overs: what outlives the agent's process.
type purgeHost struct {
	t         *testing.T
	mode      volume.Mode
	killer    *killer
	memory    *volumetest.Memory
	api       client.WithWatch
	ledgerDir string
	purgeDir  string
	mounts    []string
	// away is why the API server cannot be asked.
	away error

	purger *Purger
	book   *ledger.Ledger
}

func newPurgeHost(t *testing.T, mode volume.Mode) *purgeHost {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	contents := schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContent"}
	scheme.AddKnownTypeWithName(contents, &unstructured.Unstructured{})
	contents.Kind += "List"
	scheme.AddKnownTypeWithName(contents, &unstructured.UnstructuredList{})
	h := &purgeHost{
		t: t, mode: mode, killer: &killer{left: -1}, ledgerDir: t.TempDir(), purgeDir: t.TempDir(),
		memory: volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), Mode: mode, TotalBytes: 64 * mib}),
		api:    fake.NewClientBuilder().WithScheme(scheme).Build(),
	}
	h.memory.SetHook(func(context.Context, volumetest.Step) error { return h.killer.step() })
	h.start()
	return h
}

// start begins a process over what the last one left.
func (h *purgeHost) start() {
	h.t.Helper()
	h.killer.arm(-1)
	var err error
	if h.book, err = ledger.Open(h.ledgerDir); err != nil {
		h.t.Fatal(err)
	}
	backends := NewBackends(nil)
	backends.Set(PoolBackend{Name: "fast", Mode: h.mode, Backend: h.memory})
	backends.SetSynced()
	h.purger, err = NewPurger(PurgeOptions{
		Live: interceptor.NewClient(h.api, interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if h.away != nil {
					return h.away
				}
				return c.List(ctx, list, opts...)
			},
		}),
		Carver: &Carver{Journal: killableJournal{h.book, h.killer}, Backends: backends, Mounts: h, MachineID: machine, Locks: &Locks{}},
		Ledger: h.book, Directory: h.purgeDir, Filesystems: h, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.purger.records.step = h.killer.step
}

// MountsOf implements Filesystems.
func (h *purgeHost) MountsOf(context.Context, string) ([]string, error) { return h.mounts, nil }

// Inspect implements Filesystems.
func (h *purgeHost) Inspect(context.Context, string) (mount.Superblock, error) {
	return mount.Superblock{FSType: "ext4", Label: "orders", UUID: "fs-uuid", Made: time.Unix(1, 0), Written: time.Unix(60, 0)}, nil
}

// leave makes the volume that no object stands for, known to the node's ledger or not.
func (h *purgeHost) leave(i int, known bool) {
	h.t.Helper()
	rec, err := h.memory.Create(h.t.Context(), volume.Spec{ID: volumetest.ID(i), Name: fmt.Sprintf("pvc-%d", i), SizeBytes: mib, Access: volume.AccessFilesystem, Claim: "shop/orders"})
	if err != nil {
		h.t.Fatal(err)
	}
	if known {
		h.record(i, func(e *ledger.Entry) { e.Record = &rec })
	}
}

// record writes an entry of the ledger.
func (h *purgeHost) record(i int, change func(*ledger.Entry)) {
	h.t.Helper()
	e := ledger.Entry{
		UID: volumetest.ID(i), Name: fmt.Sprintf("pvc-%d", i), MachineID: machine, State: ledger.Ready, Mode: h.mode, Pool: "fast",
		Access: volume.AccessFilesystem, Wipe: volume.WipeDiscard,
	}
	if h.mode == volume.ModeLVM {
		e.FSType, e.FSUUID = "ext4", e.UID
	}
	change(&e)
	if err := h.book.Put(e); err != nil {
		h.t.Fatal(err)
	}
}

// request names a volume as the Pool's status shows it.
func (h *purgeHost) request(i int) v1alpha1.PurgeRequest {
	h.t.Helper()
	e, err := h.memory.Examine(h.t.Context(), volumetest.ID(i))
	if err != nil {
		h.t.Fatal(err)
	}
	return v1alpha1.PurgeRequest{UID: volumetest.ID(i), Kind: v1alpha1.LeftOverVolume, Identity: e.Identity}
}

// tend is one look of the agent at what is asked for, a while after the last one.
func (h *purgeHost) tend(requests ...v1alpha1.PurgeRequest) []v1alpha1.PurgeStatus {
	h.t.Helper()
	h.purger.looks = map[string]purgeLook{}
	place := PurgePlace{PoolSet: "fast", Mode: h.mode, Backend: h.memory, Again: func() {}}
	all, _ := h.purger.Tend(h.t.Context(), place, requests)
	return all
}

// want is a look at one request, which must end so. The volume is there, or it is Purged.
func (h *purgeHost) want(req v1alpha1.PurgeRequest, state v1alpha1.PurgeState, says string) v1alpha1.PurgeStatus {
	h.t.Helper()
	got := h.tend(req)
	if len(got) != 1 || got[0].UID != req.UID || got[0].State != state || !strings.Contains(got[0].Message, says) {
		h.t.Fatalf("it is %+v, want %s with %q", got, state, says)
	}
	return got[0]
}

func (h *purgeHost) isThere(i int) bool {
	h.t.Helper()
	found, err := h.memory.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range found {
		if f.ID == volumetest.ID(i) {
			return true
		}
	}
	return false
}

func (h *purgeHost) wantKept(numbers ...int) {
	h.t.Helper()
	for _, i := range numbers {
		if !h.isThere(i) {
			h.t.Fatalf("volume %d is gone", i)
		}
	}
}

func (h *purgeHost) create(objects ...client.Object) {
	h.t.Helper()
	for _, o := range objects {
		if err := h.api.Create(h.t.Context(), o); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *purgeHost) remove(objects ...client.Object) {
	h.t.Helper()
	for _, o := range objects {
		if err := h.api.Delete(h.t.Context(), o); err != nil {
			h.t.Fatal(err)
		}
	}
}

var purgeModes = []volume.Mode{volume.ModeLVM, volume.ModeHostpath}

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

// The kind of a request is the API server's to check, and the agent's.
func TestPurgeOfOtherKinds(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	for _, kind := range []v1alpha1.LeftOverKind{v1alpha1.LeftOverSnapshot, v1alpha1.LeftOverDirectory, ""} {
		req := h.request(1)
		req.Kind = kind
		h.want(req, v1alpha1.PurgeRefused, "cannot be purged")
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

func TestPurgeRecordsThatAreDamaged(t *testing.T) {
	t.Parallel()
	h := newPurgeHost(t, volume.ModeLVM)
	h.leave(1, true)
	req := h.request(1)
	req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
	path := filepath.Join(h.purgeDir, volumetest.ID(1)+".json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"cut":                strings.TrimSuffix(string(good), "}\n"),
		"of another":         strings.Replace(string(good), volumetest.ID(1), volumetest.ID(2), 1),
		"of a newer version": strings.Replace(string(good), `"schemaVersion": 1`, `"schemaVersion": 2`, 1),
		"without a token":    strings.Replace(string(good), req.Confirm, "", 1),
		"more than it was":   strings.Replace(string(good), `"Quarantined"`, `"Purging"`, 1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.want(req, v1alpha1.PurgeRefused, "damaged")
		if h.purger.Quarantined(volumetest.ID(1)) {
			t.Errorf("%s: it is a quarantine", name)
		}
	}
	// What was written on another machine orders nothing here.
	if err := os.WriteFile(path, []byte(strings.Replace(string(good), machine, "another-machine", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.want(req, v1alpha1.PurgeRefused, "another-machine")
	h.wantKept(1)
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

// What is read as an order to remove something is written again as the same.
func FuzzDecodePurgeRecord(f *testing.F) {
	const head = `{"schemaVersion":1,"uid":"00000000-0000-4000-8000-000000000001","kind":"Volume","identity":"vg/lv","poolSet":"fast","machineID":"m","names":["pvc-1"],"token":"t","since":"2026-01-01T00:00:00Z","holds":"",`
	f.Add([]byte(head + `"state":"Quarantined"}`))
	f.Add([]byte(head + `"state":"Purging","storage":{"mode":"lvm","sizeBytes":1,"lvm":{"vgName":"a","vgUUID":"b","lvName":"c","lvUUID":"d"}},"wipe":"zero"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodePurgeRecord(data)
		if err != nil {
			return
		}
		d, err := openPurgeRecords(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := d.put(nil, r); err != nil {
			t.Fatalf("accepted and not writable: %v", err)
		}
		again, err := openPurgeRecords(d.dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.get(r.UID)
		if err != nil || got == nil || got.State != r.State || got.Token != r.Token || got.Identity != r.Identity {
			t.Fatalf("read again as %+v, %v; it was %+v", got, err, r)
		}
	})
}
