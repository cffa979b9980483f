// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestPurgeKeepsASnapshotThatHasAnOwner(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		h := newHost()
		req := h.requestOf(5)
		// What has nothing to do with it.
		theirs := snapshotContent(func(spec, status map[string]any) {
			spec["driver"], status["snapshotHandle"] = "other.example.com", snapshotNameOf(5)
		})
		done := &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "done", UID: types.UID(volumetest.ID(7))},
			Spec:       v1alpha1.LocalVolumeSpec{NodeName: "n1", Source: &v1alpha1.VolumeSource{Kind: v1alpha1.SourceSnapshot, UID: types.UID(volumetest.ID(5))}},
			Status:     v1alpha1.LocalVolumeStatus{Conditions: []metav1.Condition{{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionTrue}}},
		}
		h.create(theirs, done)
		for owner, object := range snapshotOwners(t, h) {
			h.create(object.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
			h.want(req, v1alpha1.PurgeRefused, owner)
			h.remove(object)
			confirmed := req
			confirmed.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
			h.create(object.DeepCopyObject().(client.Object)) //nolint:forcetypeassert // a copy is what it is a copy of
			h.want(confirmed, v1alpha1.PurgeRefused, owner)
			h.remove(object)
			if again := h.want(confirmed, v1alpha1.PurgeQuarantined, "another quarantine"); again.Token == confirmed.Confirm {
				t.Fatalf("%s: the token is the same", owner)
			}
			h.wantSnapshots(5, 6)
			h.tend()
		}
	})
}

// First the snapshots, then their volume.
func TestPurgeOfSnapshotsAndTheirVolume(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		h := newHost()
		exam, err := h.pool().Examine(t.Context(), volumetest.ID(1))
		if err != nil {
			t.Fatal(err)
		}
		left := v1alpha1.PurgeRequest{UID: volumetest.ID(1), Kind: v1alpha1.LeftOverVolume, Identity: exam.Identity}
		h.want(left, v1alpha1.PurgeRefused, "first its snapshots go")
		h.want(left, v1alpha1.PurgeRefused, volumetest.ID(6)+" ("+snapshotNameOf(6)+")")
		h.tend()

		req := h.requestOf(5)
		first := h.want(req, v1alpha1.PurgeQuarantined, "confirmed by the token")
		if want := "snapshot " + snapshotNameOf(5) + ", of volume pvc-1 (" + volumetest.ID(1) + "), 8 MiB, "; !strings.HasPrefix(first.Holds, want) || strings.Contains(first.Holds, "policy") {
			t.Fatalf("it holds %q, want %q", first.Holds, want)
		}
		h.start()
		if again := h.want(req, v1alpha1.PurgeQuarantined, ""); again.Token != first.Token {
			t.Fatalf("another process has the quarantine %+v, the first had %+v", again, first)
		}
		for _, wrong := range []string{"x", strings.ToUpper(first.Token), first.Token + " "} {
			req.Confirm = wrong
			h.want(req, v1alpha1.PurgeQuarantined, "another quarantine")
		}
		h.wantSnapshots(5, 6)
		req.Confirm = first.Token
		for range 2 {
			h.want(req, v1alpha1.PurgePurged, "as snapshots are")
		}
		h.wantSnapshots(6)
		h.tend()
		h.want(req, v1alpha1.PurgeRefused, "not found")
		h.take(5) // under the same ID, another one
		h.want(req, v1alpha1.PurgeRefused, "another one than was named")
		h.wantSnapshots(5, 6)
		h.want(left, v1alpha1.PurgeRefused, "first its snapshots go")
		for _, i := range []int{5, 6} {
			req := h.requestOf(i)
			req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
			h.want(req, v1alpha1.PurgePurged, "")
		}
		h.wantSnapshots()
		left.Confirm = h.want(left, v1alpha1.PurgeQuarantined, "").Token
		h.want(left, v1alpha1.PurgePurged, "")
		if found, err := h.pool().List(t.Context()); err != nil || len(found) > 0 {
			t.Errorf("the volume is there still: %+v, %v", found, err)
		}
	})
}

