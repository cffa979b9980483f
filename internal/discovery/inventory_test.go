// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestDiskComesGoesAndReturnsUnderAnotherName(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("A")
	bd := inv.get(t, name)
	if reason, _ := usable(bd); reason != v1alpha1.ReasonBlank || bd.Status.State != v1alpha1.DeviceActive || bd.Status.Path != "/dev/vdb" ||
		bd.Status.ClaimState != v1alpha1.ClaimStateUnclaimed || bd.Status.MachineID != "machine-1" || bd.Status.SizeBytes != 1<<30 {
		t.Fatalf("after discovery: %+v", bd)
	}
	owner := device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}
	if _, err := inv.Claim(t.Context(), name, owner); err != nil {
		t.Fatal(err)
	}

	host.removeDisk("vdb")
	inv.walk(t)
	bd = inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonGone || message != "gone; it was /dev/vdb" {
		t.Errorf("gone: %s %q", reason, message)
	}
	if bd.Status.State != v1alpha1.DeviceInactive || bd.Status.Path != "" || bd.Spec.ClaimRef == nil || bd.Status.ClaimState != v1alpha1.ClaimStateClaimed {
		t.Errorf("gone: %+v", bd)
	}
	if !inv.recorder.has("Gone", "/dev/vdb") {
		t.Errorf("no Event: %q", inv.recorder.notes)
	}
	if _, err := inv.Resolve(t.Context(), name); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Resolve of a disk that is gone: %v, want ErrNotFound", err)
	}
	before := bd.ResourceVersion
	inv.walk(t)
	if bd = inv.get(t, name); bd.ResourceVersion != before {
		t.Error("a walk that found no news wrote the object")
	}

	host.addDisk("vdz", "A", 400, 1<<30)
	inv.walk(t)
	bd = inv.get(t, name)
	if bd.Status.State != v1alpha1.DeviceActive || bd.Status.Path != "/dev/vdz" || bd.Spec.ClaimRef == nil {
		t.Errorf("returned: %+v", bd)
	}
	resolved, err := inv.Resolve(t.Context(), name)
	if err != nil || resolved.Path != "/dev/vdz" || resolved.Owner != owner {
		t.Errorf("Resolve = %+v, %v", resolved, err)
	}
}

func TestOneIdentityTwice(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "SAME", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("SAME")
	host.addDisk("vdc", "SAME", 32, 1<<30)
	// Before discovery has noticed: the claim itself looks.
	if _, err := inv.Claim(t.Context(), name, device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); !errors.Is(err, volume.ErrInvalid) || !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Claim of a cloned disk: %v, want ErrInvalid and ErrIdentity", err)
	}
	inv.walk(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonConflicted || !strings.Contains(message, "/dev/vdb and /dev/vdc") {
		t.Errorf("%s %q", reason, message)
	}
	if bd.Status.Path != "/dev/vdb,/dev/vdc" || bd.Spec.ClaimRef != nil {
		t.Errorf("%+v", bd)
	}
	if !inv.recorder.has("Conflicted", "/dev/vdb", "/dev/vdc") {
		t.Errorf("no Event: %q", inv.recorder.notes)
	}
	if _, err := inv.Resolve(t.Context(), name); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Resolve: %v, want ErrIdentity", err)
	}
	host.removeDisk("vdb")
	inv.walk(t)
	if reason, _ := usable(inv.get(t, name)); reason != v1alpha1.ReasonBlank {
		t.Errorf("one of the two taken out: %s", reason)
	}
}

