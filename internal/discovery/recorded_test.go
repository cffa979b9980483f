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

// TestObjectOlderThanTheData: etcd was restored to before a volume got its disk. Whatever
// the object said then, the disk, which reads as blank as a block volume may, is given to
// nobody and wiped by nobody, and is the volume's again.
func TestObjectOlderThanTheData(t *testing.T) {
	t.Parallel()
	owner := device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}
	other := device.Owner{UID: "v", Name: "other", Kind: device.OwnerVolume}
	for name, then := range map[string]func(*v1alpha1.BlockDevice){
		"free": func(*v1alpha1.BlockDevice) {},
		"claimed for another": func(bd *v1alpha1.BlockDevice) {
			bd.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: other.Kind, Name: other.Name, UID: "v"}
			bd.Status.ClaimState = v1alpha1.ClaimStateClaimed
		},
		"to be wiped after another": func(bd *v1alpha1.BlockDevice) {
			bd.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: other.Kind, Name: other.Name, UID: "v"}
			bd.Status.ClaimState, bd.Status.Wipe = v1alpha1.ClaimStateReleased, &v1alpha1.BlockDeviceWipe{Policy: v1alpha1.WipeZero, Token: "old"}
		},
		"to be wiped after itself": func(bd *v1alpha1.BlockDevice) {
			bd.Spec.ClaimRef = &v1alpha1.BlockDeviceClaimRef{Kind: owner.Kind, Name: owner.Name, UID: "u"}
			bd.Status.ClaimState, bd.Status.Wipe = v1alpha1.ClaimStateReleased, &v1alpha1.BlockDeviceWipe{Policy: v1alpha1.WipeZero, Token: "old"}
		},
		"unknown": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newFakeHost(t)
			host.addDisk("vdb", "A", 16, 1<<30)
			c := newFakeClient(t)
			before := newTestInventory(t, host, c)
			before.start(t)
			bd := before.get(t, nameOf("A"))
			if then == nil {
				if err := c.Delete(t.Context(), bd); err != nil {
					t.Fatal(err)
				}
			} else {
				then(bd)
				if err := c.Update(t.Context(), bd); err != nil {
					t.Fatal(err)
				}
			}

			inv := newTestInventory(t, host, c)
			told := ""
			inv.opts.HolderChanged = func(holder v1alpha1.BlockDeviceClaimRef) { told = holder.Name }
			inv.opts.Holder = func(disk, _ string) (device.Owner, bool) { return owner, disk == nameOf("A") }
			if err := inv.loadObjects(t.Context()); err != nil {
				t.Fatal(err)
			}
			close(inv.ready)
			// As long as the object is as it was, nothing is done to the disk.
			if then != nil {
				if released, err := inv.Released(t.Context()); err != nil || len(released) != 0 {
					t.Errorf("to be wiped: %+v, %v", released, err)
				}
				if _, err := inv.Resolve(t.Context(), nameOf("A")); !errors.Is(err, volume.ErrBusy) {
					t.Errorf("resolved for a wipe: %v, want ErrBusy", err)
				}
				if _, err := inv.Release(t.Context(), nameOf("A"), other.UID, volume.WipeZero); !errors.Is(err, volume.ErrBusy) && !errors.Is(err, volume.ErrNotFound) {
					t.Errorf("released by another: %v", err)
				}
				if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "w", Name: "third", Kind: device.OwnerVolume}); !errors.Is(err, volume.ErrBusy) {
					t.Errorf("claimed by a third: %v, want ErrBusy", err)
				}
			}

			if err := inv.SetConfig(config(DefaultFilters)); err != nil {
				t.Fatal(err)
			}
			inv.walk(t)
			bd = inv.get(t, nameOf("A"))
			if !heldBy(bd, owner.UID) || bd.Status.ClaimState != v1alpha1.ClaimStateClaimed || bd.Status.Wipe != nil || len(bd.Finalizers) != 1 {
				t.Errorf("the disk is %+v, %+v", bd.Spec, bd.Status)
			}
			if told != owner.Name {
				t.Errorf("the volume was not told: %q", told)
			}
			if claimed, found, err := inv.ClaimedBy(t.Context(), owner.UID); err != nil || !found || claimed.Name != nameOf("A") {
				t.Errorf("ClaimedBy = %+v, %t, %v", claimed, found, err)
			}
			if _, err := inv.Resolve(t.Context(), nameOf("A")); err != nil {
				t.Errorf("the volume's own look at its disk: %v", err)
			}
			// When the records end, the release goes its way.
			inv.opts.Holder = func(string, string) (device.Owner, bool) { return device.Owner{}, false }
			if _, err := inv.Release(t.Context(), nameOf("A"), owner.UID, volume.WipeZero); err != nil {
				t.Errorf("release: %v", err)
			}
			if released, err := inv.Released(t.Context()); err != nil || len(released) != 1 {
				t.Errorf("to be wiped: %+v, %v", released, err)
			}
		})
	}
}

// TestWipeOfADiskOfAPool: etcd was restored to when the disk waited for a wipe, and a pool
// has it since. A record that cannot be read forbids the wipe too.
func TestWipeOfADiskOfAPool(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "A", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	if _, err := inv.Claim(t.Context(), nameOf("A"), device.Owner{UID: "u", Name: "pvc", Kind: device.OwnerVolume}); err != nil {
		t.Fatal(err)
	}
	token, err := inv.Release(t.Context(), nameOf("A"), "u", volume.WipeZero)
	if err != nil {
		t.Fatal(err)
	}
	damaged := errors.New("the record is damaged")
	for _, c := range []struct {
		pool      string
		err, want error
	}{{"fast", nil, volume.ErrBusy}, {"", damaged, damaged}, {"", nil, nil}} {
		inv.opts.PoolOf = func(string) (string, error) { return c.pool, c.err }
		now, err := inv.Resolve(t.Context(), nameOf("A"))
		if !errors.Is(err, c.want) || c.want == nil && now.WipeToken != token {
			t.Errorf("of pool %q (%v): %+v, %v", c.pool, c.err, now, err)
		}
	}
}
