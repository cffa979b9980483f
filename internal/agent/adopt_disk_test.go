// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// TakeOver ends the process before and after the disk is handed over.
func (k *killableDisks) TakeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (volume.Record, error) {
	rec, err := k.Backend.TakeOver(ctx, spec, from, func(ctx context.Context) error {
		if err := sure(ctx); err != nil {
			return err
		}
		return k.killer.step()
	})
	if err != nil {
		return rec, err
	}
	return rec, k.killer.step()
}

// told writes the BlockDevice to the API server, as it is.
func (h *diskHost) told() {
	h.t.Helper()
	bd := h.disks.bd.DeepCopy()
	if err := client.IgnoreNotFound(h.api.Delete(h.t.Context(), bd)); err != nil {
		h.t.Fatal(err)
	}
	bd.ResourceVersion = ""
	h.create(bd)
}

// adoption is a LocalVolume that asks for the disk that the volume of this number has.
func (h *diskHost) adoption(of int, mutate ...func(*v1alpha1.LocalVolume)) *v1alpha1.LocalVolume {
	h.t.Helper()
	h.told()
	lv := &v1alpha1.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "again", UID: types.UID(volumetest.ID(7))},
		Spec: v1alpha1.LocalVolumeSpec{
			NodeName: "n1", Mode: v1alpha1.ModeDevice, VolumeMode: v1alpha1.VolumeFilesystem, FSType: "ext4", SizeBytes: mib, Wipe: v1alpha1.WipeDiscard,
			Adopt: &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: volumetest.ID(of), Identity: h.request().Identity}},
		},
	}
	for _, f := range mutate {
		f(lv)
	}
	h.create(lv)
	return lv
}

// holder is the number of the volume that has claimed the disk.
func (h *diskHost) holder() int {
	h.t.Helper()
	claims, err := h.registry.Claims(h.t.Context())
	if err != nil || len(claims) != 1 || claims[0].Name != devicetest.Name(leftDisk) || h.released() != nil {
		h.t.Fatalf("claimed are %+v, %v", claims, err)
	}
	for _, i := range []int{1, 7, 8, 9} {
		if claims[0].Owner.UID == volumetest.ID(i) {
			return i
		}
	}
	h.t.Fatalf("the disk is held by %+v", claims[0].Owner)
	return 0
}

// wantOne fails when two volumes could be staged, or the ledger has forgotten who has the disk.
func (h *diskHost) wantOne(known bool, when string) {
	h.t.Helper()
	staged := 0
	volumes := &Volumes{Ledger: h.book, Backends: h.purger.Carver.Backends, MachineID: machine, CacheSynced: func() bool { return false }}
	for _, name := range []string{"pvc-1", "again"} {
		if _, err := volumes.Locate(h.t.Context(), name); err == nil {
			staged++
		}
	}
	holds := false
	for _, e := range h.book.All() {
		holds = holds || e.Record != nil || e.LeftOver != nil
	}
	if staged > 1 || known && !holds {
		h.t.Fatalf("%s: %d volumes can be staged, and the ledger has %+v", when, staged, h.book.All())
	}
}

func (h *diskHost) wantAdopted(lv *v1alpha1.LocalVolume, when string) ledger.Entry {
	h.t.Helper()
	e, err := h.adopt(lv)
	if err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	kept, err := h.book.Get(e.UID)
	if err != nil || kept.State != ledger.Ready || kept.LeftOver != nil || kept.Name != lv.Name || kept.FSUUID != e.FSUUID || (e.FSType != "") != (e.FSUUID == volumetest.ID(1)) {
		h.t.Fatalf("%s: the ledger has %+v, %v", when, kept, err)
	}
	if len(h.book.All()) != 1 || h.holder() != 7 {
		h.t.Fatalf("%s: the disk is held by %d, and the ledger has %+v", when, h.holder(), h.book.All())
	}
	if _, err := h.backend.Locate(h.t.Context(), e.UID, *kept.Record); err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	return kept
}

