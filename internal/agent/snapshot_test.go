// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	snapUID      = "00000000-0000-4000-8000-000000000005"
	snapName     = "snapshot-5"
	copyUID      = "00000000-0000-4000-8000-000000000003"
	copyName     = "pvc-3"
	otherMachine = "fedcba9876543210fedcba9876543210"
)

// copyHost is a node with a thin pool, volumes and snapshots.
type copyHost struct {
	*host

	vg        *lvmtest.VG
	backend   *lvm.Backend
	snapshots *SnapshotReconciler
}

func newCopyHost(t *testing.T, vg *lvmtest.VG, objects ...client.Object) *copyHost {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	h := &copyHost{
		host: &host{
			t: t, killer: &killer{left: -1}, ledgerDir: t.TempDir(), machineID: machine,
			api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
				WithStatusSubresource(&v1alpha1.LocalVolume{}, &v1alpha1.LocalSnapshot{}).Build(),
		},
		vg: vg,
	}
	h.startCopies()
	return h
}

func thinHost(t *testing.T, objects ...client.Object) *copyHost {
	t.Helper()
	return newCopyHost(t, lvmtest.NewThinVG(t, 64*mib), objects...)
}

type newCopies func(t *testing.T, objects ...client.Object) *copyHost

// eachKind runs a test over a thin pool, and over thick volumes.
func eachKind(t *testing.T, f func(t *testing.T, newHost newCopies)) {
	t.Helper()
	for name, newHost := range map[string]newCopies{
		"thin": thinHost,
		"thick": func(t *testing.T, objects ...client.Object) *copyHost {
			return newCopyHost(t, lvmtest.NewVG(t, 64*mib), objects...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, newHost)
		})
	}
}

// startCopies begins a process over what the last one left.
func (h *copyHost) startCopies() {
	h.t.Helper()
	h.start()
	h.backend = h.vg.Backend()
	h.backends = NewBackends(h.backend)
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.backend})
	h.backends.SetSynced()
	api := interceptor.NewClient(h.api, interceptor.Funcs{
		Patch: func(_ context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return h.write(func() error { return c.Patch(h.t.Context(), o, p, opts...) })
		},
		SubResourcePatch: func(_ context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return h.write(func() error { return c.SubResource(sub).Patch(h.t.Context(), o, p, opts...) })
		},
	})
	carver := h.agent.Carver
	carver.Backends = h.backends
	carver.Copies = &Copies{Cache: h.api, Ledger: h.agent.Ledger, Locks: carver.Locks, MachineID: machine}
	h.agent.Client = api
	h.snapshots = &SnapshotReconciler{Client: api, Backends: h.backends, Ledger: h.agent.Ledger, MachineID: machine, Locks: carver.Locks}
}

func (h *copyHost) reconcileCopies() error {
	request := func(name string) reconcile.Request {
		return reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
	}
	var errs []error
	for _, name := range []string{lvName, copyName} {
		_, err := h.agent.ReconcileLive(h.t.Context(), request(name))
		_, deleteErr := h.agent.ReconcileDeleted(h.t.Context(), request(name))
		errs = append(errs, err, deleteErr)
	}
	_, err := h.snapshots.Reconcile(h.t.Context(), request(snapName))
	return errors.Join(append(errs, err)...)
}

func (h *copyHost) settleCopies() {
	h.t.Helper()
	for range 20 {
		before := h.writes
		if err := h.reconcileCopies(); err == nil && h.writes == before && !h.worked() && !h.workedOn(&h.snapshots.works) {
			return
		}
	}
	h.t.Fatalf("does not settle: %v", h.reconcileCopies())
}

func (h *copyHost) create(object client.Object) {
	h.t.Helper()
	if err := h.api.Create(h.t.Context(), object); err != nil {
		h.t.Fatal(err)
	}
}

func localSnapshot(mutate ...func(*v1alpha1.LocalSnapshot)) *v1alpha1.LocalSnapshot {
	s := &v1alpha1.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: snapName, UID: snapUID, Generation: 1, Finalizers: []string{v1alpha1.AgentFinalizer}},
		Spec:       v1alpha1.LocalSnapshotSpec{NodeName: "n1", Pool: "fast", VolumeName: lvName, VolumeUID: lvUID},
	}
	for _, m := range mutate {
		m(s)
	}
	return s
}

