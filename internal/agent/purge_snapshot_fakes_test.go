// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// snapshotBackend is what a pool with snapshots is.
type snapshotBackend interface {
	volume.Backend
	volume.Examiner
	volume.SnapshotExaminer
}

// snapshotHost is a node with volume 1 and its snapshots, over the backends that nodes have.
type snapshotHost struct {
	*purgeHost

	vg   *lvmtest.VG // nil of mode hostpath
	root string
	// held is true when somebody has a directory mounted.
	held bool
}

// eachSnapshotPool runs a test over what snapshots can be of. All of them have volume 1, that the
// ledger knows, and its snapshots 5 and 6.
func eachSnapshotPool(t *testing.T, f func(t *testing.T, newHost func() *snapshotHost)) {
	t.Helper()
	for name, open := range map[string]func(t *testing.T) *snapshotHost{
		"thick":     func(t *testing.T) *snapshotHost { t.Helper(); return newLVMSnapshots(t, lvmtest.NewVG(t, 64*mib)) },
		"thin":      func(t *testing.T) *snapshotHost { t.Helper(); return newLVMSnapshots(t, lvmtest.NewThinVG(t, 64*mib)) },
		"directory": newDirectorySnapshots,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, func() *snapshotHost { return open(t).filled() })
		})
	}
}

// filled makes volume 1 and its snapshots 5 and 6.
func (h *snapshotHost) filled() *snapshotHost {
	h.t.Helper()
	rec, err := h.backend.Create(h.t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: 8 * mib, Access: volume.AccessFilesystem})
	if err != nil {
		h.t.Fatal(err)
	}
	h.record(1, func(e *ledger.Entry) { e.Record = &rec })
	for _, i := range []int{5, 6} {
		h.take(i)
	}
	return h
}

func newLVMSnapshots(t *testing.T, vg *lvmtest.VG) *snapshotHost {
	t.Helper()
	h := &snapshotHost{purgeHost: newPurgeHost(t, volume.ModeLVM), vg: vg}
	h.open = func() volume.Backend { return vg.Backend() }
	h.start()
	return h
}