// Killed at any step, the disk is one volume's, which the ledger says, and becomes the new one's at
// last; and whatever Berth forgets of it, it is that one's.
func TestAdoptDiskKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("orders"), int(mib/6)+1)[:mib]
	for _, known := range []bool{true, false} {
		for n, alive := 0, false; !alive; n++ {
			h := newDiskHost(t)
			h.leave(known, nil)
			lv := h.adoption(1)
			if err := os.WriteFile(h.pathOfDisk(), content, 0o600); err != nil {
				t.Fatal(err)
			}
			h.killer.arm(n)
			_, err := h.adopt(lv)
			alive = !h.killer.died()
			if alive && err != nil {
				t.Fatal(err)
			}
			h.start()
			when := fmt.Sprintf("known %v, killed at step %d", known, n)
			h.wantOne(known, when)
			e := h.wantAdopted(lv, when)
			h.wantOne(true, when)
			if alive && n < 8 {
				t.Errorf("only %d steps were tried", n)
			}
			// The ledger is lost, before and after the status was written.
			for range 2 {
				h.ledgerDir = t.TempDir()
				h.start()
				h.wantAdopted(lv, when+", its ledger lost")
				setMade(lv, e)
			}
			if now, err := os.ReadFile(h.pathOfDisk()); err != nil || !bytes.Equal(now, content) {
				t.Fatalf("%s: something was written to the disk: %v", when, err)
			}
			// From then on it is deleted as any.
			h.killer.arm(n)
			_ = h.purger.Carver.Remove(t.Context(), wishOf(lv))
			h.start()
			if err := h.purger.Carver.Remove(t.Context(), wishOf(lv)); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if r := h.released(); r == nil || r.Policy != volume.WipeDiscard || len(h.book.All()) > 0 {
				t.Fatalf("%s: deleted, it is %+v, and the ledger has %+v", when, r, h.book.All())
			}
		}
	}
}

// A LocalVolume that has never said that it has the disk takes none of its data along, and leaves a
// disk behind that can be had again; also when it was taken away by force.
func TestAdoptDiskGivenUp(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		for _, forced := range []bool{true, false} {
			for n, alive := 0, false; !alive; n++ {
				h := newDiskHost(t)
				h.leave(known, nil)
				lv := h.adoption(1)
				giveUp := func() error {
					if forced {
						return h.purger.Carver.EndAdoption(t.Context(), string(lv.UID))
					}
					return h.purger.Carver.Remove(t.Context(), wishOf(lv))
				}
				h.killer.arm(n)
				_, _ = h.adopt(lv)
				alive = !h.killer.died()
				h.start()
				h.killer.arm(n / 2)
				_ = giveUp()
				alive = alive && !h.killer.died()
				h.start()
				when := fmt.Sprintf("known %v, forced %v, given up at step %d", known, forced, n)
				h.wantOne(known, when)
				if err := giveUp(); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				holder, all := h.holder(), h.book.All()
				if known && (len(all) != 1 || all[0].UID != volumetest.ID(holder) || all[0].State != ledger.Ready || all[0].LeftOver != nil) || !known && holder == 1 && len(all) > 0 {
					t.Fatalf("%s: the disk is held by %d, and the ledger has %+v", when, holder, all)
				}
				// Somebody else gets it.
				h.remove(lv)
				other := h.adoption(holder, func(lv *v1alpha1.LocalVolume) { lv.Name, lv.UID = "other", types.UID(volumetest.ID(9)) })
				if _, err := h.adopt(other); err != nil || h.holder() != 9 {
					t.Fatalf("%s: it cannot be had any more: %v", when, err)
				}
			}
		}
	}
}

// wantNotAdopted looks whether everything is as it was after a refusal.
func (h *diskHost) wantNotAdopted(lv *v1alpha1.LocalVolume, says string, want error) {
	h.t.Helper()
	before := h.book.All()
	_, err := h.adopt(lv)
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		h.t.Fatalf("it is %v, want %v that says %q", err, want, says)
	}
	if after := h.book.All(); len(after) != len(before) {
		h.t.Fatalf("a refusal has changed something: %+v", after)
	}
}

