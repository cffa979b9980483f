// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// onAnotherNode is the object that another node has written of a disk.
func onAnotherNode(of block.Identity, state v1alpha1.DeviceState) *v1alpha1.BlockDevice {
	return &v1alpha1.BlockDevice{
		ObjectMeta: metav1.ObjectMeta{Name: block.Name("node2", of), Labels: map[string]string{v1alpha1.LabelIdentity: identityLabel(of)}},
		Spec: v1alpha1.BlockDeviceSpec{
			NodeName: "node2", ClaimRef: &v1alpha1.BlockDeviceClaimRef{Kind: device.OwnerVolume, Name: "pvc-far", UID: "far"},
		},
		Status: v1alpha1.BlockDeviceStatus{State: state, ClaimState: v1alpha1.ClaimStateClaimed},
	}
}

// addWorldwide shows a disk with a world wide name.
func (h *fakeHost) addWorldwide(kernelName, wwn string, number int) block.Identity {
	h.addDisk(kernelName, "", number, 1<<30)
	h.write("sys/class/block/"+kernelName+"/device/wwid", wwn+"\n")
	d, err := (block.Sysfs{Root: h.root + "/sys", HostRoot: h.root}).Device(h.t.Context(), kernelName)
	if err != nil {
		h.t.Fatal(err)
	}
	return block.Identify(&d)
}

func TestDiskThatCameFromAnotherNodeSaysSo(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	identity := block.Identity{Scheme: block.SchemeSerial, Value: "A"}
	inv := newTestInventory(t, host, newFakeClient(t, onAnotherNode(identity, v1alpha1.DeviceInactive)))
	inv.examiner.content = func(context.Context, *block.Device) *examination {
		return &examination{offset: 1080, found: block.Content{Found: true, Type: "ext4"}}
	}
	inv.start(t)
	bd := inv.get(t, nameOf("A"))
	if reason, message := usable(bd); reason != v1alpha1.ReasonHasContent || !strings.HasSuffix(message, "; last seen on node node2, where LocalVolume pvc-far holds it") {
		t.Errorf("%s %q", reason, message)
	}
	if seen := bd.Status.LastSeen; seen == nil || seen.NodeName != "node2" || seen.Name != block.Name("node2", identity) || seen.ClaimRef.Name != "pvc-far" {
		t.Errorf("lastSeen %+v", seen)
	}
	if bd.Labels[v1alpha1.LabelIdentity] != identityLabel(identity) {
		t.Errorf("labels %v", bd.Labels)
	}
	inv.walk(t) // and nothing is news
	if again := inv.get(t, nameOf("A")); again.ResourceVersion != bd.ResourceVersion {
		_, message := usable(again)
		t.Errorf("written again: %q", message)
	}
	host.removeDisk("vdb")
	inv.walk(t)
	if bd := inv.get(t, nameOf("A")); bd.Status.LastSeen == nil {
		t.Error("where it was seen is forgotten when it goes")
	}
}

// A disk that is moved comes here before its old node has said that it is gone.
func TestDiskThatMovesFast(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	identity := block.Identity{Scheme: block.SchemeSerial, Value: "A"}
	far := onAnotherNode(identity, v1alpha1.DeviceActive)
	c := newFakeClient(t, far)
	inv := newTestInventory(t, host, c)
	inv.start(t)
	later := func() (again time.Duration) {
		t.Helper()
		inv.mu.Lock()
		inv.disk(nameOf("A")).elsewhere.at = time.Now().Add(-time.Hour)
		inv.disk(nameOf("A")).lastWrite = time.Time{}
		inv.mu.Unlock()
		again, err := inv.reconcile(t.Context(), nameOf("A"))
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	if again, err := inv.reconcile(t.Context(), nameOf("A")); err != nil || again != moveRetries[0] {
		t.Errorf("asked again after %s, %v", again, err)
	}
	if again := later(); again != moveRetries[1] {
		t.Errorf("still there: asked again after %s", again)
	}
	far.Status.State = v1alpha1.DeviceInactive
	if err := c.Update(t.Context(), far); err != nil {
		t.Fatal(err)
	}
	if again := later(); again != 0 {
		t.Errorf("found: asked again after %s", again)
	}
	if bd := inv.get(t, nameOf("A")); bd.Status.LastSeen == nil || bd.Status.LastSeen.NodeName != "node2" {
		t.Errorf("lastSeen %+v", bd.Status.LastSeen)
	}

	// Two that are alike for good are not asked for for ever.
	host.addDisk("vdc", "B", 32, 1<<30)
	if err := c.Create(t.Context(), onAnotherNode(block.Identity{Scheme: block.SchemeSerial, Value: "B"}, v1alpha1.DeviceActive)); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	asked := 0
	for again := moveRetries[0]; again > 0 && asked < 10; asked++ {
		inv.mu.Lock()
		inv.disk(nameOf("B")).elsewhere.at = time.Now().Add(-time.Hour)
		inv.mu.Unlock()
		var err error
		if again, err = inv.reconcile(t.Context(), nameOf("B")); err != nil {
			t.Fatal(err)
		}
	}
	if asked != len(moveRetries) {
		t.Errorf("asked %d times more, want %d", asked, len(moveRetries))
	}
}

// A hypervisor's serial numbers are the same on each of its machines.
func TestSameSerialOnTwoNodesIsNoConflict(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "drive-scsi1", 16, 1<<30)
	identity := block.Identity{Scheme: block.SchemeSerial, Value: "drive-scsi1"}
	inv := newTestInventory(t, host, newFakeClient(t, onAnotherNode(identity, v1alpha1.DeviceActive)))
	inv.start(t)
	bd := inv.get(t, nameOf("drive-scsi1"))
	if reason, message := usable(bd); reason != v1alpha1.ReasonBlank || message != "blank" || bd.Status.LastSeen != nil {
		t.Errorf("%s %q, last seen %+v", reason, message, bd.Status.LastSeen)
	}
}