func copyVolume(kind v1alpha1.SourceKind, mutate ...func(*v1alpha1.LocalVolume)) *v1alpha1.LocalVolume {
	lv := localVolume(func(lv *v1alpha1.LocalVolume) {
		lv.Name, lv.UID, lv.Spec.SizeBytes = copyName, copyUID, 16*mib
		lv.Spec.Source = &v1alpha1.VolumeSource{Kind: kind, Name: snapName, UID: snapUID}
		if kind == v1alpha1.SourceVolume {
			lv.Spec.Source.Name, lv.Spec.Source.UID = lvName, lvUID
		}
	})
	for _, m := range mutate {
		m(lv)
	}
	return lv
}

func (h *copyHost) snapshot() *v1alpha1.LocalSnapshot {
	h.t.Helper()
	s := &v1alpha1.LocalSnapshot{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Name: snapName}, s); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		h.t.Fatal(err)
	}
	return s
}

func (h *copyHost) copied() *v1alpha1.LocalVolume {
	h.t.Helper()
	lv := &v1alpha1.LocalVolume{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Name: copyName}, lv); err != nil {
		h.t.Fatal(err)
	}
	return lv
}

func (h *copyHost) deviceOf(uid string) string {
	h.t.Helper()
	e, err := h.agent.Ledger.Get(uid)
	if err != nil {
		h.t.Fatal(err)
	}
	loc, err := h.backend.Locate(h.t.Context(), uid, *e.Record)
	if err != nil {
		h.t.Fatal(err)
	}
	return loc.Device
}

// wantCopyReady checks a copy that has the filesystem of its source.
func (h *copyHost) wantCopyReady() {
	h.t.Helper()
	lv := h.copied()
	if !isReady(lv) || !lv.Status.Formatted || lv.Status.FilesystemUUID != lvUID || lv.Status.Capacity.Value() != 16*mib {
		h.t.Fatalf("the copy is %+v", lv.Status)
	}
	if e, err := h.agent.Ledger.Get(copyUID); err != nil || !e.Copied || e.State != ledger.Ready {
		h.t.Fatalf("the ledger has %+v, %v", e, err)
	}
	if h.mkfs != 1 {
		h.t.Fatalf("%d filesystems were made", h.mkfs)
	}
	if content := head(h.t, h.deviceOf(copyUID)); !bytes.HasPrefix(content, fsContent("ext4", lvUID)) {
		h.t.Fatalf("the copy begins with %q", content[:64])
	}
}

// wantOnDisk checks what the pool holds, by its IDs.
func (h *copyHost) wantOnDisk(volumes, snapshots []string) {
	h.t.Helper()
	ids := func(found []volume.Found, err error) []string {
		if err != nil {
			h.t.Fatal(err)
		}
		var list []string
		for _, f := range found {
			list = append(list, f.ID)
		}
		slices.Sort(list)
		return list
	}
	if got := ids(h.backend.List(h.t.Context())); !slices.Equal(got, volumes) {
		h.t.Fatalf("volumes %q, want %q", got, volumes)
	}
	if got := ids(h.backend.ListSnapshots(h.t.Context())); !slices.Equal(got, snapshots) {
		h.t.Fatalf("snapshots %q, want %q", got, snapshots)
	}
}

// A snapshot, and a volume made of it, are whole whenever the agent is killed, and
// nothing is formatted over what was copied.
func TestRestoreKilledAtEachStep(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, newHost newCopies) {
		for n := 0; ; n++ {
			h := newHost(t, localVolume())
			h.settleCopies()
			h.create(localSnapshot())
			h.create(copyVolume(v1alpha1.SourceSnapshot))
			h.killer.arm(n)
			for range 6 {
				_ = h.reconcileCopies()
			}
			died := h.killer.died()
			h.startCopies()
			h.settleCopies()
			s := h.snapshot()
			if !isTaken(s) || s.Status.FSType != "ext4" || s.Status.FilesystemUUID != lvUID || s.Status.RestoreSize.Value() != 8*mib ||
				s.Status.CreationTime == nil || s.Status.MachineID != machine {
				t.Fatalf("step %d: the snapshot is %+v", n, s.Status)
			}
			h.wantCopyReady()
			h.wantOnDisk([]string{lvUID, copyUID}, []string{snapUID})
			if !died {
				if n < 5 {
					t.Fatalf("only %d steps", n)
				}
				return
			}
		}
	})
}