// The worst that could happen: a disk is given to a second one that was somebody's.
func TestAdoptDiskRefused(t *testing.T) {
	t.Parallel()
	lv := func(name, uid string) *v1alpha1.LocalVolume {
		return &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Mode: v1alpha1.ModeDevice}}
	}
	adopting, same := lv("adopting", volumetest.ID(8)), lv("same", volumetest.ID(8))
	adopting.Spec.Adopt = &v1alpha1.Adoption{Device: devicetest.Name(leftDisk)}
	same.Spec.Adopt = &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: volumetest.ID(1), Identity: "x"}}
	pv := func(name string, source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source}}
	}
	object := func(o client.Object) func(*diskHost) {
		return func(h *diskHost) { h.create(o.DeepCopyObject().(client.Object)) } //nolint:forcetypeassert // a copy is what it is a copy of
	}
	spec := func(change func(*v1alpha1.LocalVolumeSpec)) func(*v1alpha1.LocalVolume) {
		return func(lv *v1alpha1.LocalVolume) { change(&lv.Spec) }
	}
	raw := func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" }
	asRaw := spec(func(s *v1alpha1.LocalVolumeSpec) { s.VolumeMode, s.FSType = v1alpha1.VolumeBlock, "" })
	for name, tc := range map[string]struct {
		mutate  func(*v1alpha1.LocalVolume)
		entry   func(*ledger.Entry)
		unknown bool
		prepare func(*diskHost)
		want    error
		says    string
	}{
		"another identity":          {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Adopt.LeftOver.Identity = "serial x, 1 bytes" }), says: "another one than was named"},
		"another volume":            {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Adopt.LeftOver.UID = volumetest.ID(6) }), says: "no disk is claimed for it"},
		"its own name":              {mutate: func(lv *v1alpha1.LocalVolume) { lv.Name = "pvc-1" }, says: "needs another name"},
		"a larger one":              {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.SizeBytes = mib + 1 }), says: "spec.sizeBytes is 1048577, and disk bd-disk-0 has 1048576 bytes"},
		"to be encrypted":           {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Encryption = v1alpha1.EncryptionLUKS2 }), want: volume.ErrInvalid, says: "names nothing else"},
		"with a disk beside it":     {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.Adopt.Device = "bd-x" }), want: volume.ErrInvalid, says: "names nothing else"},
		"as a raw volume":           {mutate: asRaw, says: "it was of volumeMode Filesystem"},
		"a raw one as a filesystem": {entry: raw, says: "it was of volumeMode Block"},
		"of another type":           {mutate: spec(func(s *v1alpha1.LocalVolumeSpec) { s.FSType = "xfs" }), says: "ext4 is on it, and spec.fsType is xfs"},
		"encrypted": {entry: func(e *ledger.Entry) {
			e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, UUID: e.UID, Seal: ledger.Sealed, Cipher: "aes-xts-plain64", KeyGeneration: 1}
		}, prepare: func(h *diskHost) {
			h.seal(1)
		}, says: "it is encrypted"},
		"encrypted, not known":         {unknown: true, mutate: asRaw, prepare: func(h *diskHost) { h.seal(1) }, says: "it is encrypted"},
		"handed over, to be wiped":     {entry: func(e *ledger.Entry) { e.Adopted, e.Wipe = true, volume.WipeNone }, says: "spec.wipe must be none"},
		"another filesystem":           {prepare: func(h *diskHost) { h.on = &mount.Superblock{FSType: "ext4", UUID: "theirs"} }, says: "on the disk is the filesystem theirs"},
		"another one, never formatted": {entry: func(e *ledger.Entry) { e.State = ledger.Carved }, prepare: func(h *diskHost) { h.on = &mount.Superblock{FSType: "ext4", UUID: "theirs"} }, says: "on the disk is the filesystem theirs"},
		"no filesystem":                {prepare: func(h *diskHost) { h.on = nil }, says: "no ext4, xfs or btrfs is on it"},
		"its LocalVolume":              {prepare: object(lv("pvc-back", volumetest.ID(1))), says: "LocalVolume pvc-back"},
		"a LocalVolume so called":      {prepare: object(lv("pvc-1", volumetest.ID(8))), says: "LocalVolume pvc-1", unknown: true},
		"one that would adopt it":      {prepare: object(adopting), says: "LocalVolume adopting, which asks to adopt the disk"},
		"one that asks the same":       {prepare: object(same), says: "LocalVolume same, which asks to adopt it"},
		"a PersistentVolume":           {prepare: object(pv("by-hand", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: "pvc-1"}})), says: "PersistentVolume by-hand", unknown: true},
		"a local PersistentVolume":     {prepare: object(pv("local", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/dev/disk/by-id/virtio-disk-0"}})), says: "PersistentVolume local"},
		"in a quarantine":              {prepare: func(h *diskHost) { h.quarantine() }, says: "asked to purge it"},
		"asked to be purged":           {prepare: func(h *diskHost) { h.disks.bd.Spec.Purge = []v1alpha1.PurgeRequest{h.request()}; h.told() }, says: "spec.purge of its BlockDevice"},
		"being deleted":                {entry: func(e *ledger.Entry) { e.State = ledger.Deleting }, says: "deletion has begun"},
		"at work":                      {prepare: func(h *diskHost) { h.purger.Carver.Locks.TryLock("pvc-1") }, want: errAtWork, says: "volume pvc-1"},
		"reserved":                     {prepare: func(h *diskHost) { h.disks.bd.Spec.Reserved = "for the backup team"; h.told() }, says: "reserved: for the backup team"},
		"part of a pool":               {prepare: func(h *diskHost) { h.pooled = "fast" }, says: "part of pool fast"},
		"mounted or opened": {prepare: func(h *diskHost) {
			disk, err := h.host.Opener().Open(h.t.Context(), h.pathOfDisk())
			if err != nil {
				h.t.Fatal(err)
			}
			h.t.Cleanup(func() { _ = disk.Close() })
		}, says: "in use"},
		"published":                      {entry: raw, mutate: asRaw, prepare: func(h *diskHost) { h.mounts = []string{"/var/lib/kubelet/x"} }, says: "published at"},
		"gone":                           {prepare: func(h *diskHost) { h.host.Pull(h.t, leftDisk) }, says: "not found"},
		"a second disk of that identity": {prepare: func(h *diskHost) { h.host.Add(h.t, leftDisk, mib) }, says: "identity"},
		"two disks": {prepare: func(h *diskHost) {
			if _, err := h.registry.Claim(h.t.Context(), devicetest.Name(otherDisk), device.Owner{UID: volumetest.ID(1), Name: "pvc-1", Kind: device.OwnerVolume}); err != nil {
				h.t.Fatal(err)
			}
		}, says: "it holds the disks"},
		"in the ledger for another one": {prepare: func(h *diskHost) {
			e, err := h.book.Get(volumetest.ID(1))
			if err != nil {
				h.t.Fatal(err)
			}
			e.UID, e.Name = volumetest.ID(6), "pvc-6"
			if err := h.book.Put(e); err != nil {
				h.t.Fatal(err)
			}
		}, says: "for volume pvc-6"},
		"adopted by what the ledger knows": {prepare: func(h *diskHost) { h.begun("pvc-6", 6) }, says: "adoption as volume pvc-6"},
		"a damaged entry": {prepare: func(h *diskHost) {
			if err := os.WriteFile(h.ledgerDir+"/"+volumetest.ID(6)+".json", []byte("{"), 0o600); err != nil {
				h.t.Fatal(err)
			}
			h.start()
		}, says: "damaged entry"},
		"without the API server": {prepare: func(h *diskHost) { h.away = errAway }, want: errAway, says: "is away"},
		"without the registry":   {prepare: func(h *diskHost) { h.registry.Blind(errAway) }, want: errAway, says: "is away"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.leave(!tc.unknown, tc.entry)
			mutate := tc.mutate
			if mutate == nil {
				mutate = func(*v1alpha1.LocalVolume) {}
			}
			lv := h.adoption(1, mutate)
			if tc.prepare != nil {
				tc.prepare(h)
			}
			want := tc.want
			if want == nil {
				want = volume.ErrNotAdoptable
			}
			h.wantNotAdopted(lv, tc.says, want)
			h.registry.Blind(nil)
			if held, ok, err := h.registry.ClaimedBy(t.Context(), volumetest.ID(1)); err != nil || !ok || name != "two disks" && held.Name != devicetest.Name(leftDisk) {
				t.Fatalf("the left-over holds %+v, %v, %v", held, ok, err)
			}
		})
	}
}