func newDirectorySnapshots(t *testing.T) *snapshotHost {
	t.Helper()
	const poolUID = "11111111-1111-4111-8111-111111111111"
	h := &snapshotHost{purgeHost: newPurgeHost(t, volume.ModeHostpath), root: filepath.Join(t.TempDir(), "pool")}
	where := hostpath.Where{Root: h.root}
	id, err := hostpath.Init(t.Context(), where, poolUID)
	if err != nil {
		t.Fatal(err)
	}
	h.open = func() volume.Backend {
		b, err := hostpath.New(hostpath.Options{
			Where: where, RootID: id, PoolUID: poolUID, Log: slog.New(slog.DiscardHandler),
			InUse:   func(string) (bool, error) { return h.held, nil },
			Written: func(string) (bool, error) { return false, nil },
			Clone:   func(int, int) error { return nil },
			Room:    func() (int64, int64, error) { return 1 << 30, 1 << 30, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	h.start()
	return h
}

func (h *snapshotHost) pool() snapshotBackend { return h.backend.(snapshotBackend) } //nolint:forcetypeassert // it was made here

// snapshotNameOf is what the sidecar calls the snapshot of a VolumeSnapshot with that UID.
func snapshotNameOf(i int) string { return "snapshot-" + volumetest.ID(i) }

func (h *snapshotHost) take(i int) {
	h.t.Helper()
	e, err := h.book.Get(volumetest.ID(1))
	if err != nil {
		h.t.Fatal(err)
	}
	spec := volume.SnapshotSpec{ID: volumetest.ID(i), Name: snapshotNameOf(i), VolumeID: e.UID, Volume: *e.Record, Wipe: volume.WipeZero}
	if _, err := h.pool().Snapshot(h.t.Context(), spec); err != nil {
		h.t.Fatal(err)
	}
}

func (h *snapshotHost) requestOf(i int) v1alpha1.PurgeRequest {
	h.t.Helper()
	e, err := h.pool().ExamineSnapshot(h.t.Context(), volumetest.ID(i))
	if err != nil {
		h.t.Fatal(err)
	}
	return v1alpha1.PurgeRequest{UID: volumetest.ID(i), Kind: v1alpha1.LeftOverSnapshot, Identity: e.Identity}
}

// wantSnapshots are those that are there, beside volume 1.
func (h *snapshotHost) wantSnapshots(want ...int) {
	h.t.Helper()
	var ids []string
	found, err := h.pool().ListSnapshots(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range found {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	var wanted []string
	for _, i := range want {
		wanted = append(wanted, volumetest.ID(i))
	}
	if !slices.Equal(ids, wanted) {
		h.t.Fatalf("the snapshots are %s, want %s", ids, wanted)
	}
	if volumes, err := h.pool().List(h.t.Context()); err != nil || len(volumes) != 1 || volumes[0].ID != volumetest.ID(1) {
		h.t.Fatalf("the volumes are %+v, %v", volumes, err)
	}
}

// drop deletes a snapshot past everybody.
func (h *snapshotHost) drop(i int) {
	h.t.Helper()
	if err := h.pool().DeleteSnapshot(h.t.Context(), volumetest.ID(i), nil); err != nil {
		h.t.Fatal(err)
	}
}

func snapshotContent(change func(spec, status map[string]any)) *unstructured.Unstructured {
	spec, status := map[string]any{"driver": v1alpha1.DriverName}, map[string]any{}
	change(spec, status)
	content := &unstructured.Unstructured{Object: map[string]any{"spec": spec, "status": status}}
	content.SetGroupVersionKind(schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContent"})
	content.SetName("content")
	return content
}

// snapshotOwners are the objects that each keep snapshot 5 from being purged, and how they are
// called.
func snapshotOwners(t *testing.T, h *snapshotHost) map[string]client.Object {
	t.Helper()
	e, err := h.pool().ExamineSnapshot(t.Context(), volumetest.ID(5))
	if err != nil {
		t.Fatal(err)
	}
	snapshot := func(name string, uid int) *v1alpha1.LocalSnapshot {
		return &v1alpha1.LocalSnapshot{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(volumetest.ID(uid))},
			Spec:       v1alpha1.LocalSnapshotSpec{NodeName: "n2", Pool: "fast", VolumeName: "pvc-9", VolumeUID: types.UID(volumetest.ID(9))},
		}
	}
	adopted := snapshot("other", 8)
	if l := e.Record.LVM; l != nil {
		adopted.Status.LVM = &v1alpha1.LVMRecord{VGName: l.VGName, VGUUID: l.VGUUID, LVName: l.LVName, LVUUID: l.LVUUID}
	}
	if d := e.Record.Hostpath; d != nil {
		adopted.Status.Hostpath = &v1alpha1.HostpathRecord{Root: d.Root, Directory: d.Directory, RootID: d.RootID}
	}
	restoring := func(name string, source v1alpha1.VolumeSource) *v1alpha1.LocalVolume {
		return &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(volumetest.ID(8))},
			Spec:       v1alpha1.LocalVolumeSpec{NodeName: "n1", Mode: v1alpha1.Mode(h.mode), Pool: "fast", Source: &source},
		}
	}
	source := v1alpha1.VolumeSource{Kind: v1alpha1.SourceSnapshot, Name: "any", UID: types.UID(volumetest.ID(5))}
	named := v1alpha1.VolumeSource{Kind: v1alpha1.SourceSnapshot, Name: snapshotNameOf(5), UID: types.UID(volumetest.ID(9))}
	asHandle := func(of map[string]any) { of["snapshotHandle"] = snapshotNameOf(5) }
	content := func(name string, change func(spec, status map[string]any)) *unstructured.Unstructured {
		c := snapshotContent(change)
		c.SetName(name)
		return c
	}
	owners := map[string]client.Object{
		"LocalSnapshot back":                 snapshot("back", 5),
		"LocalSnapshot " + snapshotNameOf(5): snapshot(snapshotNameOf(5), 8),
		"LocalSnapshot other":                adopted,
		"LocalVolume restored":               restoring("restored", source),
		"LocalVolume named":                  restoring("named", named),
		"VolumeSnapshotContent static": content("static", func(spec, _ map[string]any) {
			of := map[string]any{}
			asHandle(of)
			spec["source"] = of
		}),
		"VolumeSnapshotContent taken": content("taken", func(_, status map[string]any) { asHandle(status) }),
		"VolumeSnapshotContent new": content("new", func(spec, _ map[string]any) {
			spec["volumeSnapshotRef"] = map[string]any{"uid": volumetest.ID(5)}
		}),
	}
	if h.mode == volume.ModeHostpath {
		owners["PersistentVolume path"] = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "path"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(h.root, "snapshots", volumetest.ID(5))}},
		}}
	}
	return owners
}
