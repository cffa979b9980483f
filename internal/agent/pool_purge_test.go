// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// unformatted are filesystems of a host that has none.
type unformatted struct{ mountedAt }

func (unformatted) Inspect(context.Context, string) (mount.Superblock, error) {
	return mount.Superblock{}, mount.ErrNoFilesystem
}

// purges lets the agent purge, on a cluster that knows nothing of snapshots.
func (h *poolHost) purges() {
	h.t.Helper()
	live := interceptor.NewClient(h.api, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*unstructured.UnstructuredList); ok {
				// As the API server says of a kind that nobody has defined.
				return apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{}, "", "", 0, true)
			}
			return c.List(ctx, list, opts...)
		},
	})
	purger, err := NewPurger(PurgeOptions{
		Live: live, Ledger: h.pools.Ledger, Directory: h.t.TempDir(), Filesystems: unformatted{}, Log: slog.New(slog.DiscardHandler),
		Carver: &Carver{Journal: h.pools.Ledger, Backends: h.backends, Mounts: unformatted{}, MachineID: machine, Locks: &Locks{}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.pools.Purger = purger
}

func (h *poolHost) ask(requests ...v1alpha1.PurgeRequest) {
	h.t.Helper()
	pool := h.pool()
	pool.Spec.Purge = requests
	if err := h.api.Update(h.t.Context(), pool); err != nil {
		h.t.Fatal(err)
	}
}

// leave makes a volume that nobody wants, and returns what names it.
func (h *poolHost) leave(m *volumetest.Memory) v1alpha1.PurgeRequest {
	h.t.Helper()
	if _, err := m.Create(h.t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: mib, Access: volume.AccessBlock}); err != nil {
		h.t.Fatal(err)
	}
	e, err := m.Examine(h.t.Context(), volumetest.ID(1))
	if err != nil {
		h.t.Fatal(err)
	}
	return v1alpha1.PurgeRequest{UID: volumetest.ID(1), Kind: v1alpha1.LeftOverVolume, Identity: e.Identity}
}

// What is asked for on the Pool is done, said there and announced, and not told any longer.
func TestPoolPurges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const of = " of *v1alpha1.Pool: " + "00000000-0000-4000-8000-000000000001 "
		h := newPoolHost(t, "a")
		defer func() { h.stop(); synctest.Wait() }()
		h.purges()
		h.apply(poolSet())
		h.settle()
		h.news.expect(t, "Normal DiskJoined", "Normal PoolReady")
		memory := h.memory(h.pool().Status.VGUUID)
		req := h.leave(memory)
		h.lookAgain(leftOverInterval)
		h.lookAgain(leftOverGrace)
		if l := h.pool().Status.LeftOvers; len(l) != 1 || l[0].Identity != req.Identity || l[0].Name != "pvc-1" {
			t.Fatalf("told %+v", l)
		}
		state := func() v1alpha1.PurgeStatus {
			t.Helper()
			all := h.pool().Status.Purges
			if len(all) != 1 || all[0].UID != req.UID {
				t.Fatalf("the purges are %+v", all)
			}
			return all[0]
		}

		h.ask(req)
		if wait := h.lookAgain(0); wait > purgeInterval || wait == 0 {
			t.Errorf("it is looked at again in %s", wait)
		}
		quarantine := state()
		if quarantine.State != v1alpha1.PurgeQuarantined {
			t.Fatalf("it is %+v", quarantine)
		}
		h.news.expect(t, "Warning LeftOverQuarantined"+of)
		h.writes = 0
		h.lookAgain(purgeInterval)
		if h.writes > 0 {
			t.Errorf("%d writes of a quarantine that goes on", h.writes)
		}

		req.Confirm = quarantine.Token
		h.ask(req)
		h.lookAgain(0)
		if s := state(); s.State != v1alpha1.PurgePurged || len(h.leftOvers()) != 0 {
			t.Errorf("it is %+v; left over are %s", s, h.leftOvers())
		}
		h.news.expect(t, "Normal LeftOverPurged"+of)
		if found, err := memory.List(t.Context()); err != nil || len(found) != 0 {
			t.Errorf("in the pool are %v, %v", found, err)
		}
		other := req
		other.UID, other.Confirm = volumetest.ID(2), ""
		h.ask(other)
		h.lookAgain(0)
		h.news.expect(t, "Warning PurgeRefused")
		h.ask()
		h.lookAgain(0)
		if p := h.pool(); p.Status.Purges != nil {
			t.Errorf("the purges are %+v after they were withdrawn", p.Status.Purges)
		}
	})
}

// A Pool that is deleted waits for its left-overs, and they can be purged.
func TestPoolThatIsDeletedPurges(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.purges()
	h.apply(poolSet())
	h.settle()
	memory := h.memory(h.pool().Status.VGUUID)
	req := h.leave(memory)
	h.deleteSet()
	h.deletePool()
	h.settle()
	h.ask(req)
	h.settle()
	all := h.pool().Status.Purges
	if i := slices.IndexFunc(all, func(s v1alpha1.PurgeStatus) bool { return s.State == v1alpha1.PurgeQuarantined }); i != 0 {
		t.Fatalf("the purges are %+v", all)
	}
	req.Confirm = all[0].Token
	h.ask(req)
	h.settle()
	if p := h.pool(); p != nil {
		t.Errorf("the pool is there still: %+v", p.Status)
	}
	if found, err := memory.List(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("in the pool are %v, %v", found, err)
	}
}