func TestClone(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, newHost newCopies) {
		h := newHost(t, localVolume())
		h.settleCopies()
		h.create(copyVolume(v1alpha1.SourceVolume))
		h.settleCopies()
		h.wantCopyReady()
		// The copy outlives its source, a restart, and a ledger that was lost.
		if err := h.api.Delete(t.Context(), h.get()); err != nil {
			t.Fatal(err)
		}
		h.settleCopies()
		h.wantOnDisk([]string{copyUID}, nil)
		h.ledgerDir = t.TempDir()
		h.startCopies()
		h.agent.Doubt(copyName)
		h.settleCopies()
		h.wantCopyReady()
	})
}

// The agent is killed while it makes a copy, and what that is made of is gone when it is back: the
// copy is whole, or it is refused and nothing is left of it.
func TestCopyKilledAtEachStepOutlivesItsSource(t *testing.T) {
	t.Parallel()
	for _, kind := range []v1alpha1.SourceKind{v1alpha1.SourceSnapshot, v1alpha1.SourceVolume} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			eachKind(t, func(t *testing.T, newHost newCopies) {
				whole, refused := 0, 0
				for n := 0; ; n++ {
					h := newHost(t, localVolume(), localSnapshot())
					h.settleCopies()
					h.create(copyVolume(kind))
					h.killer.arm(n)
					for range 6 {
						_ = h.reconcileCopies()
					}
					died := h.killer.died()
					for _, source := range []client.Object{h.snapshot(), h.get()} {
						if err := h.api.Delete(t.Context(), source); err != nil {
							t.Fatal(err)
						}
					}
					h.startCopies()
					h.settleCopies()
					if isReady(h.copied()) {
						whole++
						h.wantCopyReady()
						h.wantOnDisk([]string{copyUID}, nil)
					} else {
						refused++
						if !isFinal(h.copied()) {
							t.Fatalf("step %d: it is neither made nor refused: %+v", n, h.copied().Status)
						}
						h.wantOnDisk(nil, nil)
						if all := h.agent.Ledger.All(); len(all) > 0 {
							t.Fatalf("step %d: the ledger has %+v", n, all)
						}
					}
					if !died {
						break
					}
				}
				if whole < 2 || refused < 1 {
					t.Errorf("it was whole %d times and refused %d times", whole, refused)
				}
			})
		})
	}
}

func TestDeleteSnapshotKilledAtEachStep(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, newHost newCopies) {
		for n := 0; ; n++ {
			h := newHost(t, localVolume(), localSnapshot())
			h.settleCopies()
			if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
				t.Fatal(err)
			}
			h.killer.arm(n)
			_ = h.reconcileCopies()
			died := h.killer.died()
			h.startCopies()
			h.settleCopies()
			if h.snapshot() != nil {
				t.Fatalf("step %d: the object is there", n)
			}
			h.wantOnDisk([]string{lvUID}, nil)
			if !died {
				return
			}
		}
	})
}

// What cannot be copied is refused for good, and nothing is left of the attempt.
func TestCopiesRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		copy   *v1alpha1.LocalVolume
		before func(*copyHost)
		reason string
	}{
		"the snapshot is gone":         {copyVolume(v1alpha1.SourceSnapshot), nil, v1alpha1.ReasonInvalid},
		"another snapshot of the name": {copyVolume(v1alpha1.SourceSnapshot, func(lv *v1alpha1.LocalVolume) { lv.Spec.Source.UID = lvUID }), func(h *copyHost) { h.create(localSnapshot()) }, v1alpha1.ReasonInvalid},
		"the volume is gone":           {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.Source.Name = "pvc-9" }), nil, v1alpha1.ReasonInvalid},
		"smaller":                      {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = 4 * mib }), nil, v1alpha1.ReasonInvalid},
		"another filesystem":           {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.FSType = "xfs" }), nil, v1alpha1.ReasonInvalid},
		"a block device":               {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.FSType, lv.Spec.VolumeMode = "", "Block" }), nil, v1alpha1.ReasonInvalid},
		"options of mkfs":              {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.MkfsOptions = []string{"-m", "0"} }), nil, v1alpha1.ReasonInvalid},
		"too large":                    {copyVolume(v1alpha1.SourceVolume, func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = 60 * mib }), nil, v1alpha1.ReasonNoSpace},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := thinHost(t, localVolume())
			if tc.before != nil {
				tc.before(h)
			}
			h.settleCopies()
			h.create(tc.copy)
			h.settleCopies()
			lv := h.copied()
			if c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeReady); c == nil || c.Reason != tc.reason || !isFinal(lv) {
				t.Fatalf("condition %+v", c)
			}
			found, err := h.backend.List(t.Context())
			if err != nil || len(found) != 1 {
				t.Fatalf("on the disk: %+v, %v", found, err)
			}
			if _, err := h.agent.Ledger.Get(copyUID); !errors.Is(err, ledger.ErrNotFound) {
				t.Fatalf("in the ledger: %v", err)
			}
		})
	}
}

