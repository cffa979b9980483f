// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
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

// heldDisk is a disk in exclusive possession, which nobody may write to.
type heldDisk struct{ device.OpenDisk }

func (heldDisk) Is(string) (bool, error)   { return true, nil }
func (heldDisk) SizeBytes() (int64, error) { return 1 << 30, nil }
func (heldDisk) Close() error              { return nil }

type heldDisks struct{}

func (heldDisks) Open(context.Context, string) (device.OpenDisk, error) { return heldDisk{}, nil }

// While a volume takes the disk of a left-over over, discovery goes on looking at it, and the node's records say
// what they say at that moment.
func TestTakeOverBesideDiscovery(t *testing.T) {
	t.Parallel()
	left := device.Owner{UID: "00000000-0000-4000-8000-000000000001", Name: "left", Kind: device.OwnerVolume}
	heir := device.Owner{UID: "00000000-0000-4000-8000-000000000002", Name: "heir", Kind: device.OwnerVolume}
	inv := fullDisk(t, nil)
	name, ctx := nameOf("FULL"), t.Context()
	if _, err := inv.Adopt(ctx, name, left); err != nil {
		t.Fatal(err)
	}
	either := func(_, claimedBy string) (device.Owner, bool) {
		if claimedBy == heir.UID {
			return heir, true
		}
		return left, true
	}
	always := func(owner device.Owner) func(string, string) (device.Owner, bool) {
		return func(string, string) (device.Owner, bool) { return owner, true }
	}
	inv.opts.Holder = always(left)
	b := device.New(device.Options{Registry: inv, Disks: heldDisks{}})
	exam, err := b.Examine(ctx, left.UID)
	if err != nil {
		t.Fatal(err)
	}
	spec := volume.Spec{ID: heir.UID, Name: heir.Name, SizeBytes: 1 << 30, Access: volume.AccessFilesystem}
	from := volume.LeftOver{ID: left.UID, Identity: exam.Identity}
	rec, err := b.TakeOver(ctx, spec, from, func(context.Context) error {
		inv.opts.Holder = either // what is meant is in the records
		inv.walk(t)
		return nil
	})
	if err != nil || !rec.SameStorage(exam.Record) {
		t.Fatalf("TakeOver = %+v, %v", rec, err)
	}
	for _, holder := range []func(string, string) (device.Owner, bool){either, always(heir), nil} {
		inv.opts.Holder = holder
		inv.walk(t)
		if _, err := b.Locate(ctx, left.UID, exam.Record); !errors.Is(err, volume.ErrNotFound) {
			t.Fatalf("Locate of the left-over = %v, want ErrNotFound", err)
		}
		if loc, err := b.Locate(ctx, heir.UID, rec); err != nil || loc.Device != "/dev/vdb" {
			t.Fatalf("Locate = %+v, %v", loc, err)
		}
		if again, err := b.TakeOver(ctx, spec, from, nil); err != nil || !again.SameStorage(rec) {
			t.Fatalf("TakeOver again = %+v, %v", again, err)
		}
	}
	// Its BlockDevice is deleted by force, when the records have it for the new one.
	inv.opts.Holder = always(heir)
	bd := inv.get(t, name)
	bd.Finalizers, bd.Spec.ClaimRef, bd.Status.ClaimState = nil, nil, v1alpha1.ClaimStateUnclaimed
	if err := inv.client.Update(ctx, bd); err != nil {
		t.Fatal(err)
	}
	inv.ObserveObject(bd)
	inv.walk(t)
	if bd := inv.get(t, name); !heldBy(bd, heir.UID) {
		t.Errorf("the disk is %+v", bd.Spec)
	}
}
