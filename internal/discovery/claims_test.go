// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestTwoHundredClaimsOnTwentyDisks(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	const disks, claimants = 20, 200
	for i := range disks {
		host.addDisk(fmt.Sprintf("vd%c", 'b'+i), fmt.Sprintf("SER-%02d", i), 16*(i+1), 1<<30)
	}
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	candidates, err := inv.Candidates(t.Context())
	if err != nil || len(candidates) != disks {
		t.Fatalf("%d candidates, %v", len(candidates), err)
	}
	var wg sync.WaitGroup
	got := make([]string, claimants)
	for i := range claimants {
		wg.Go(func() {
			// Every claimant goes through all the disks in the same order: the worst case.
			for _, disk := range candidates {
				claimed, err := inv.Claim(t.Context(), disk.Name, device.Owner{
					UID: fmt.Sprintf("uid-%d", i), Name: fmt.Sprintf("pvc-%d", i), Kind: device.OwnerVolume,
				})
				switch {
				case err == nil:
					got[i] = claimed.Name
					return
				case !errors.Is(err, volume.ErrBusy):
					t.Errorf("claim %d on %s: %v", i, disk.Name, err)
					return
				}
			}
		})
	}
	wg.Wait()
	holders := map[string]string{}
	for i, name := range got {
		if name == "" {
			continue
		}
		if other, taken := holders[name]; taken {
			t.Errorf("disk %s was given to claimant %d and to %s", name, i, other)
		}
		holders[name] = fmt.Sprint(i)
		bd := inv.get(t, name)
		if bd.Spec.ClaimRef == nil || string(bd.Spec.ClaimRef.UID) != fmt.Sprintf("uid-%d", i) {
			t.Errorf("disk %s: claimRef %+v, want claimant %d", name, bd.Spec.ClaimRef, i)
		}
	}
	if len(holders) != disks {
		t.Errorf("%d disks were given away, want all %d", len(holders), disks)
	}
}

func TestLifeOfAClaim(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "FAST-1", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name, ctx := nameOf("FAST-1"), t.Context()
	owner := device.Owner{UID: "uid-1", Name: "pvc-1", Kind: device.OwnerVolume}

	if _, found, err := inv.ClaimedBy(ctx, owner.UID); err != nil || found {
		t.Fatalf("ClaimedBy before the claim: %v, %v", found, err)
	}
	for range 2 {
		claimed, err := inv.Claim(ctx, name, owner)
		if err != nil || claimed.State != device.StateClaimed || claimed.Owner != owner || claimed.Path != "/dev/vdb" {
			t.Fatalf("Claim = %+v, %v", claimed, err)
		}
	}
	other := device.Owner{UID: "uid-2", Name: "pvc-2", Kind: device.OwnerVolume}
	if _, err := inv.Claim(ctx, name, other); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("a second owner: %v, want ErrBusy", err)
	}
	if reason, message := usable(inv.get(t, name)); reason != v1alpha1.ReasonClaimed || message != "held by LocalVolume pvc-1" {
		t.Errorf("Usable: %s %q", reason, message)
	}

	// Another process of the same node knows it, too.
	second := newTestInventory(t, host, inv.client)
	second.start(t)
	if claimed, found, err := second.ClaimedBy(ctx, owner.UID); err != nil || !found || claimed.Name != name {
		t.Errorf("ClaimedBy after a restart: %+v, %v, %v", claimed, found, err)
	}

	token, err := inv.Release(ctx, name, owner.UID, volume.WipeZero)
	if err != nil || token == "" {
		t.Fatalf("Release = %q, %v", token, err)
	}
	if again, err := inv.Release(ctx, name, owner.UID, volume.WipeZero); err != nil || again != token {
		t.Errorf("Release again = %q, %v, want the same token", again, err)
	}
	if _, found, err := inv.ClaimedBy(ctx, owner.UID); err != nil || found {
		t.Errorf("ClaimedBy after the release: %v, %v", found, err)
	}
	if _, err := inv.Claim(ctx, name, other); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Claim of a released disk: %v, want ErrBusy", err)
	}
	inv.walk(t) // discovery does not make it usable: it is blank, and not yet clean
	if candidates, err := inv.Candidates(ctx); err != nil || len(candidates) != 0 {
		t.Errorf("a released disk is a candidate: %v, %v", candidates, err)
	}
	resolved, err := inv.Resolve(ctx, name)
	if err != nil || resolved.WipeToken != token || resolved.State != device.StateReleased {
		t.Errorf("Resolve = %+v, %v", resolved, err)
	}
	if err := inv.FinishWipe(ctx, name, "another token", true, ""); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("FinishWipe with another token: %v, want ErrNotFound", err)
	}
	if err := inv.FinishWipe(ctx, name, token, false, "data at offset 5 after the wipe"); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	if reason, message := usable(inv.get(t, name)); reason != v1alpha1.ReasonWipeFailed || message != "data at offset 5 after the wipe" {
		t.Errorf("after a failed wipe: %s %q", reason, message)
	}
	released, err := inv.Released(ctx)
	if err != nil || len(released) != 1 || released[0].Token != token || released[0].Policy != volume.WipeZero {
		t.Errorf("Released = %+v, %v", released, err)
	}
	if err := inv.FinishWipe(ctx, name, token, true, ""); err != nil {
		t.Fatal(err)
	}
	if err := inv.FinishWipe(ctx, name, token, true, ""); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a token used twice: %v, want ErrNotFound", err)
	}
	bd := inv.get(t, name)
	if bd.Spec.ClaimRef != nil || bd.Status.ClaimState != v1alpha1.ClaimStateUnclaimed || bd.Status.Wipe != nil || len(bd.Finalizers) != 0 {
		t.Errorf("after the wipe: %+v", bd)
	}
	if candidates, err := inv.Candidates(ctx); err != nil || len(candidates) != 1 {
		t.Errorf("candidates after the wipe: %v, %v", candidates, err)
	}
}

