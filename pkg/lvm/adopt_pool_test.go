// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// foreignPool is a thin pool of 100 MiB without a tag of ours, with a volume of 30 MiB and a
// snapshot of it, in a group that has room for as much again.
func foreignPool(t *testing.T, below string) *lvmtest.VG {
	t.Helper()
	vg := lvmtest.NewVG(t, 300*thinMiB)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) {
		e.SetGroupTags("customer")
		vg.ThinPool = &lvm.ThinPoolID{Name: "tank", UUID: e.AddThinPool("tank", 100, below)}
		e.AddThin("tank", "books", 30, "")
		e.AddThin("tank", "books-monday", 30, "books")
		e.Unmark("tank")
	})
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 90, FailWhenFull: new(true)}
	return vg
}

// wantPoolUntouched checks that lvm was told nothing that is about the pool itself.
func wantPoolUntouched(t *testing.T, vg *lvmtest.VG) {
	t.Helper()
	for _, command := range vg.Commands() {
		for _, word := range []string{"thin-pool", "--poolmetadatasize", "--errorwhenfull", "--refresh", "--repair", "threshold", vg.ThinPool.UUID, "/tank", "books"} {
			if strings.Contains(command, word) {
				t.Errorf("lvm was told %q", command)
			}
		}
	}
	g, err := vg.Backend().Group(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := g.Volume("tank")
	if pool == nil || pool.UUID != vg.ThinPool.UUID || pool.SizeBytes != 100*thinMiB || pool.MetadataBytes != 8*thinMiB || len(pool.Tags) > 0 || pool.FailsWhenFull {
		t.Errorf("the pool is %+v", pool)
	}
	for _, name := range []string{"books", "books-monday"} {
		if lv := g.Volume(name); lv == nil || lv.SizeBytes != 30*thinMiB || len(lv.Tags) > 0 {
			t.Errorf("%s is %+v", name, lv)
		}
	}
}

func TestAdoptThinPool(t *testing.T) {
	t.Parallel()
	for _, below := range []string{"linear", "raid,raid1", "cache"} {
		vg := foreignPool(t, below)
		client := lvm.NewClient(vg.Runner(), vg.Flush)
		if g, err := client.AdoptThinPool(t.Context(), vg.Name, vg.UUID, *vg.ThinPool); err != nil || g.UUID != vg.UUID {
			t.Fatalf("on %s: AdoptThinPool = %+v, %v", below, g, err)
		}
		wantPoolUntouched(t, vg)
	}
	for name, c := range map[string]struct {
		below string
		edit  func(*lvmtest.Editor)
		want  []error
		says  string
	}{
		"that is gone":              {"linear", func(e *lvmtest.Editor) { e.Remove("books-monday"); e.Remove("books"); e.Remove("tank") }, []error{volume.ErrNotFound}, "not there"},
		"that was renamed":          {"linear", func(e *lvmtest.Editor) { e.RenameVolume("tank", "lake") }, []error{volume.ErrIdentity}, "lake"},
		"that is another one":       {"linear", func(e *lvmtest.Editor) { e.Replace("tank") }, []error{volume.ErrIdentity}, "UUID"},
		"that has changed places":   {"linear", func(e *lvmtest.Editor) { e.RenameVolume("tank", "lake"); e.Add("tank", 1) }, []error{volume.ErrIdentity}, "lake"},
		"that Berth made":           {"linear", func(e *lvmtest.Editor) { e.SetTags("tank", lvm.TagThinPool) }, []error{volume.ErrExists}, "Berth made it"},
		"that shows old data":       {"linear", func(e *lvmtest.Editor) { e.ShowOldData("tank") }, nil, "--zero y"},
		"on what is compressed":     {"vdo", func(*lvmtest.Editor) {}, nil, "layout vdo"},
		"on what nobody knows":      {"unknown", func(*lvmtest.Editor) {}, nil, "layout unknown"},
		"in a group of another one": {"linear", func(e *lvmtest.Editor) { e.SetUUID() }, []error{volume.ErrNotFound}, "UUID"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vg := foreignPool(t, c.below)
			b := vg.Backend()
			rec, err := b.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc", SizeBytes: thinMiB, Access: volume.AccessBlock})
			if (err == nil) != (c.below == "linear") {
				t.Fatal(err)
			}
			vg.Edit(vg.Name, c.edit)
			_, adoptErr := lvm.NewClient(vg.Runner(), vg.Flush).AdoptThinPool(t.Context(), vg.Name, vg.UUID, *vg.ThinPool)
			if adoptErr == nil || !strings.Contains(adoptErr.Error(), c.says) {
				t.Errorf("AdoptThinPool = %v", adoptErr)
			}
			for _, want := range c.want {
				if !errors.Is(adoptErr, want) {
					t.Errorf("AdoptThinPool = %v, want %v", adoptErr, want)
				}
			}
			if strings.HasPrefix(name, "in a group") || name == "that is gone" {
				return
			}
			// Once it is in use, nothing new is made, and what is there can be used and deleted.
			if _, err := b.Tend(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Tend = %v", err)
			}
			if c, err := b.Capacity(t.Context()); err != nil || c.FreeBytes != 0 {
				t.Errorf("Capacity = %+v, %v", c, err)
			}
			spec := volume.Spec{ID: volumetest.ID(2), Name: "pvc", SizeBytes: thinMiB, Access: volume.AccessBlock}
			if _, err := b.Create(t.Context(), spec); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Create = %v", err)
			}
			if c.below != "linear" {
				return
			}
			vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Deactivate(volumetest.ID(1)) })
			if _, err := b.Locate(t.Context(), volumetest.ID(1), rec); err != nil {
				t.Errorf("Locate = %v", err)
			}
			if problems, err := b.Problems(t.Context(), volumetest.ID(1), rec); err != nil || len(problems) != 1 || problems[0].Inaccessible {
				t.Errorf("Problems = %+v, %v", problems, err)
			}
			if err := b.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeDiscard); err != nil {
				t.Errorf("Delete = %v", err)
			}
		})
	}
}

