// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const (
	leftDisk  = "disk-0" // the serial number
	otherDisk = "disk-1"
)

// diskHost is a purgeHost whose left-over is a whole disk of a host that forgets nothing.
type diskHost struct {
	*purgeHost

	host     *devicetest.Host
	registry *devicetest.Registry
	backend  *killableDisks
	disks    *purgedDisks
	tending  *DiskPurges
	pooled   string
	// on is what is on the disk; no filesystem when it is nil.
	on *mount.Superblock
	// vault has its LUKS headers; nil where nothing is encrypted.
	vault *vault
}

// killableDisks ends the process before and after the one step of a deletion.
type killableDisks struct {
	*device.Backend

	killer *killer
}

func (k *killableDisks) Delete(ctx context.Context, id string, rec *volume.Record, wipe volume.WipePolicy) error {
	if err := k.killer.step(); err != nil {
		return err
	}
	if err := k.Backend.Delete(ctx, id, rec, wipe); err != nil {
		return err
	}
	return k.killer.step()
}

// purgedDisks is the one BlockDevice, as the API server keeps it.
type purgedDisks struct {
	bd  *v1alpha1.BlockDevice
	err error
}

func (d *purgedDisks) Purges(_ context.Context, names ...string) ([]*v1alpha1.BlockDevice, error) {
	if d.err != nil || len(d.bd.Spec.Purge) == 0 && len(d.bd.Status.Purges) == 0 && !slices.Contains(names, d.bd.Name) {
		return nil, d.err
	}
	return []*v1alpha1.BlockDevice{d.bd.DeepCopy()}, nil
}

func (d *purgedDisks) TellPurges(_ context.Context, name string, purges []v1alpha1.PurgeStatus) (*v1alpha1.BlockDevice, error) {
	if name != d.bd.Name {
		return nil, volume.ErrNotFound
	}
	d.bd.Status.Purges = purges
	return d.bd.DeepCopy(), nil
}

func newDiskHost(t *testing.T) *diskHost {
	t.Helper()
	h := &diskHost{purgeHost: newPurgeHost(t, volume.ModeLVM), host: devicetest.NewFileHost(t, mib, mib), on: &mount.Superblock{FSType: "ext4", UUID: volumetest.ID(1), Label: "orders"}}
	h.registry = devicetest.NewRegistry(h.host)
	h.disks = &purgedDisks{bd: &v1alpha1.BlockDevice{ObjectMeta: metav1.ObjectMeta{Name: devicetest.Name(leftDisk)}}}
	h.disks.bd.Status.DevLinks = []string{"/dev/disk/by-id/virtio-disk-0", "/dev/disk/by-path/pci-0"}
	h.start()
	return h
}

// start begins a process over what the last one left.
func (h *diskHost) start() {
	h.t.Helper()
	h.purgeHost.start()
	h.backend = &killableDisks{device.New(device.Options{Registry: h.registry, Disks: h.registry.Opener(), Log: slog.New(slog.DiscardHandler)}), h.killer}
	h.purger.Carver.Backends, h.purger.Filesystems = NewBackends(h.backend), h
	if h.vault != nil {
		h.purger.Carver.Encrypted = &Sealer{Ledger: killableJournal{h.book, h.killer}, Cryptsetup: h.vault, Filesystems: h, Log: slog.New(slog.DiscardHandler)}
	}
	h.tending = NewDiskPurges(DiskPurgesOptions{
		Purger: h.purger, Disks: h.disks, Backend: h.backend, Recorder: &newspaper{},
		PoolOf: func(string) (string, error) { return h.pooled, nil }, Log: slog.New(slog.DiscardHandler),
	})
}

// Inspect implements Filesystems.
func (h *diskHost) Inspect(context.Context, string) (mount.Superblock, error) {
	if h.on == nil {
		return mount.Superblock{}, mount.ErrNoFilesystem
	}
	return *h.on, nil
}