// A btrfs is not put beside its copy: the kernel tells filesystems apart by their UUID.
func TestBtrfsIsNotCopied(t *testing.T) {
	t.Parallel()
	btrfs := func(lv *v1alpha1.LocalVolume) { lv.Spec.FSType = "btrfs" }
	h := thinHost(t, localVolume(btrfs))
	h.settleCopies()
	h.create(copyVolume(v1alpha1.SourceVolume, btrfs))
	h.settleCopies()
	if !isFinal(h.copied()) {
		t.Errorf("it is %+v", h.copied().Status)
	}
	h.wantOnDisk([]string{lvUID}, nil)
}

func TestSnapshotsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		vg     func(testing.TB, int64) *lvmtest.VG
		mutate func(*v1alpha1.LocalSnapshot)
		reason string
	}{
		"no such volume":             {lvmtest.NewThinVG, func(s *v1alpha1.LocalSnapshot) { s.Spec.VolumeName = "pvc-9" }, v1alpha1.ReasonInvalid},
		"another volume of the name": {lvmtest.NewThinVG, func(s *v1alpha1.LocalSnapshot) { s.Spec.VolumeUID = copyUID }, v1alpha1.ReasonInvalid},
		"of a redundant pool": {
			func(t testing.TB, sizeBytes int64) *lvmtest.VG {
				return lvmtest.NewRaidVG(t, lvm.LayoutMirror, 2, sizeBytes)
			},
			func(*v1alpha1.LocalSnapshot) {}, v1alpha1.ReasonInvalid,
		},
		"of a thick pool without room": {
			func(t testing.TB, _ int64) *lvmtest.VG { return lvmtest.NewVG(t, 8*mib) },
			func(*v1alpha1.LocalSnapshot) {}, v1alpha1.ReasonNoSpace,
		},
		"without room": {
			func(t testing.TB, _ int64) *lvmtest.VG { return lvmtest.NewThinVG(t, 12*mib) },
			func(*v1alpha1.LocalSnapshot) {}, v1alpha1.ReasonNoSpace,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newCopyHost(t, tc.vg(t, 64*mib), localVolume(), localSnapshot(tc.mutate))
			h.settleCopies()
			s := h.snapshot()
			if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotReady); c == nil || c.Reason != tc.reason || !isFinalSnapshot(s) {
				t.Fatalf("condition %+v", c)
			}
			h.wantOnDisk([]string{lvUID}, nil)
			if err := h.api.Delete(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			h.settleCopies()
			if h.snapshot() != nil {
				t.Error("a refused snapshot cannot be deleted")
			}
		})
	}
}

// A snapshot that was taken on another machine is not this node's to delete.
func TestSnapshotOfAnotherMachine(t *testing.T) {
	t.Parallel()
	h := thinHost(t, localVolume(), localSnapshot())
	h.settleCopies()
	s := h.snapshot()
	s.Status.MachineID = otherMachine
	if err := h.api.Status().Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	h.startCopies()
	if err := h.api.Delete(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = h.reconcileCopies()
	}
	if c := meta.FindStatusCondition(h.snapshot().Status.Conditions, v1alpha1.LocalSnapshotReady); c.Reason != v1alpha1.ReasonIdentityMismatch {
		t.Errorf("condition %+v", c)
	}
	h.wantOnDisk([]string{lvUID}, []string{snapUID})
}