func TestDiskThatTwoNodesSee(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	identity := host.addWorldwide("vdb", "naa.5000c500a1b2c3d4", 16)
	if !identity.Worldwide() {
		t.Fatalf("identity %s", identity)
	}
	name := block.Name(testNode, identity)
	c := newFakeClient(t)
	inv := newTestInventory(t, host, c)
	inv.start(t)
	if reason, _ := usable(inv.get(t, name)); reason != v1alpha1.ReasonBlank {
		t.Fatalf("alone: %s", reason)
	}
	// It appears on another node afterwards, of which this one does not hear.
	far := onAnotherNode(identity, v1alpha1.DeviceActive)
	if err := c.Create(t.Context(), far); err != nil {
		t.Fatal(err)
	}
	owner := device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}
	if _, err := inv.Claim(t.Context(), name, owner); !errors.Is(err, volume.ErrInvalid) || !errors.Is(err, volume.ErrIdentity) || !strings.Contains(err.Error(), "node2") {
		t.Errorf("Claim: %v, want ErrInvalid and ErrIdentity", err)
	}
	inv.settleAll(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonConflicted || !strings.Contains(message, "also seen by node node2 (BlockDevice "+far.Name+")") || bd.Spec.ClaimRef != nil {
		t.Errorf("%s %q, %+v", reason, message, bd.Spec)
	}
	if !inv.recorder.has("Conflicted", "node2") {
		t.Errorf("no Event: %q", inv.recorder.notes)
	}
	// A new process sees it from the start.
	again := newTestInventory(t, host, c)
	again.start(t)
	if reason, _ := usable(again.get(t, name)); reason != v1alpha1.ReasonConflicted {
		t.Errorf("after a restart: %s", reason)
	}
	if wait, err := again.reconcile(t.Context(), name); err != nil || wait != elsewhereRetry {
		t.Errorf("looked for again after %s, %v", wait, err)
	}

	far.Status.State = v1alpha1.DeviceInactive
	if err := c.Update(t.Context(), far); err != nil {
		t.Fatal(err)
	}
	again.mu.Lock()
	again.disk(name).elsewhere.at = time.Now().Add(-elsewhereRetry)
	again.mu.Unlock()
	again.settleAll(t)
	if reason, message := usable(again.get(t, name)); reason != v1alpha1.ReasonBlank || !strings.Contains(message, "last seen on node node2") {
		t.Errorf("gone there: %s %q", reason, message)
	}
	if _, err := again.Claim(t.Context(), name, owner); err != nil {
		t.Errorf("Claim of a disk that moved here: %v", err)
	}
}

func TestHolderIsToldWhenItsDiskGoes(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	var told []string
	inv.opts.HolderChanged = func(holder v1alpha1.BlockDeviceClaimRef) { told = append(told, holder.Kind+" "+holder.Name) }
	inv.start(t)
	inv.hold(t, nameOf("A"))
	inv.settleAll(t)
	if len(told) != 0 {
		t.Errorf("told %q of a claim", told)
	}
	host.removeDisk("vdb")
	host.removeDisk("vdc") // nobody's
	inv.walk(t)
	host.addDisk("vdz", "A", 400, 1<<30)
	inv.walk(t)
	if strings.Join(told, ", ") != "LocalVolume pvc, LocalVolume pvc" {
		t.Errorf("told %q, want twice", told)
	}
}

// Whoever gives a disk back, its wipe is begun then, and when it comes back.
func TestWipeIsDue(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	due := 0
	inv.opts.WipeDue = func() { due++ }
	inv.start(t)
	name, ctx := nameOf("A"), t.Context()
	want := func(n int, when string) {
		t.Helper()
		if due != n {
			t.Errorf("%s: a wipe was due %d times, want %d", when, due, n)
		}
	}
	pool := device.Owner{UID: "uid-1", Name: "fast-node1", Kind: device.OwnerPool}
	if _, err := inv.Claim(ctx, name, pool); err != nil {
		t.Fatal(err)
	}
	want(0, "claimed")
	token, err := inv.Release(ctx, name, pool.UID, volume.WipeSignatures)
	if err != nil {
		t.Fatal(err)
	}
	want(1, "released by a pool")
	inv.walk(t)
	if err := inv.FinishWipe(ctx, name, token, false, "it would not"); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	want(1, "tried in vain: the cleaner tries again by itself")
	host.removeDisk("vdb")
	inv.walk(t)
	want(1, "pulled out")
	host.addDisk("vdz", "A", 400, 1<<30)
	inv.walk(t)
	want(2, "back")
	if err := inv.FinishWipe(ctx, name, token, true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Claim(ctx, name, pool); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Release(ctx, name, pool.UID, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	want(2, "given back as it is")
}