// leave claims the disk for the volume that no object stands for.
func (h *diskHost) leave(known bool, change func(*ledger.Entry)) {
	h.t.Helper()
	claimed, err := h.registry.Claim(h.t.Context(), devicetest.Name(leftDisk), device.Owner{UID: volumetest.ID(1), Name: "pvc-1", Kind: device.OwnerVolume})
	if err != nil {
		h.t.Fatal(err)
	}
	h.disks.bd.Status.Identity = &v1alpha1.DeviceIdentity{Scheme: claimed.IdentityScheme, Value: claimed.IdentityValue}
	h.disks.bd.Status.SizeBytes = claimed.SizeBytes
	if !known {
		return
	}
	e := ledger.Entry{
		UID: volumetest.ID(1), Name: "pvc-1", MachineID: machine, State: ledger.Ready, Mode: volume.ModeDevice,
		Access: volume.AccessFilesystem, FSType: "ext4", FSUUID: volumetest.ID(1), Wipe: volume.WipeDiscard, Record: diskRecord(claimed),
	}
	if change != nil {
		change(&e)
	}
	if err := h.book.Put(e); err != nil {
		h.t.Fatal(err)
	}
}

func diskRecord(c device.Claimed) *volume.Record {
	return &volume.Record{Mode: volume.ModeDevice, SizeBytes: c.SizeBytes, Device: &volume.DeviceRecord{
		Name: c.Name, IdentityScheme: c.IdentityScheme, IdentityValue: c.IdentityValue, SizeBytes: c.SizeBytes,
	}}
}

// request names the disk as the plugin does, from what its BlockDevice says.
func (h *diskHost) request() v1alpha1.PurgeRequest {
	s := &h.disks.bd.Status
	return v1alpha1.PurgeRequest{UID: volumetest.ID(1), Kind: v1alpha1.LeftOverVolume, Identity: v1alpha1.DiskIdentity(s.Identity.Scheme, s.Identity.Value, s.SizeBytes)}
}