var errAway = errors.New("it is away")

// seal puts the LUKS header of that UUID on the disk.
func (h *diskHost) seal(uuid int) {
	h.t.Helper()
	h.vault, h.on = newVault(h.t, h.killer), nil
	h.vault.headers[h.vault.store(h.pathOfDisk())] = &vaultHeader{uuid: volumetest.ID(uuid)}
	h.start()
}

// begun writes the ledger's entry of an adoption of the left-over that was killed in the middle.
func (h *diskHost) begun(name string, i int) {
	h.t.Helper()
	if err := h.book.Put(ledger.Entry{
		UID: volumetest.ID(i), Name: name, MachineID: machine, State: ledger.Carving, Mode: volume.ModeDevice, Access: volume.AccessFilesystem,
		FSType: "ext4", FSUUID: volumetest.ID(1), Wipe: volume.WipeZero, LeftOver: &ledger.LeftOver{UID: volumetest.ID(1), Identity: h.request().Identity},
	}); err != nil {
		h.t.Fatal(err)
	}
}

// quarantine has the record of a purge of the disk, whose request is not seen.
func (h *diskHost) quarantine() {
	h.t.Helper()
	rec := &purgeRecord{
		UID: volumetest.ID(1), Kind: v1alpha1.LeftOverVolume, Identity: h.request().Identity, PoolSet: placeOfDisk(devicetest.Name(leftDisk)), MachineID: machine,
		Names: []string{"pvc-1"}, Token: newPurgeToken(), Since: time.Unix(1, 0).UTC(), State: v1alpha1.PurgeQuarantined,
	}
	if err := h.purger.records.put(nil, rec); err != nil {
		h.t.Fatal(err)
	}
}

