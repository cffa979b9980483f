// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// What is asked of a disk is known, and what has come of it stays while the disk is described anew.
func TestPurgesOfDisks(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	host.addDisk("vdc", "B", 32, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	inv.hold(t, nameOf("A"))
	changed, cancel := inv.Subscribe()
	defer cancel()
	wantAsked := func(want int) {
		t.Helper()
		if all, err := inv.Purges(t.Context()); err != nil || len(all) != want || want > 0 && all[0].Name != nameOf("A") {
			t.Fatalf("asked is %+v, %v", all, err)
		}
	}
	wantAsked(0)
	if all, err := inv.Purges(t.Context(), nameOf("A"), "bd-gone"); err != nil || len(all) != 1 || all[0].Name != nameOf("A") {
		t.Fatalf("of that name are %+v, %v", all, err)
	}
	bd := inv.get(t, nameOf("A"))
	bd.Spec.Purge = []v1alpha1.PurgeRequest{{UID: "u", Kind: v1alpha1.LeftOverVolume, Identity: "x"}}
	if err := inv.client.Update(t.Context(), bd); err != nil {
		t.Fatal(err)
	}
	inv.ObserveObject(bd)
	select {
	case <-changed:
	default:
		t.Error("nobody is told that somebody asks")
	}
	wantAsked(1)
	told := []v1alpha1.PurgeStatus{{UID: "u", State: v1alpha1.PurgeQuarantined, Token: "t"}}
	if _, err := inv.TellPurges(t.Context(), nameOf("A"), told); err != nil {
		t.Fatal(err)
	}
	version := inv.get(t, nameOf("A")).ResourceVersion
	if now, err := inv.TellPurges(t.Context(), nameOf("A"), told); err != nil || now.ResourceVersion != version {
		t.Errorf("the same again wrote: %v", err)
	}
	token, err := inv.Release(t.Context(), nameOf("A"), "u", volume.WipeZero)
	if err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	if err := inv.FinishWipe(t.Context(), nameOf("A"), token, true, ""); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	bd = inv.get(t, nameOf("A"))
	if len(bd.Spec.Purge) != 1 || len(bd.Status.Purges) != 1 || bd.Status.Purges[0].Token != "t" || bd.Spec.ClaimRef != nil {
		t.Errorf("the object is %+v, %+v", bd.Spec, bd.Status.Purges)
	}
	bd.Spec.Purge = nil
	if err := inv.client.Update(t.Context(), bd); err != nil {
		t.Fatal(err)
	}
	inv.ObserveObject(bd)
	wantAsked(1) // it says still what has come of it
	if _, err := inv.TellPurges(t.Context(), nameOf("A"), nil); err != nil {
		t.Fatal(err)
	}
	wantAsked(0)
	if _, err := inv.TellPurges(t.Context(), "bd-none", told); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of no disk: %v", err)
	}
}