func TestPurgeKeepsASnapshotThatIsInUse(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		h := newHost()
		hold := func() (release func()) { h.held = true; return func() { h.held = false } }
		if h.vg != nil {
			h.vg.Activate(h.vg.Name, "snap-"+volumetest.ID(5))
			e, err := h.pool().ExamineSnapshot(t.Context(), volumetest.ID(5))
			if err != nil || e.Device == "" {
				t.Fatalf("it is not active: %+v, %v", e, err)
			}
			hold = func() func() { return h.vg.Hold(e.Device) }
		}
		req := h.requestOf(5)
		release := hold()
		h.want(req, v1alpha1.PurgeRefused, "in use")
		release()
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
		release = hold()
		h.want(req, v1alpha1.PurgeRefused, "the quarantine since")
		release()
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "another quarantine").Token
		h.wantSnapshots(5, 6)
		if h.vg == nil {
			return
		}
		// A device that is put somewhere, and not read right now.
		h.mounts = []string{"/somewhere"}
		h.want(req, v1alpha1.PurgeRefused, "published at /somewhere")
		h.wantSnapshots(5, 6)
	})
}

func TestPurgeKeepsWhatIsAnotherSnapshot(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		for name, tc := range map[string]struct {
			change func(h *snapshotHost)
			says   string
			lvm    bool
		}{
			"it was taken anew": {change: func(h *snapshotHost) { h.drop(5); h.take(5) }, says: "another one than was named"},
			"it is gone":        {change: func(h *snapshotHost) { h.drop(5) }, says: "not found"},
			"it has no mark": {lvm: true, says: "has no tag", change: func(h *snapshotHost) {
				h.vg.Edit(h.vg.Name, func(e *lvmtest.Editor) { e.SetTags("snap-"+volumetest.ID(5), "theirs") })
			}},
			"it was exchanged": {lvm: true, says: "another one than was named", change: func(h *snapshotHost) {
				h.vg.Edit(h.vg.Name, func(e *lvmtest.Editor) { e.Replace("snap-" + volumetest.ID(5)) })
			}},
		} {
			h := newHost()
			if tc.lvm && h.vg == nil {
				continue
			}
			req := h.requestOf(5)
			req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
			tc.change(h)
			before, err := h.pool().ListSnapshots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				h.want(req, v1alpha1.PurgeRefused, tc.says)
			}
			if after, err := h.pool().ListSnapshots(t.Context()); err != nil || len(after) != len(before) {
				t.Errorf("%s: there is %+v, and was %+v (%v)", name, after, before, err)
			}
		}
		// What is of another kind than it is said to be.
		h := newHost()
		for uid, kind := range map[int]v1alpha1.LeftOverKind{1: v1alpha1.LeftOverSnapshot, 5: v1alpha1.LeftOverVolume} {
			h.want(v1alpha1.PurgeRequest{UID: volumetest.ID(uid), Kind: kind, Identity: h.requestOf(5).Identity}, v1alpha1.PurgeRefused, "not found")
			h.tend()
		}
		h.wantSnapshots(5, 6)
	})
}

// Killed at any step of its records, or of lvm, the first phase removes nothing, and the second
// one ends what it has begun and touches nothing else.
func TestPurgeOfASnapshotKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		for _, power := range []bool{false, true} {
			for n, alive := 0, false; !alive; n++ {
				h := newHost()
				if power && h.vg == nil {
					return // pkg/hostpath kills its own steps
				}
				killed := func(f func()) (died bool) {
					if power {
						lost := h.vg.LosePower(n)
						f()
						died = lost()
						h.vg.Reboot()
					} else {
						h.killer.arm(n)
						f()
						died = h.killer.died()
					}
					h.start()
					return died
				}
				req := h.requestOf(5)
				alive = !killed(func() { h.tend(req) })
				h.wantSnapshots(5, 6)
				req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
				alive = !killed(func() { h.tend(req) }) && alive
				h.want(req, v1alpha1.PurgePurged, "")
				h.wantSnapshots(6)
				alive = !killed(func() { h.tend() }) && alive
				h.tend()
				if files, err := os.ReadDir(h.purgeDir); err != nil || len(files) > 0 {
					t.Fatalf("killed at step %d: records are left: %v, %v", n, files, err)
				}
				if alive && n < 3 {
					t.Errorf("only %d steps were tried", n)
				}
			}
		}
	})
}

