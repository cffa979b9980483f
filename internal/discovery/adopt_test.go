// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// fullDisk is a node with one disk that holds an ext4.
func fullDisk(t *testing.T, prepare func(*fakeHost)) *testInventory {
	t.Helper()
	host := newFakeHost(t)
	host.addDisk("vdb", "FULL", 16, 1<<30)
	if prepare != nil {
		prepare(host)
	}
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.examiner.content = func(context.Context, *block.Device) *examination {
		return &examination{offset: 1080, found: block.Content{Found: true, Type: "ext4", Kind: "filesystem", UUID: "u-1"}}
	}
	inv.start(t)
	return inv
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	inv := fullDisk(t, nil)
	name, ctx := nameOf("FULL"), t.Context()
	owner := device.Owner{UID: "uid-1", Name: "adopted", Kind: device.OwnerVolume}
	if _, err := inv.Claim(ctx, name, owner); !errors.Is(err, volume.ErrInvalid) {
		t.Fatalf("Claim of a disk with content = %v, want ErrInvalid", err)
	}
	for range 2 {
		claimed, err := inv.Adopt(ctx, name, owner)
		if err != nil || claimed.State != device.StateClaimed || claimed.Owner != owner || claimed.Path != "/dev/vdb" {
			t.Fatalf("Adopt = %+v, %v", claimed, err)
		}
	}
	inv.walk(t)
	bd := inv.get(t, name)
	if reason, message := usable(bd); reason != v1alpha1.ReasonClaimed || message != "held by LocalVolume adopted" {
		t.Errorf("%s: %s", reason, message)
	}
	other := device.Owner{UID: "uid-2", Name: "other", Kind: device.OwnerVolume}
	if _, err := inv.Adopt(ctx, name, other); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Adopt by another = %v, want ErrBusy", err)
	}

	// Given back as it is, it may be handed over again, and not when it waits for a wipe.
	if _, err := inv.Release(ctx, name, owner.UID, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	inv.walk(t)
	if _, err := inv.Adopt(ctx, name, other); err != nil {
		t.Errorf("Adopt of a disk that was given back: %v", err)
	}
	if bd := inv.get(t, name); bd.Status.Wipe != nil || bd.Spec.ClaimRef.Name != "other" {
		t.Errorf("after the second adoption: %+v", bd)
	}
	if _, err := inv.Release(ctx, name, other.UID, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Adopt(ctx, name, owner); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("Adopt of a disk that waits for its wipe = %v, want ErrBusy", err)
	}
}

// reserve keeps the disk out, as an operator does.
func reserve(t *testing.T, inv *testInventory) {
	t.Helper()
	bd := inv.get(t, nameOf("FULL"))
	bd.Spec.Reserved = "for Ceph"
	if err := inv.client.Update(t.Context(), bd); err != nil {
		t.Fatal(err)
	}
	inv.ObserveObject(bd)
}

func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prepare func(*fakeHost)
		then    func(*testing.T, *testInventory)
		says    string
	}{
		{"mounted", func(h *fakeHost) {
			h.write("proc/1/mountinfo", "36 1 254:16 / /mnt/disks/a rw - ext4 /dev/vdb rw\n")
		}, nil, "mounted at /mnt/disks/a"},
		{"with something on top", func(h *fakeHost) { h.addLogicalVolume("dm-0", "vg-lv", "vdb", 0) }, nil, "member of volume group"},
		{"dropped by a filter", nil, func(t *testing.T, inv *testInventory) {
			if err := inv.SetConfig(config("filterconfigs:\n- key: path-filter\n  name: path filter\n  state: true\n  exclude: /dev/vdb\n")); err != nil {
				t.Fatal(err)
			}
		}, "path filter"},
		{"reserved", nil, reserve, "reserved: for Ceph"},
		{"reserved after it was given back", nil, func(t *testing.T, inv *testInventory) {
			owner := device.Owner{UID: "uid-0", Name: "before", Kind: device.OwnerVolume}
			if _, err := inv.Adopt(t.Context(), nameOf("FULL"), owner); err != nil {
				t.Fatal(err)
			}
			if _, err := inv.Release(t.Context(), nameOf("FULL"), owner.UID, volume.WipeNone); err != nil {
				t.Fatal(err)
			}
			reserve(t, inv)
		}, "reserved: for Ceph"},
		{"read-only", func(h *fakeHost) { h.write("sys/devices/pci0000:00/virtio16/block/vdb/ro", "1\n") }, nil, "read-only"},
		{"with a clone", func(h *fakeHost) { h.addDisk("vdc", "FULL", 32, 1<<30) }, nil, "both say they are"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inv := fullDisk(t, test.prepare)
			if test.then != nil {
				test.then(t, inv)
			}
			_, err := inv.Adopt(t.Context(), nameOf("FULL"), device.Owner{UID: "uid-1", Name: "adopted", Kind: device.OwnerVolume})
			if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Adopt = %v, want ErrInvalid that says %q", err, test.says)
			}
			if bd := inv.get(t, nameOf("FULL")); bd.Status.ClaimState == v1alpha1.ClaimStateClaimed {
				t.Error("it is claimed")
			}
		})
	}
}

func TestAdoptRefusesWeakIdentity(t *testing.T) {
	t.Parallel()
	host := newFakeHost(t)
	host.addDisk("vdb", "", 16, 1<<30)
	inv := newTestInventory(t, host, newFakeClient(t))
	inv.start(t)
	var name string
	for _, bd := range inv.objects() {
		name = bd.Name
	}
	_, err := inv.Adopt(t.Context(), name, device.Owner{UID: "uid-1", Name: "adopted", Kind: device.OwnerVolume})
	if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "only its place") {
		t.Errorf("Adopt = %v, want ErrInvalid for its weak identity", err)
	}
}