func TestFiltersReload(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	if err := inv.loadObjects(t.Context()); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	close(inv.ready)
	if reason, _ := usable(inv.get(t, nameOf("A"))); reason != v1alpha1.ReasonFiltersMissing {
		t.Errorf("before any filters: %s, want FiltersMissing", reason)
	}
	owner := device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}
	if _, err := inv.Claim(t.Context(), nameOf("A"), owner); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Claim before any filters: %v, want ErrInvalid", err)
	}
	if err := inv.SetConfig(config("filterconfigs: [{key: path-filter, state: true, exclude: /dev/vdc}]")); err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	if reason, _ := usable(inv.get(t, nameOf("A"))); reason != v1alpha1.ReasonBlank {
		t.Errorf("with filters: %s", reason)
	}
	if reason, message := usable(inv.get(t, nameOf("B"))); reason != v1alpha1.ReasonFiltered || message != `dropped by filter "path-filter": /dev/vdc starts with /dev/vdc` {
		t.Errorf("dropped: %s %q", reason, message)
	}
	if err := inv.SetConfig(config("filterconfigs: [{key: path-filter, stat: true}]")); err == nil {
		t.Error("a broken configuration was taken")
	}
	if !inv.recorder.has("InvalidFilters", "line 1", `"stat"`) {
		t.Errorf("no Event on the ConfigMap: %q", inv.recorder.notes)
	}
	if err := inv.SetConfig(nil); err == nil {
		t.Error("a deleted ConfigMap is no error")
	}
	inv.settleAll(t)
	for serial, want := range map[string]string{"A": v1alpha1.ReasonBlank, "B": v1alpha1.ReasonFiltered} {
		if reason, _ := usable(inv.get(t, nameOf(serial))); reason != want {
			t.Errorf("%s after a broken and a deleted configuration: %s, want %s as before", serial, reason, want)
		}
	}
	if _, err := inv.Claim(t.Context(), nameOf("A"), owner); err != nil {
		t.Fatal(err)
	}
	if err := inv.SetConfig(config("filterconfigs: [{key: path-filter, state: true, exclude: /dev}]")); err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	if bd := inv.get(t, nameOf("A")); bd.Spec.ClaimRef == nil {
		t.Error("a narrower filter took a claim away")
	} else if reason, _ := usable(bd); reason != v1alpha1.ReasonClaimed {
		t.Errorf("a claimed disk that a filter drops: %s", reason)
	}
}

func TestReservedByTheOperator(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	bd := inv.get(t, nameOf("A"))
	bd.Spec.Reserved = "for the database"
	if err := inv.client.Update(t.Context(), bd); err != nil {
		t.Fatal(err)
	}
	// The inventory has not heard of it; the API server refuses its write.
	if _, err := inv.Claim(t.Context(), bd.Name, device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Claim of a disk reserved a moment ago: %v, want ErrInvalid", err)
	}
	inv.settleAll(t)
	bd = inv.get(t, bd.Name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonReserved || message != "reserved: for the database" || bd.Spec.Reserved == "" {
		t.Errorf("%s %q, %+v", reason, message, bd.Spec)
	}
}

func TestContentIsReadAgainOnlyWhenSomethingHappened(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	reads := 0
	inv.examiner.content = func(context.Context, *block.Device) *examination {
		reads++
		return &examination{blank: reads != 2}
	}
	inv.start(t)
	inv.settleAll(t)
	if reads != 1 {
		t.Errorf("%d reads of a disk to which nothing happened", reads)
	}
	refresh := func(udevOnly bool) {
		if _, err := inv.refresh(t.Context(), map[string]bool{"vdb": !udevOnly}); err != nil {
			t.Fatal(err)
		}
		inv.settleAll(t)
	}
	refresh(true)
	if reads != 1 {
		t.Errorf("%d reads after udev wrote its record", reads)
	}
	refresh(false)
	if reason, _ := usable(inv.get(t, nameOf("A"))); reads != 2 || reason != v1alpha1.ReasonHasContent {
		t.Errorf("after an event: %d reads, %s", reads, reason)
	}
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Claim of a disk with content: %v", err)
	}
}

// The kernel tells of the logical volume, not of the disk below it.
func TestADiskGetsAndLosesAHolder(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	event := func() {
		if _, err := inv.refresh(t.Context(), map[string]bool{"dm-0": true}); err != nil {
			t.Fatal(err)
		}
		inv.settleAll(t)
	}
	host.addLogicalVolume("dm-0", "customer-data", "vdb", 0)
	event()
	if reason, message := usable(inv.get(t, nameOf("A"))); reason != v1alpha1.ReasonInUse || !strings.Contains(message, "customer") {
		t.Errorf("a disk with a logical volume on it: %s: %s", reason, message)
	}
	if holders := inv.get(t, nameOf("A")).Status.Holders; !slices.Equal(holders, []string{"dm-0"}) {
		t.Errorf("its holders are %q", holders)
	}
	if reason, _ := usable(inv.get(t, nameOf("B"))); reason != v1alpha1.ReasonBlank {
		t.Errorf("the other disk: %s", reason)
	}
	host.removeDisk("dm-0")
	if err := os.Remove(filepath.Join(host.root, "sys/class/block/vdb/holders/dm-0")); err != nil {
		t.Fatal(err)
	}
	event()
	if reason, message := usable(inv.get(t, nameOf("A"))); reason != v1alpha1.ReasonBlank {
		t.Errorf("after the logical volume went: %s: %s", reason, message)
	}
}