// What was never Ready can be adopted as well, a raw one, and one that the ledger does not know.
func TestAdoptDiskOfAnyKind(t *testing.T) {
	t.Parallel()
	raw := func(lv *v1alpha1.LocalVolume) { lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, "" }
	for name, tc := range map[string]struct {
		known  bool
		entry  func(*ledger.Entry)
		mutate func(*v1alpha1.LocalVolume)
		header int
	}{
		"raw":                        {known: true, entry: func(e *ledger.Entry) { e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" }, mutate: raw},
		"raw, not known":             {mutate: raw},
		"raw, encrypted by its user": {mutate: raw, header: 9},
		"a smaller one":              {known: true, mutate: func(lv *v1alpha1.LocalVolume) { lv.Spec.SizeBytes = mib / 2 }},
		"that was carved":            {known: true, entry: func(e *ledger.Entry) { e.State = ledger.Carved }},
		"that was carving":           {known: true, entry: func(e *ledger.Entry) { e.State, e.Record = ledger.Carving, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newDiskHost(t)
			h.leave(tc.known, tc.entry)
			mutate := tc.mutate
			if mutate == nil {
				mutate = func(*v1alpha1.LocalVolume) {}
			}
			if tc.header != 0 {
				h.seal(tc.header)
			}
			if e := h.wantAdopted(h.adoption(1, mutate), name); e.Adopted || e.Record.SizeBytes != mib {
				t.Errorf("it is %+v", e)
			}
		})
	}
}

// A disk that was handed over with its data is given back with them by whoever has it at last,
// whatever its LocalVolume says by then.
func TestAdoptDiskThatWasHandedOver(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	h.leave(true, func(e *ledger.Entry) { e.Adopted, e.Wipe = true, volume.WipeNone })
	lv := h.adoption(1, func(lv *v1alpha1.LocalVolume) { lv.Spec.Wipe = v1alpha1.WipeNone })
	h.killer.arm(2) // what is meant is in the ledger
	if _, err := h.adopt(lv); err == nil {
		t.Fatal("it was not killed")
	}
	h.start()
	e := h.wantAdopted(lv, "handed over")
	if !e.Adopted {
		t.Fatal("nobody knows that it was handed over")
	}
	setMade(lv, e)
	lv.Spec.Wipe = v1alpha1.WipeZero
	if err := h.purger.Carver.Remove(t.Context(), wishOf(lv)); err != nil {
		t.Fatal(err)
	}
	if r := h.released(); r == nil || r.Policy != volume.WipeNone || r.Token != "" {
		t.Errorf("it is released as %+v", r)
	}
}

// A LocalVolume that was taken away by force and made anew does not stand in its own way.
func TestAdoptDiskForANamesake(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	h.leave(true, nil)
	h.begun("again", 8)
	h.wantAdopted(h.adoption(1), "after its namesake")
}

// In the place of the disk is another one when the call is taken up: nothing is forgotten.
func TestAdoptDiskThatIsAnotherMeanwhile(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	h.leave(true, nil)
	lv := h.adoption(1)
	h.killer.arm(4) // it is handed over, and the ledger does not say so yet
	if _, err := h.adopt(lv); err == nil || h.holder() != 7 {
		t.Fatalf("it was killed elsewhere: %v", err)
	}
	h.start()
	was := h.on
	h.on = &mount.Superblock{FSType: "ext4", UUID: "theirs"}
	h.wantNotAdopted(lv, "on the disk is the filesystem theirs", volume.ErrNotAdoptable)
	h.on = was
	h.wantAdopted(lv, "when it is back")
}

// What is asked to be adopted is not purged, nor what is being adopted.
func TestPurgeKeepsADiskThatIsAdopted(t *testing.T) {
	t.Parallel()
	h := newDiskHost(t)
	h.leave(true, nil)
	req := h.request()
	lv := h.adoption(1)
	h.wantDisk(req, v1alpha1.PurgeRefused, "LocalVolume again, which asks to adopt it")
	h.ask()
	h.killer.arm(2) // what is meant is in the ledger
	if _, err := h.adopt(lv); err == nil {
		t.Fatal("it was not killed")
	}
	h.start()
	h.remove(lv) // its finalizer was taken away by force
	h.wantDisk(req, v1alpha1.PurgeRefused, "its adoption as volume again")
	h.wantClaimed()
	h.ask()
	// The agent sees that it is gone.
	r := &VolumeReconciler{Client: h.api, Carver: h.purger.Carver, Ledger: h.book, Limiter: &Limiter{}}
	if _, err := r.ReconcileLive(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "again"}}); err != nil {
		t.Fatal(err)
	}
	h.wantDisk(req, v1alpha1.PurgeQuarantined, "")
}
