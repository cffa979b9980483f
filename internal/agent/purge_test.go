// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	t      *testing.T
	mode   volume.Mode
	killer *killer
	memory *volumetest.Memory
	// open returns the backend of a process that has just started; backend is that.
	open      func() volume.Backend
	backend   volume.Backend
	api       client.WithWatch
	ledgerDir string
	purgeDir  string
	mounts    []string
	// away is why the API server cannot be asked.
	away error
	// listing, if not nil, is called before it is asked.
	listing func()

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
	h.open = func() volume.Backend { return h.memory }
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
	h.backend = h.open()
	backends := NewBackends(nil)
	backends.Set(PoolBackend{Name: "fast", Mode: h.mode, Backend: h.backend})
	backends.SetSynced()
	h.purger, err = NewPurger(PurgeOptions{
		Live: interceptor.NewClient(h.api, interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if h.away != nil {
					return h.away
				}
				if h.listing != nil {
					h.listing()
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
	h.purger.Carver.LeftOvers = h.purger
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
	place := PurgePlace{PoolSet: "fast", Mode: h.mode, Backend: h.backend, Again: func() {}}
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
