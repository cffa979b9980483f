// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// foreignGroup is a volume group without a tag of ours, with somebody's volume in it.
func foreignGroup(t *testing.T) *lvmtest.VG {
	t.Helper()
	vg := lvmtest.NewVG(t, 16*lvmtest.ExtentBytes)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) {
		e.SetGroupTags("customer")
		e.Add("root", 4)
	})
	return vg
}

func TestAdoptGroup(t *testing.T) {
	t.Parallel()
	vg := foreignGroup(t)
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	g, err := client.AdoptGroup(t.Context(), vg.Name, vg.UUID)
	if err != nil || g.UUID != vg.UUID || !slices.Equal(g.Paths(), vg.Devices) {
		t.Fatalf("AdoptGroup = %+v, %v", g, err)
	}
	again, err := client.GroupByUUID(t.Context(), vg.UUID)
	if err != nil || again.Seqno != g.Seqno {
		t.Errorf("it was changed: generation %d, was %d (%v)", again.Seqno, g.Seqno, err)
	}
	if _, err := client.AdoptGroup(t.Context(), vg.Name, lvmtest.PoolUID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of a UUID that is not there: %v, want ErrNotFound", err)
	}
	if _, err := client.AdoptGroup(t.Context(), "system", vg.UUID); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("of another name: %v, want ErrIdentity", err)
	}
	for name, c := range map[string]struct {
		edit func(*lvmtest.Editor)
		want error
	}{
		"of a pool":         {func(e *lvmtest.Editor) { e.SetGroupTags(lvm.TagPool + lvmtest.PoolUID) }, volume.ErrExists},
		"that is exported":  {func(e *lvmtest.Editor) { e.SetExported(true) }, volume.ErrPoolUnavailable},
		"of another host":   {func(e *lvmtest.Editor) { e.SetSystemID("other") }, volume.ErrPoolUnavailable},
		"that was renamed":  {func(e *lvmtest.Editor) { e.Rename("data") }, volume.ErrIdentity},
		"with another's ID": {func(e *lvmtest.Editor) { e.SetUUID() }, volume.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vg := foreignGroup(t)
			vg.Edit(vg.Name, c.edit)
			if _, err := lvm.NewClient(vg.Runner(), vg.Flush).AdoptGroup(t.Context(), vg.Name, vg.UUID); !errors.Is(err, c.want) {
				t.Errorf("AdoptGroup = %v, want %v", err, c.want)
			}
		})
	}
}

// Two groups of one name, and a disk that is not there.
func TestAdoptGroupInDoubt(t *testing.T) {
	t.Parallel()
	vg := foreignGroup(t)
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	vg.AddDisk("/dev/vdz", 64*mib, "")
	twin, err := client.CreateGroup(t.Context(), lvm.GroupSpec{Name: "berth-twin", PoolUID: otherPool, Devices: []string{"/dev/vdz"}})
	if err != nil {
		t.Fatal(err)
	}
	vg.Edit("berth-twin", func(e *lvmtest.Editor) { e.Rename(vg.Name) })
	if _, err := client.AdoptGroup(t.Context(), vg.Name, vg.UUID); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("AdoptGroup beside %s of the same name = %v, want ErrIdentity", twin.UUID, err)
	}
	vg.SetMissing("/dev/vdz", true)
	if _, err := client.AdoptGroup(t.Context(), vg.Name, vg.UUID); err != nil {
		t.Errorf("AdoptGroup: %v", err)
	}
}

// The volumes of others in it are not ours to see, and their room is not ours to give.
func TestAdoptedGroupBackend(t *testing.T) {
	t.Parallel()
	vg := foreignGroup(t)
	b := vg.Backend()
	c, err := b.Capacity(t.Context())
	if err != nil || c.FreeBytes != 12*lvmtest.ExtentBytes || c.AllocatedBytes != 4*lvmtest.ExtentBytes || c.Volumes != 0 {
		t.Fatalf("Capacity = %+v, %v", c, err)
	}
	spec := volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: 12 * lvmtest.ExtentBytes, Access: volume.AccessBlock}
	rec, err := b.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := b.List(t.Context()); err != nil || len(found) != 1 || found[0].ID != volumetest.ID(1) {
		t.Errorf("List = %+v, %v", found, err)
	}
	if err := b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	if after, err := b.Capacity(t.Context()); err != nil || after != c {
		t.Errorf("Capacity = %+v (%v), was %+v", after, err, c)
	}
}