// Only what the pool has is promised, and all that lies in it counts.
func TestRoomOfAdoptedThinPool(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	capacity := func() volume.Capacity {
		t.Helper()
		c, err := vg.Backend().Capacity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := capacity(); c.TotalBytes != 100*thinMiB || c.AllocatedBytes != 60*thinMiB || c.FreeBytes != 40*thinMiB || c.Volumes != 0 {
		t.Errorf("Capacity = %+v", c)
	}
	vg.Thin.OverprovisionPercent = 200
	if c := capacity(); c.TotalBytes != 200*thinMiB || c.FreeBytes != 140*thinMiB {
		t.Errorf("of twice as much: %+v", c)
	}
	b := vg.Backend()
	loc := thinVolume(t, b, 1, 100*thinMiB)
	fill(t, loc, 91*thinMiB)
	if c := capacity(); c.FreeBytes != 0 || c.Volumes != 1 {
		t.Errorf("above the high-water mark: %+v", c)
	}
	state := tend(t, b)
	if state.DataBytes != 100*thinMiB || state.MetadataBytes != 8*thinMiB || state.Grown || state.Usage.DataPercent() < 91 {
		t.Errorf("Tend = %+v", state)
	}
	vg.FillMetadata(1800) // of 2048
	if state := tend(t, b); state.MetadataBytes != 8*thinMiB || state.Grown {
		t.Errorf("with full metadata: %+v", state)
	}
	wantPoolUntouched(t, vg)
	// Its owner gives it more.
	vg.FillMetadata(0)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.ExtendThinPool("tank", 50) })
	if c := capacity(); c.TotalBytes != 300*thinMiB || c.FreeBytes != 140*thinMiB {
		t.Errorf("after its owner has extended it: %+v", c)
	}
}