// A directory that the removal has moved away leaves its record, by which the removal is ended,
// of volumes and of snapshots.
func TestPurgeOfADirectoryThatIsInTheTrash(t *testing.T) {
	t.Parallel()
	h := newDirectorySnapshots(t).filled()
	h.drop(6)
	purge := func(req v1alpha1.PurgeRequest, directory string) {
		t.Helper()
		req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
		rec, err := h.purger.records.get(req.UID)
		if err != nil {
			t.Fatal(err)
		}
		begun := *rec
		begun.State, begun.Wipe = v1alpha1.PurgePurging, volume.WipeZero
		begun.Storage = &volume.Record{Mode: volume.ModeHostpath, SizeBytes: 8 * mib, Hostpath: &volume.HostpathRecord{Root: h.root, Directory: directory}}
		begun.Storage.Hostpath.RootID, _, _ = strings.Cut(req.Identity, "/")
		if err := errors.Join(h.purger.records.put(rec, &begun), os.Rename(filepath.Join(h.root, directory), filepath.Join(h.root, ".trash", req.UID+".aaaaaaaaaaaaa"))); err != nil {
			t.Fatal(err)
		}
		h.start()
		h.want(req, v1alpha1.PurgePurged, "")
	}
	purge(h.requestOf(5), "snapshots/"+volumetest.ID(5))
	h.wantSnapshots()
	exam, err := h.pool().Examine(t.Context(), volumetest.ID(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.book.Remove(volumetest.ID(1)); err != nil {
		t.Fatal(err)
	}
	purge(v1alpha1.PurgeRequest{UID: volumetest.ID(1), Kind: v1alpha1.LeftOverVolume, Identity: exam.Identity}, "volumes/"+volumetest.ID(1))
	if found, err := h.pool().List(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("the volume is there still: %+v, %v", found, err)
	}
}

// A removal that has begun is not gone on with when the snapshot has an owner, or is another one.
func TestPurgeOfASnapshotThatHadBegun(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		begin := func() (*snapshotHost, v1alpha1.PurgeRequest) {
			h := newHost()
			req := h.requestOf(5)
			req.Confirm = h.want(req, v1alpha1.PurgeQuarantined, "").Token
			h.killer.arm(1) // when the record that it begins is written
			h.tend(req)
			h.start()
			return h, req
		}
		h, req := begin()
		owner := snapshotOwners(t, h)["VolumeSnapshotContent static"]
		h.create(owner)
		h.want(req, v1alpha1.PurgePurging, "it belongs to VolumeSnapshotContent static")
		h.wantSnapshots(5, 6)
		h.remove(owner)
		h.want(req, v1alpha1.PurgePurged, "")
		h.wantSnapshots(6)

		h, req = begin()
		h.drop(5)
		h.take(5)
		h.want(req, v1alpha1.PurgePurging, "another one by now")
		h.wantSnapshots(5, 6)

		h, _ = begin() // withdrawn
		if got := h.tend(); len(got) != 1 || got[0].State != v1alpha1.PurgePurged {
			t.Errorf("it is %+v", got)
		}
		h.wantSnapshots(6)
	})
}

// What a thick snapshot has kept of its volume is wiped, and a volume that was deleted and is kept
// for its last snapshot goes with it.
func TestPurgeOfTheLastSnapshotOfADeletedVolume(t *testing.T) {
	t.Parallel()
	h := newLVMSnapshots(t, lvmtest.NewVG(t, 64*mib))
	rec, err := h.backend.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: 8 * mib, Access: volume.AccessFilesystem})
	if err != nil {
		t.Fatal(err)
	}
	h.record(1, func(e *ledger.Entry) { e.Record = &rec })
	secret := bytes.Repeat([]byte{'s'}, 4*4096)
	write := func(content []byte) {
		t.Helper()
		location, err := h.backend.Locate(t.Context(), volumetest.ID(1), rec)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(location.Device, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwrite(int(f.Fd()), content, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(secret)
	h.take(5)
	write(bytes.Repeat([]byte{1}, len(secret)))
	if err := h.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if err := h.book.Remove(volumetest.ID(1)); err != nil {
		t.Fatal(err)
	}
	b := h.backend.(*lvm.Backend) //nolint:forcetypeassert // it was made here
	if all, waiting, err := b.Deleted(t.Context()); err != nil || all != 1 || waiting != 1 {
		t.Fatalf("%d volumes are kept, %d of them for a snapshot: %v", all, waiting, err)
	}
	req := h.requestOf(5)
	quarantine := h.want(req, v1alpha1.PurgeQuarantined, "")
	if !strings.Contains(quarantine.Holds, "of volume ("+volumetest.ID(1)+")") {
		t.Errorf("it holds %q", quarantine.Holds)
	}
	touched := 0
	h.purger.Carver.Backends.OnTouch(func(string) { touched++ }) // by which the SnapshotKeeper is woken
	var wiped []volume.WipePolicy
	h.vg.OnWipe(func(policy volume.WipePolicy) { wiped = append(wiped, policy) })
	req.Confirm = quarantine.Token
	h.want(req, v1alpha1.PurgePurged, "")
	if !slices.Contains(wiped, volume.WipeZero) || touched == 0 {
		t.Errorf("what it has kept was wiped by %q, and its volume looked after %d times", wiped, touched)
	}
	k := &SnapshotKeeper{Backends: h.purger.Carver.Backends, Changed: func(string) {}, Log: slog.New(slog.DiscardHandler)}
	k.look(t.Context(), "fast", func(end func()) { end() })
	if all, _, err := b.Deleted(t.Context()); err != nil || all != 0 {
		t.Errorf("%d volumes that were deleted are there still: %v", all, err)
	}
	h.vg.Reboot()
	if h.vg.DiskHolds(secret[:4096]) {
		t.Error("what the snapshot has kept is on the disk still")
	}
}

// Nothing is restored from what is in quarantine.
func TestQuarantinedSnapshotIsNotCopied(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		h := newHost()
		copies := &Copies{Cache: h.api, Ledger: h.book, Locks: &Locks{}, MachineID: machine, Quarantined: h.purger.Quarantined}
		wish := Wish{CopyOf: &CopyOf{Snapshot: true, Name: snapshotNameOf(5), UID: volumetest.ID(5)}}
		if _, _, err := copies.open(t.Context(), wish); !errors.Is(err, volume.ErrInvalid) { // it has no LocalSnapshot
			t.Fatalf("open = %v", err)
		}
		req := h.requestOf(5)
		h.want(req, v1alpha1.PurgeQuarantined, "")
		if _, _, err := copies.open(t.Context(), wish); !errors.Is(err, volume.ErrBusy) || !strings.Contains(err.Error(), "asked to purge") {
			t.Errorf("open = %v", err)
		}
	})
}

