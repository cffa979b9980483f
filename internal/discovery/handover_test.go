// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// A disk goes from one volume to another in one write, and discovery does not take that back.
func TestHandOver(t *testing.T) {
	t.Parallel()
	left := device.Owner{UID: "uid-1", Name: "left", Kind: device.OwnerVolume}
	heir := device.Owner{UID: "uid-2", Name: "heir", Kind: device.OwnerVolume}
	inv := fullDisk(t, nil)
	name, ctx := nameOf("FULL"), t.Context()
	if _, err := inv.HandOver(ctx, name, left.UID, heir); !errors.Is(err, volume.ErrBusy) {
		t.Fatalf("HandOver of what nobody holds = %v, want ErrBusy", err)
	}
	if _, err := inv.Adopt(ctx, name, left); err != nil {
		t.Fatal(err)
	}
	// By the records of the node it is the one's until the object says that it is the other's.
	inv.opts.Holder = func(_, claimedBy string) (device.Owner, bool) {
		if claimedBy == heir.UID {
			return heir, true
		}
		return left, true
	}
	for what, tc := range map[string]struct {
		disk, from string
		to         device.Owner
		want       error
	}{
		"an unknown disk":    {disk: "bd-x", from: left.UID, to: heir, want: volume.ErrNotFound},
		"another one's disk": {disk: name, from: "uid-3", to: heir, want: volume.ErrBusy},
		"to a pool":          {disk: name, from: left.UID, to: device.Owner{UID: "p", Name: "fast", Kind: device.OwnerPool}, want: volume.ErrInvalid},
		"to itself":          {disk: name, from: left.UID, to: left, want: volume.ErrInvalid},
		"to nobody":          {disk: name, from: left.UID, to: device.Owner{Kind: device.OwnerVolume}, want: volume.ErrInvalid},
		"from nobody":        {disk: name, to: heir, want: volume.ErrInvalid},
	} {
		if _, err := inv.HandOver(ctx, tc.disk, tc.from, tc.to); !errors.Is(err, tc.want) {
			t.Errorf("HandOver of %s = %v, want %v", what, err, tc.want)
		}
	}
	if bd := inv.get(t, name); !heldBy(bd, left.UID) {
		t.Fatalf("a refusal has changed something: %+v", bd.Spec)
	}
	for range 2 {
		claimed, err := inv.HandOver(ctx, name, left.UID, heir)
		if err != nil || claimed.State != device.StateClaimed || claimed.Owner != heir || claimed.Path != "/dev/vdb" {
			t.Fatalf("HandOver = %+v, %v", claimed, err)
		}
		inv.walk(t)
	}
	bd := inv.get(t, name)
	if reason, message := usable(bd); !heldBy(bd, heir.UID) || reason != v1alpha1.ReasonClaimed || message != "held by LocalVolume heir" || len(bd.Finalizers) != 1 {
		t.Errorf("the disk is %+v, %s: %s", bd.Spec, reason, message)
	}
	if _, found, err := inv.ClaimedBy(ctx, left.UID); err != nil || found {
		t.Errorf("the one has it still: %v", err)
	}
	if _, err := inv.Resolve(ctx, name); err != nil {
		t.Errorf("Resolve = %v", err)
	}
	// One that the records give to a third one, or that is to be wiped, is handed to nobody.
	third := device.Owner{UID: "uid-3", Name: "third", Kind: device.OwnerVolume}
	inv.opts.Holder = func(string, string) (device.Owner, bool) { return third, true }
	if _, err := inv.HandOver(ctx, name, heir.UID, left); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("HandOver of what the records have otherwise = %v, want ErrBusy", err)
	}
	inv.opts.Holder = nil
	if _, err := inv.Release(ctx, name, heir.UID, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.HandOver(ctx, name, heir.UID, left); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("HandOver of a disk that waits for its wipe = %v, want ErrBusy", err)
	}
}