func TestAbandonIsNotAWipe(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("A")
	if _, err := inv.Claim(t.Context(), name, device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	if err := inv.Abandon(t.Context(), name, "somebody else"); err != nil {
		t.Fatal(err)
	}
	if bd := inv.get(t, name); bd.Spec.ClaimRef == nil {
		t.Fatal("somebody else's Abandon took the claim away")
	}
	inv.examiner.content = func(context.Context, *block.Device) *examination {
		return &examination{found: block.Content{Type: "xfs"}}
	}
	for range 2 {
		if err := inv.Abandon(t.Context(), name, "u"); err != nil {
			t.Fatal(err)
		}
	}
	inv.settleAll(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonHasContent || !strings.Contains(message, "xfs") || bd.Spec.ClaimRef != nil || bd.Status.Wipe != nil {
		t.Errorf("after Abandon: %s %q, %+v", reason, message, bd)
	}
}

func TestReleasedWithPolicyNone(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("A")
	if _, err := inv.Claim(t.Context(), name, device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	blank := false
	inv.examiner.content = func(context.Context, *block.Device) *examination {
		return &examination{blank: blank, found: block.Content{Type: "ext4"}}
	}
	if token, err := inv.Release(t.Context(), name, "u", volume.WipeNone); err != nil || token != "" {
		t.Fatalf("Release = %q, %v", token, err)
	}
	inv.settleAll(t)
	if bd := inv.get(t, name); bd.Status.ClaimState != v1alpha1.ClaimStateReleased {
		t.Fatalf("not blank, and %s", bd.Status.ClaimState)
	}
	blank = true // wipefs by the operator, and the event of it
	if _, err := inv.refresh(t.Context(), map[string]bool{"vdb": true}); err != nil {
		t.Fatal(err)
	}
	inv.settleAll(t)
	if bd := inv.get(t, name); bd.Status.ClaimState != v1alpha1.ClaimStateUnclaimed || bd.Spec.ClaimRef != nil || len(bd.Finalizers) != 0 {
		t.Errorf("cleaned by hand: %+v", bd)
	}
}

func TestNodeMadeAnewUnderAnOldName(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "n", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	other := newTestInventory(t, host, inv.client)
	other.opts.MachineID = "machine-2"
	other.start(t)
	if _, err := other.Resolve(t.Context(), nameOf("A")); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Resolve on another machine: %v, want ErrIdentity", err)
	}
	if bd := other.get(t, nameOf("A")); bd.Status.MachineID != "machine-1" {
		t.Errorf("the claim was carried over to %s", bd.Status.MachineID)
	}
}

func TestUnreadableIsNotGone(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	host.write("sys/class/block/vdb/size", "rubbish")
	host.write("sys/class/block/vdb/serial", "")
	if _, err := inv.Resolve(t.Context(), nameOf("A")); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("Resolve while a disk cannot be read: %v, want an error that is not ErrNotFound", err)
	}
}

// Who looked too early is not left with that for a minute, also where nothing has changed since
// the last agent.
func TestReadinessIsTold(t *testing.T) {
	t.Parallel()
	for name, disks := range map[string][]string{"no disk": nil, "disks": {"A", "B"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			for i, serial := range disks {
				host.addDisk("vd"+string(rune('b'+i)), serial, 16*i, 1<<30)
			}
			inv := newTestInventory(t, host, newFakeClient(t))
			if _, err := inv.rescan(t.Context()); err != nil {
				t.Fatal(err)
			}
			changed, cancel := inv.Subscribe()
			defer cancel()
			inv.expectAll()
			for _, serial := range disks {
				select {
				case <-changed:
				default:
				}
				if inv.Ready() {
					t.Fatal("ready too early")
				}
				inv.judged(nameOf(serial))
			}
			if !inv.Ready() {
				t.Fatal("not ready")
			}
			select {
			case <-changed:
			default:
				t.Error("nobody was told")
			}
		})
	}
}