// A serial number that a hypervisor invents comes back with whatever disk is in the slot
// next. The size of the disk that was released is what tells the two apart.
func TestReleasedDiskOfAnotherSize(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "drive-1", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name, ctx := nameOf("drive-1"), t.Context()
	inv.hold(t, name)
	token, err := inv.Release(ctx, name, "u", volume.WipeZero)
	if err != nil {
		t.Fatal(err)
	}
	host.removeDisk("vdb")
	inv.walk(t)
	host.addDisk("vdb", "drive-1", 17, 2<<30)
	inv.walk(t)
	released, err := inv.Released(ctx)
	if err != nil || len(released) != 1 || released[0].SizeBytes != 1<<30 {
		t.Errorf("Released = %+v, %v, want the size that it had", released, err)
	}
	if now, err := inv.Resolve(ctx, name); err != nil || now.SizeBytes != 2<<30 {
		t.Errorf("Resolve = %+v, %v, want the size that it has", now, err)
	}
	host.removeDisk("vdb")
	host.addDisk("vdc", "drive-1", 18, 1<<30)
	inv.walk(t)
	if err := inv.FinishWipe(ctx, name, token, true, ""); err != nil {
		t.Fatal(err)
	}
	host.addDisk("vdc", "drive-1", 18, 3<<30)
	inv.walk(t)
	if size := inv.get(t, name).Status.SizeBytes; size != 3<<30 {
		t.Errorf("the size of a disk that was wiped and grew is %d", size)
	}
}

func TestProgressOfAWipe(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("A")
	inv.hold(t, name)
	if _, err := inv.Release(t.Context(), name, "u", volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	inv.WipeStarted(name, volume.WipeZero)
	queued := inv.queue.Len()
	inv.WipeProgress(name, 1<<28, 1<<30)
	if inv.queue.Len() != queued {
		t.Error("the first seconds are worth a write")
	}
	inv.mu.Lock()
	inv.disk(name).shownAt = time.Now().Add(-showWipeEvery)
	inv.mu.Unlock()
	inv.WipeProgress(name, 453<<20, 1<<30)
	inv.settleAll(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonCleaning || message != "released by LocalVolume pvc, being wiped (zero), 44% done" {
		t.Errorf("%s %q", reason, message)
	}
	if bd.Status.Wipe == nil || bd.Status.Wipe.DoneBytes != 453<<20 || bd.Status.Wipe.Token == "" {
		t.Errorf("%+v", bd.Status.Wipe)
	}
	if got := testutil.ToFloat64(inv.metrics.wiped.WithLabelValues(name)); got != 453<<20 {
		t.Errorf("berth_disk_wiped_bytes %v", got)
	}
	inv.WipeEnded(name, volume.WipeZero, errors.New("stopped"))
	if n := testutil.CollectAndCount(inv.metrics.wiped); n != 0 {
		t.Errorf("%d series of a disk that is not being wiped", n)
	}
	inv.settleAll(t)
	if _, message := usable(inv.get(t, name)); message != "released by LocalVolume pvc, being wiped (zero)" {
		t.Errorf("a wipe that has stopped: %q", message)
	}
}