// What we make lies beside the volumes of others, which we do not see.
func TestVolumesInAdoptedThinPool(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	b := vg.Backend()
	thinVolume(t, b, 1, 8*thinMiB)
	found, err := b.List(t.Context())
	if err != nil || len(found) != 1 {
		t.Fatalf("List = %+v, %v", found, err)
	}
	rec := found[0].Record
	if rec, err = b.Grow(t.Context(), volumetest.ID(1), rec, 10*thinMiB); err != nil || rec.SizeBytes != 10*thinMiB {
		t.Fatalf("Grow = %+v, %v", rec, err)
	}
	snap, err := b.Snapshot(t.Context(), volume.SnapshotSpec{ID: volumetest.ID(2), Name: "snap", VolumeID: volumetest.ID(1), Volume: rec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), volume.Spec{
		ID: volumetest.ID(3), Name: "copy", SizeBytes: 10 * thinMiB, Access: volume.AccessBlock,
		Source: &volume.Source{ID: volumetest.ID(2), Record: snap, Snapshot: true},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.SnapshotGroup(t.Context(), volume.GroupSnapshotSpec{Name: "group", Snapshots: []volume.SnapshotSpec{
		{ID: volumetest.ID(4), Name: "snap", VolumeID: volumetest.ID(1), Volume: rec},
	}}); err != nil {
		t.Fatal(err)
	}
	if problems, err := b.Problems(t.Context(), volumetest.ID(1), rec); err != nil || len(problems) > 0 {
		t.Errorf("Problems = %+v, %v", problems, err)
	}
	found, err = b.List(t.Context())
	if err != nil || len(found) != 2 {
		t.Errorf("List = %+v, %v", found, err)
	}
	if snaps, err := b.ListSnapshots(t.Context()); err != nil || len(snaps) != 2 {
		t.Errorf("ListSnapshots = %+v, %v", snaps, err)
	}
	for _, n := range []int{2, 4} {
		if err := b.DeleteSnapshot(t.Context(), volumetest.ID(n), nil); err != nil {
			t.Error(err)
		}
	}
	for _, f := range found {
		if err := b.Delete(t.Context(), f.ID, &f.Record, volume.WipeZero); err != nil {
			t.Error(err)
		}
	}
	g, err := b.Group(t.Context())
	if err != nil || len(g.LVs) != 3 {
		t.Errorf("left are %+v (%v)", g, err)
	}
	wantPoolUntouched(t, vg)
	if !slices.ContainsFunc(vg.Commands(), func(c string) bool {
		return strings.Contains(c, "--thinpool tank") && strings.Contains(c, "monitoring=0")
	}) {
		t.Errorf("lvm was told %q", vg.Commands())
	}
}

// A pool that is not active is left so: its owner may be repairing it. A volume of ours in it
// that is asked for brings it along, watched as its owner has it.
func TestInactiveAdoptedThinPool(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	thinVolume(t, vg.Backend(), 1, 8*thinMiB)
	vg.Reboot()
	b := vg.Backend()
	found, err := b.List(t.Context())
	if err != nil || len(found) != 1 {
		t.Fatalf("List = %+v, %v", found, err)
	}
	before := len(vg.Commands())
	if _, err := b.Tend(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "not active") {
		t.Errorf("Tend = %v", err)
	}
	spec := volume.Spec{ID: volumetest.ID(2), Name: "pvc", SizeBytes: thinMiB, Access: volume.AccessBlock}
	if _, err := b.Create(t.Context(), spec); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("Create = %v", err)
	}
	if said := vg.Commands()[before:]; len(said) > 0 {
		t.Errorf("lvm was told %q", said)
	}
	if _, err := b.Locate(t.Context(), volumetest.ID(1), found[0].Record); err != nil {
		t.Fatal(err)
	}
	if said := vg.Commands()[before:]; len(said) != 1 || strings.Contains(said[0], "monitoring") {
		t.Errorf("lvm was told %q", said)
	}
	if state := tend(t, b); state.Usage.Mode != dm.ThinPoolWritable {
		t.Errorf("Tend = %+v", state)
	}
}

// What its owner has suspended stays suspended.
func TestSuspendedVolumesOfOthers(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	thinVolume(t, vg.Backend(), 1, 8*thinMiB)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Suspend("books"); e.Suspend(volumetest.ID(1)) })
	if _, err := vg.Backend().Group(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := vg.Suspended(); !slices.Equal(got, []string{"books"}) {
		t.Errorf("suspended are %q", got)
	}
}

func TestOptionsOfAdoptedThinPool(t *testing.T) {
	t.Parallel()
	vg := foreignPool(t, "linear")
	for name, o := range map[string]lvm.Options{
		"thick":           {ThinPool: vg.ThinPool},
		"in stripes":      {ThinPool: vg.ThinPool, Thin: vg.Policy(), Layout: lvm.LayoutStriped},
		"without a UUID":  {ThinPool: &lvm.ThinPoolID{Name: "tank"}, Thin: vg.Policy()},
		"with an option":  {ThinPool: &lvm.ThinPoolID{Name: "--yes", UUID: vg.ThinPool.UUID}, Thin: vg.Policy()},
		"with two places": {ThinPool: &lvm.ThinPoolID{Name: "a/b", UUID: vg.ThinPool.UUID}, Thin: vg.Policy()},
	} {
		o.GroupName, o.GroupUUID = vg.Name, vg.UUID
		if _, err := lvm.NewBackend(lvm.NewClient(vg.Runner(), vg.Flush), o); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
