// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

var (
	failing = Health{Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonSelfFailing, Message: "its own check has failed"}
	well    = Health{Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonGood, Message: "it says that it is well"}
)

func TestFailingDiskIsNotHandedOut(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	c := newFakeClient(t)
	inv := newTestInventory(t, host, c)
	inv.start(t)
	name := nameOf("A")
	owner := device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}

	inv.SetHealth(name, well)
	inv.settleAll(t)
	if reason, _ := usable(inv.get(t, name)); reason != v1alpha1.ReasonBlank || len(inv.recorder.notes) != 0 {
		t.Errorf("a disk that is well: %s, Events %q", reason, inv.recorder.notes)
	}
	inv.SetHealth(name, failing)
	inv.settleAll(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonFailing || !strings.Contains(message, failing.Message) {
		t.Errorf("%s %q", reason, message)
	}
	if !meta.IsStatusConditionFalse(bd.Status.Conditions, v1alpha1.BlockDeviceHealthy) || !inv.recorder.has("SelfFailing", "/dev/vdb", failing.Message) {
		t.Errorf("conditions %+v, Events %q", bd.Status.Conditions, inv.recorder.notes)
	}
	if _, err := inv.Claim(t.Context(), name, owner); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), failing.Message) {
		t.Errorf("Claim: %v, want ErrInvalid", err)
	}
	if disks, err := inv.Candidates(t.Context()); err != nil || len(disks) != 0 {
		t.Errorf("candidates %+v, %v", disks, err)
	}

	// Another process knows it from the object, before it has looked itself.
	after := newTestInventory(t, host, c)
	after.start(t)
	if _, err := after.Claim(t.Context(), name, owner); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Claim after a restart: %v, want ErrInvalid", err)
	}
	if got := after.Failing(); len(got) != 1 || got[0] != (FailingDisk{Name: name, KernelName: "vdb", Message: failing.Message}) {
		t.Errorf("Failing() = %+v", got)
	}
	after.SetHealth(name, well)
	after.settleAll(t)
	if reason, _ := usable(after.get(t, name)); reason != v1alpha1.ReasonBlank || !after.recorder.has("Good", "/dev/vdb") || len(after.Failing()) != 0 {
		t.Errorf("well again: %s, Events %q", reason, after.recorder.notes)
	}
}

// Where nobody asks any more, an operator takes a disk back by deleting its object.
func TestFailingDiskIsForgottenWithItsObject(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	c := newFakeClient(t)
	first := newTestInventory(t, host, c)
	first.start(t)
	name := nameOf("A")
	first.SetHealth(name, failing)
	first.settleAll(t)

	inv := newTestInventory(t, host, c)
	inv.start(t)
	bd := inv.get(t, name)
	if reason, _ := usable(bd); reason != v1alpha1.ReasonFailing {
		t.Fatalf("after a restart: %s", reason)
	}
	if err := c.Delete(t.Context(), bd); err != nil {
		t.Fatal(err)
	}
	inv.ObserveDeletion(bd)
	inv.settleAll(t)
	if reason, _ := usable(inv.get(t, name)); reason != v1alpha1.ReasonBlank {
		t.Errorf("after its object was deleted: %s", reason)
	}
}

func TestClaimedDiskThatFailsStaysClaimed(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	name := nameOf("A")
	inv.hold(t, name)
	inv.SetHealth(name, failing)
	inv.settleAll(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonClaimed || message != "held by LocalVolume pvc; it is failing: its own check has failed" {
		t.Errorf("%s %q", reason, message)
	}
	if got := inv.Failing(); len(got) != 1 || !got[0].Held {
		t.Errorf("Failing() = %+v", got)
	}
	before := bd.ResourceVersion
	inv.SetHealth(name, failing)
	inv.settleAll(t)
	if inv.get(t, name).ResourceVersion != before {
		t.Error("no news was written")
	}
	inv.SetHealth("bd-unknown", failing) // gone meanwhile
	host.removeDisk("vdb")
	inv.walk(t)
	if got := inv.Failing(); len(got) != 0 {
		t.Errorf("a disk that is gone: %+v", got)
	}
}

func TestHealthTargets(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "VIRTIO", 16, 1<<30)
	host.addDisk("vdc", "A", 32, 1<<30)
	host.addDisk("vdd", "SAME", 48, 1<<30)
	host.addDisk("vde", "SAME", 64, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	inv.mu.Lock()
	for _, name := range []string{"vdc", "vdd", "vde"} {
		inv.devices[name].Transport = "sas"
	}
	inv.mu.Unlock()
	targets := inv.HealthTargets()
	if len(targets) != 1 || targets[0] != (HealthTarget{Name: nameOf("A"), KernelName: "vdc", Path: "/dev/vdc", DiskSeq: 132}) {
		t.Errorf("%+v: want the one disk that can tell and is not there twice", targets)
	}
}