// ask is one look of the agent at the BlockDevice, a while after the last one.
func (h *diskHost) ask(requests ...v1alpha1.PurgeRequest) []v1alpha1.PurgeStatus {
	h.t.Helper()
	h.purger.looks = map[string]purgeLook{}
	h.disks.bd.Spec.Purge = requests
	if _, err := h.tending.tend(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return h.disks.bd.Status.Purges
}

func (h *diskHost) wantDisk(req v1alpha1.PurgeRequest, state v1alpha1.PurgeState, says string) v1alpha1.PurgeStatus {
	h.t.Helper()
	got := h.ask(req)
	if len(got) != 1 || got[0].UID != req.UID || got[0].State != state || !strings.Contains(got[0].Message, says) {
		h.t.Fatalf("it is %+v, want %s with %q", got, state, says)
	}
	return got[0]
}

func (h *diskHost) released() *device.ReleasedDisk {
	h.t.Helper()
	all, err := h.registry.Released(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	if len(all) == 0 {
		return nil
	}
	if len(all) > 1 || all[0].Name != devicetest.Name(leftDisk) {
		h.t.Fatalf("released are %+v", all)
	}
	return &all[0]
}

// begin kills the agent at the first step after the removal has begun.
func (h *diskHost) begin(confirmed v1alpha1.PurgeRequest) {
	h.t.Helper()
	for n := range 20 {
		h.killer.arm(n)
		h.ask(confirmed)
		h.start()
		if rec, err := h.purger.records.get(confirmed.UID); err != nil || rec == nil || rec.State != v1alpha1.PurgeQuarantined {
			return
		}
	}
	h.t.Fatal("the removal never begins")
}

// wantClaimed fails unless the volume holds its disk.
func (h *diskHost) wantClaimed() {
	h.t.Helper()
	if r := h.released(); r != nil {
		h.t.Fatalf("the disk was released: %+v", r)
	}
	if held, ok, err := h.registry.ClaimedBy(h.t.Context(), volumetest.ID(1)); err != nil || !ok || held.Name != devicetest.Name(leftDisk) {
		h.t.Fatalf("the volume holds %+v, %v, %v", held, ok, err)
	}
}

func TestPurgeOfADiskNeedsBothPhases(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		known  bool
		change func(*ledger.Entry)
		on     *mount.Superblock
		policy volume.WipePolicy
		holds  []string
		says   string
	}{
		"known":     {known: true, on: &mount.Superblock{FSType: "ext4", UUID: volumetest.ID(1), Label: "orders"}, policy: volume.WipeDiscard, holds: []string{"volume pvc-1", "1 MiB", `ext4 "orders"`}, says: "by the policy discard"},
		"not known": {on: &mount.Superblock{FSType: "xfs", UUID: "x"}, policy: volume.WipeZero, holds: []string{"volume pvc-1", "xfs (x)", "not in the node's ledger"}, says: "by the policy zero"},
		"raw": {
			known: true, change: func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" }, policy: volume.WipeDiscard,
			holds: []string{"does not say that nothing is on it"}, says: "discard",
		},
		"handed over": {
			known: true, change: func(e *ledger.Entry) { e.Adopted, e.Wipe = true, volume.WipeNone }, on: &mount.Superblock{FSType: "ext4", UUID: volumetest.ID(1)},
			policy: volume.WipeNone, holds: []string{"wipe policy none"}, says: "with what is on it",
		},
		"never made": {known: true, change: func(e *ledger.Entry) { e.State, e.Record = ledger.Carving, nil }, policy: volume.WipeDiscard, says: "discard"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.on = tc.on
			h.leave(tc.known, tc.change)
			req := h.request()
			first := h.wantDisk(req, v1alpha1.PurgeQuarantined, "confirmed by the token")
			for _, part := range tc.holds {
				if !strings.Contains(first.Holds, part) {
					t.Errorf("it holds %q, which lacks %q", first.Holds, part)
				}
			}
			h.start()
			if again := h.wantDisk(req, v1alpha1.PurgeQuarantined, ""); again.Token != first.Token {
				t.Fatal("another process has another token")
			}
			if !h.purger.Quarantined(req.UID) {
				t.Error("a pod would get it")
			}
			for _, wrong := range []string{"x", strings.ToUpper(first.Token), first.Token[1:]} {
				req.Confirm = wrong
				h.wantDisk(req, v1alpha1.PurgeQuarantined, "another quarantine")
			}
			h.wantClaimed()
			req.Confirm = first.Token
			for range 2 {
				h.wantDisk(req, v1alpha1.PurgePurged, tc.says)
			}
			r := h.released()
			if r == nil || r.Policy != tc.policy || (r.Token == "") != (tc.policy == volume.WipeNone) {
				t.Fatalf("released is %+v", r)
			}
			if _, err := h.book.Get(req.UID); !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("the ledger has it: %v", err)
			}
			// The request that stays behind does nothing to the next one that has the disk.
			if r.Token == "" {
				return
			}
			if err := h.registry.FinishWipe(t.Context(), r.Name, r.Token, true, ""); err != nil {
				t.Fatal(err)
			}
			if _, err := h.registry.Claim(t.Context(), r.Name, device.Owner{UID: volumetest.ID(2), Name: "pvc-2", Kind: device.OwnerVolume}); err != nil {
				t.Fatal(err)
			}
			h.wantDisk(req, v1alpha1.PurgePurged, "")
			if h.ask(); h.disks.bd.Status.Purges != nil {
				t.Error("it says still what came of it")
			}
			h.wantDisk(req, v1alpha1.PurgeRefused, "no disk is claimed for it")
			if h.released() != nil {
				t.Error("the disk of another volume was released")
			}
		})
	}
}