// An agent of before this takes a record of the purge of a snapshot for damaged, and removes nothing.
func TestPurgeRecordOfASnapshot(t *testing.T) {
	t.Parallel()
	storage := &volume.Record{Mode: volume.ModeLVM}
	for name, tc := range map[string]struct {
		change func(r *purgeRecord)
		valid  bool
	}{
		"in quarantine":                   {func(*purgeRecord) {}, true},
		"begun":                           {func(r *purgeRecord) { r.State, r.Storage = v1alpha1.PurgePurging, storage }, true},
		"begun, and of what is not known": {func(r *purgeRecord) { r.State = v1alpha1.PurgePurging }, false},
		"a volume without its wipe policy": {func(r *purgeRecord) {
			r.Kind, r.State, r.Storage = v1alpha1.LeftOverVolume, v1alpha1.PurgePurging, storage
		}, false},
		"a directory, which is not Berth's": {func(r *purgeRecord) { r.Kind = v1alpha1.LeftOverDirectory }, false},
	} {
		r := &purgeRecord{
			SchemaVersion: purgeRecordVersion, UID: volumetest.ID(5), Kind: v1alpha1.LeftOverSnapshot, Identity: "i", PoolSet: "fast", MachineID: machine,
			Names: []string{"s"}, Token: "t", Since: metav1.Now().Time, State: v1alpha1.PurgeQuarantined,
		}
		tc.change(r)
		if err := r.validate(); (err == nil) != tc.valid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A pool tells of a left-over snapshot what is needed to purge it, and whose it was.
func TestPoolTellsOfLeftOverSnapshots(t *testing.T) {
	t.Parallel()
	eachSnapshotPool(t, func(t *testing.T, newHost func() *snapshotHost) {
		h := newHost()
		pools := &PoolReconciler{PoolOptions: PoolOptions{Client: h.api, Ledger: h.book, Mounts: h, Log: slog.New(slog.DiscardHandler)}}
		h.create(&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", UID: types.UID(volumetest.ID(1))}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Pool: "fast"}})
		h.create(&v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "s", UID: types.UID(volumetest.ID(6))}, Spec: v1alpha1.LocalSnapshotSpec{NodeName: "n1"}})
		found, err := pools.findLeftOvers(t.Context(), &poolRecord{PoolSet: "fast"}, h.backend)
		if err != nil || len(found) != 1 {
			t.Fatalf("found %+v, %v", found, err)
		}
		want := v1alpha1.LeftOver{
			Kind: v1alpha1.LeftOverSnapshot, UID: types.UID(volumetest.ID(5)), Name: snapshotNameOf(5), SizeBytes: 8 * mib, Identity: h.requestOf(5).Identity,
			Of: "pvc-1 (" + volumetest.ID(1) + ")", Location: found[0].Location,
		}
		if found[0] != want || !strings.HasSuffix(want.Location, volumetest.ID(5)) {
			t.Errorf("found %+v, want %+v", found[0], want)
		}
	})
}