// The worst that could happen: a disk is wiped that was somebody's.
func TestPurgeKeepsADisk(t *testing.T) {
	t.Parallel()
	lv := func(name, uid string) *v1alpha1.LocalVolume {
		return &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Mode: v1alpha1.ModeDevice}}
	}
	adopting := lv("adopting", volumetest.ID(8))
	adopting.Spec.Adopt = &v1alpha1.Adoption{Device: devicetest.Name(leftDisk)}
	pv := func(name string, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source}}
	}
	object := func(o client.Object) func(*diskHost) func() {
		return func(h *diskHost) func() {
			o := o.DeepCopyObject().(client.Object) //nolint:forcetypeassert // a copy is what it is a copy of
			h.create(o)
			return func() { h.remove(o) }
		}
	}
	for name, tc := range map[string]struct {
		// befall makes it so, and returns what undoes it.
		befall  func(*diskHost) func()
		unknown bool
		state   v1alpha1.PurgeState
		says    string
	}{
		"its LocalVolume":         {befall: object(lv("pvc-back", volumetest.ID(1))), says: "LocalVolume pvc-back"},
		"a LocalVolume so called": {befall: object(lv("pvc-1", volumetest.ID(8))), says: "LocalVolume pvc-1"},
		"one that would adopt it": {befall: object(adopting), says: "which asks to adopt the disk"},
		"a PersistentVolume":      {befall: object(pv("by-hand", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: "pvc-1"}})), says: "PersistentVolume by-hand", unknown: true},
		"a local PersistentVolume": {
			befall: object(pv("local", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/virtio-disk-0"}})), says: "PersistentVolume local",
		},
		"a local PersistentVolume of its filesystem": {
			befall: object(pv("local", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/dev/disk/by-uuid/" + volumetest.ID(1)}})), says: "PersistentVolume local",
		},
		"mounted or opened": {befall: func(h *diskHost) func() {
			disk, err := h.host.Opener().Open(h.t.Context(), h.pathOfDisk())
			if err != nil {
				h.t.Fatal(err)
			}
			return func() { _ = disk.Close() }
		}, says: "in use"},
		"gone": {befall: func(h *diskHost) func() {
			h.host.Pull(h.t, leftDisk)
			return func() { h.host.Push(h.t, leftDisk) }
		}, says: "not found"},
		"a second disk of that identity": {befall: func(h *diskHost) func() { h.host.Add(h.t, leftDisk, mib); return nil }, says: "identity"},
		"another filesystem": {befall: func(h *diskHost) func() {
			was := h.on
			h.on = &mount.Superblock{FSType: "xfs", UUID: "theirs"}
			return func() { h.on = was }
		}, says: "on the disk is the filesystem theirs"},
		"reserved": {befall: func(h *diskHost) func() {
			h.disks.bd.Spec.Reserved = "for the backup team"
			return func() { h.disks.bd.Spec.Reserved = "" }
		}, says: "reserved: for the backup team"},
		"part of a pool": {befall: func(h *diskHost) func() { h.pooled = "fast"; return func() { h.pooled = "" } }, says: "part of pool fast"},
		"in the ledger for another one": {befall: func(h *diskHost) func() {
			e, err := h.book.Get(volumetest.ID(1))
			if err != nil {
				h.t.Fatal(err)
			}
			e.UID, e.Name = volumetest.ID(7), "pvc-7"
			if err := h.book.Put(e); err != nil {
				h.t.Fatal(err)
			}
			return func() { _ = h.book.Remove(e.UID) }
		}, says: "for volume pvc-7"},
		"an API server that is away": {befall: func(h *diskHost) func() {
			h.away = errors.New("it does not answer")
			return func() { h.away = nil }
		}, state: v1alpha1.PurgeWaiting, says: "does not answer"},
		"a registry that is away": {befall: func(h *diskHost) func() {
			h.registry.Blind(errors.New("it does not answer"))
			return func() { h.registry.Blind(nil) }
		}, state: v1alpha1.PurgeWaiting, says: "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.leave(!tc.unknown, nil)
			req, state := h.request(), tc.state
			if state == "" {
				state = v1alpha1.PurgeRefused
			}
			confirmed := req
			confirmed.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			undo := tc.befall(h)
			h.wantDisk(confirmed, state, tc.says)
			if undo != nil {
				undo()
				h.wantClaimed()
				if state == v1alpha1.PurgeRefused {
					h.wantDisk(confirmed, v1alpha1.PurgeQuarantined, "another quarantine")
				}
				h.wantClaimed()
				h.ask()
				undo = tc.befall(h)
				h.wantDisk(req, state, tc.says)
				undo()
			}
			h.wantClaimed()
		})
	}
}

func (h *diskHost) pathOfDisk() string {
	h.t.Helper()
	for _, d := range h.host.Disks() {
		if d.Serial == leftDisk {
			return d.Path
		}
	}
	h.t.Fatal("the disk is not there")
	return ""
}

func TestPurgeOfAnotherDiskIsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*diskHost, *v1alpha1.PurgeRequest)
		says   string
	}{
		"another identity":       {func(_ *diskHost, r *v1alpha1.PurgeRequest) { r.Identity = "serial x, 1 bytes" }, "another one than was named"},
		"another volume":         {func(_ *diskHost, r *v1alpha1.PurgeRequest) { r.UID = volumetest.ID(9) }, "no disk is claimed for it"},
		"asked of another disk":  {func(h *diskHost, _ *v1alpha1.PurgeRequest) { h.disks.bd.Name = devicetest.Name(otherDisk) }, "not what holds the disk"},
		"an entry of the ledger": {func(_ *diskHost, r *v1alpha1.PurgeRequest) { r.Kind = v1alpha1.LeftOverRecord }, "cannot be purged"},
		"a damaged entry": {func(h *diskHost, _ *v1alpha1.PurgeRequest) {
			if err := os.WriteFile(h.ledgerDir+"/"+volumetest.ID(6)+".json", []byte("{"), 0o600); err != nil {
				h.t.Fatal(err)
			}
			h.start()
		}, "damaged entry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.leave(true, nil)
			req := h.request()
			tc.change(h, &req)
			h.wantDisk(req, v1alpha1.PurgeRefused, tc.says)
			h.wantClaimed()
		})
	}
}

// Killed at any step, the first phase never releases anything, and the second one ends what it has
// begun and touches nothing else.
func TestPurgeOfADiskKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		for n, alive := 0, false; !alive; n++ {
			h := newDiskHost(t)
			h.leave(known, nil)
			req := h.request()
			h.killer.arm(n)
			h.ask(req)
			alive = !h.killer.died()
			h.start()
			h.wantClaimed()

			req.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
			h.killer.arm(n)
			h.ask(req)
			alive = !h.killer.died() && alive
			h.start()
			h.wantDisk(req, v1alpha1.PurgePurged, "")
			if _, err := h.book.Get(req.UID); h.released() == nil || !errors.Is(err, ledger.ErrNotFound) {
				t.Fatalf("killed at step %d: the disk is held still, or in the ledger: %v", n, err)
			}
			if alive && n < 5 {
				t.Errorf("only %d steps were tried", n)
			}

			h.killer.arm(n)
			h.ask()
			alive = !h.killer.died() && alive
			h.start()
			h.ask()
			if files, err := os.ReadDir(h.purgeDir); err != nil || len(files) > 0 {
				t.Fatalf("killed at step %d: records are left: %v, %v", n, files, err)
			}
		}
	}
}

// A removal that has begun does not release a disk that is away, or another one, or one that has got an owner.
func TestPurgeOfADiskThatHadBegun(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		h := newDiskHost(t)
		h.leave(known, nil)
		req := h.request()
		req.Confirm = h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
		h.begin(req)
		h.wantClaimed()
		h.host.Pull(t, leftDisk)
		h.wantDisk(req, v1alpha1.PurgePurging, "the disk is away")
		h.wantClaimed()
		h.host.Push(t, leftDisk)
		if known {
			was := h.on
			h.on = &mount.Superblock{FSType: "xfs", UUID: "theirs"}
			h.wantDisk(req, v1alpha1.PurgePurging, "on the disk is the filesystem theirs")
			h.on = was
		}
		owner := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-back", UID: types.UID(req.UID)}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Mode: v1alpha1.ModeDevice}}
		h.create(owner)
		h.wantDisk(req, v1alpha1.PurgePurging, "LocalVolume pvc-back")
		h.wantClaimed()
		h.remove(owner)
		h.wantDisk(req, v1alpha1.PurgePurged, "")
	}
}

// What is known of the requests when they cannot be read ends no quarantine, and what had begun
// goes on without its request.
func TestPurgeOfADiskWithoutItsRequest(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	h.leave(true, nil)
	req := h.request()
	token := h.wantDisk(req, v1alpha1.PurgeQuarantined, "").Token
	h.disks.err = errors.New("not known yet")
	if _, err := h.tending.tend(t.Context()); err == nil {
		t.Fatal("nobody says that the disks are not known")
	}
	h.disks.err = nil
	if again := h.wantDisk(req, v1alpha1.PurgeQuarantined, ""); again.Token != token {
		t.Fatal("the quarantine was ended")
	}
	req.Confirm = token
	h.begin(req)
	// Its BlockDevice was made anew, without the request.
	h.disks.bd.Status.Purges = nil
	h.ask()
	if h.released() == nil {
		t.Fatal("what had begun did not go on")
	}
}
