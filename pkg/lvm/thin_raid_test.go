// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// newThinRaid is newRaid with a thin pool.
func newThinRaid(t *testing.T, layout lvm.Layout, disks int) *raid {
	t.Helper()
	r := &raid{t: t, vg: lvmtest.NewThinVGOf(t, layout, disks, 24*raidMiB)}
	r.vg.AddDisk("/dev/vdz", 64*raidMiB, "")
	r.b = r.vg.Backend()
	r.rec = r.create(1, 6*raidMiB)
	r.write("here")
	return r
}

func eachRedundant(t *testing.T, f func(t *testing.T, layout lvm.Layout, disks int)) {
	t.Helper()
	for layout, disks := range raidLayouts {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			f(t, layout, disks)
		})
	}
}

// A disk of a redundant thin pool is lost for good: its volumes go on, and both of its parts
// are whole again on a new disk.
func TestThinPoolOutlivesADisk(t *testing.T) {
	t.Parallel()
	eachRedundant(t, func(t *testing.T, layout lvm.Layout, disks int) {
		r := newThinRaid(t, layout, disks)
		before := r.vg.Processes()
		if state := r.mend(true); state.Volumes != 2 || state.DegradedVolumes != 0 || r.vg.Processes() != before {
			t.Fatalf("whole: %+v, by %d processes", state, r.vg.Processes()-before)
		}
		lost := r.vg.Devices[0]
		r.vg.SetMissing(lost, true)
		if state := r.mend(false); state.DegradedVolumes != 2 || state.Repaired != 0 {
			t.Fatalf("waited for: %+v", state)
		}
		// The metadata find a place where the data have none, on a disk that has none of them.
		state := r.mend(true)
		if state.DegradedVolumes+state.Repaired != 2 || state.DegradedVolumes == 0 || !strings.Contains(state.Waiting, "on which the data of the thin pool does not lie") {
			t.Fatalf("without a spare: %+v", state)
		}
		repaired := state.Repaired
		r.reads("here") // also after a boot without the disk
		r.write("then")
		r.join("/dev/vdz")
		state = r.mend(true)
		if state.Repaired != 2-repaired || state.DroppedDevices != 1 || state.DegradedVolumes != 0 {
			t.Fatalf("mended: %+v", state)
		}
		if g := r.group(); g.MissingPVs != 0 || len(g.PVs) != disks {
			t.Fatalf("%d devices, %d are missing", len(g.PVs), g.MissingPVs)
		}
		r.reads("then")
		for _, other := range r.vg.Devices[1:disks] {
			r.vg.SetMissing(other, true)
			r.mend(false)
			r.reads("then")
			r.vg.SetMissing(other, false)
			r.mend(false)
		}
		r.create(2, raidMiB)
	})
}

// A disk comes back in time: nothing is made anew.
func TestThinPoolTakesADiskBack(t *testing.T) {
	t.Parallel()
	eachRedundant(t, func(t *testing.T, layout lvm.Layout, disks int) {
		r := newThinRaid(t, layout, disks)
		r.vg.SetMissing("/dev/vdc", true)
		r.mend(false)
		r.write("then")
		r.vg.SetMissing("/dev/vdc", false)
		if state := r.mend(true); state.Repaired != 0 || state.Refreshed == 0 || state.DegradedVolumes != 0 {
			t.Fatalf("back: %+v", state)
		}
		r.reads("then")
	})
}

// What a killed lvm has left suspended goes on, and is not waited for.
func TestThinPoolIsResumed(t *testing.T) {
	t.Parallel()
	for _, stuck := range []string{"thin_tdata", "thin_tmeta", volumetest.ID(1)} {
		r := newThinRaid(t, lvm.LayoutMirror, 2)
		r.create(2, raidMiB)
		r.vg.Suspend(stuck)
		r.mend(false)
		if names := r.vg.Suspended(); len(names) > 0 {
			t.Errorf("%s: suspended are %q", stuck, names)
		}
		r.create(3, raidMiB)
		r.reads("here")
	}
}

// Power is lost at each step of making the pool, with and without half a metadata left.
func TestMakingARedundantThinPoolLosesPower(t *testing.T) {
	t.Parallel()
	for _, torn := range []bool{false, true} {
		for n := 0; ; n++ {
			vg := lvmtest.NewThinVGOf(t, lvm.LayoutRAID5, 3, 12*raidMiB)
			vg.SetTearing(torn)
			vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Remove("thin") })
			dead := vg.LosePower(n)
			_, err := vg.Backend().Tend(t.Context())
			if !dead() {
				if err != nil {
					t.Fatal(err)
				}
				if n < 5 {
					t.Fatalf("only %d steps", n)
				}
				break
			}
			vg.Reboot()
			b := vg.Backend()
			if state, err := b.Tend(t.Context()); err != nil || state.DataBytes < 12*raidMiB {
				t.Fatalf("step %d, torn %t: %+v, %v", n, torn, state, err)
			}
			if _, err := b.Create(t.Context(), spec(1, 12*raidMiB)); err != nil {
				t.Fatalf("step %d, torn %t: %v", n, torn, err)
			}
		}
	}
}

// A volume that is called as what a pool is made of, and is not ours, is not removed.
func TestForeignVolumeWithTheNameOfPoolMetadata(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVGOf(t, lvm.LayoutMirror, 2, 12*raidMiB)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) {
		e.Remove("thin")
		e.Add("thin-metadata", 1)
	})
	if _, err := vg.Backend().Tend(t.Context()); !errors.Is(err, volume.ErrExists) || !strings.Contains(err.Error(), "thin-metadata") {
		t.Fatalf("the name of its metadata is taken: %v", err)
	}
	g, err := vg.Backend().Group(t.Context())
	if err != nil || g.Volume("thin-metadata") == nil || g.Volume("thin") != nil {
		t.Fatalf("%+v, %v", g, err)
	}
}

// The pool grows as it fills, on the devices that its legs lie on, and its metadata too.
func TestRedundantThinPoolGrows(t *testing.T) {
	t.Parallel()
	eachRedundant(t, func(t *testing.T, layout lvm.Layout, disks int) {
		vg := lvmtest.NewThinVGOf(t, layout, disks, 60*raidMiB)
		vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Remove("thin") })
		vg.Thin.InitialPercent = 10
		b := vg.Backend()
		small := tend(t, b)
		if small.DataBytes > 12*raidMiB {
			t.Fatalf("made with %d bytes", small.DataBytes)
		}
		capacity, err := b.Capacity(t.Context())
		if err != nil || capacity.FreeBytes < 60*raidMiB {
			t.Fatalf("%+v, %v", capacity, err)
		}
		loc := thinVolume(t, b, 1, 48*raidMiB)
		fill(t, loc, small.DataBytes)
		grown := tend(t, b)
		if !grown.Grown || grown.Usage.DataPercent() >= int(vg.Thin.ThresholdPercent) {
			t.Fatalf("%+v", grown)
		}
		vg.FillMetadata(grown.Usage.MetadataBlocks * 3 / 4)
		more := tend(t, b)
		if more.MetadataBytes <= grown.MetadataBytes {
			t.Fatalf("metadata of %d bytes, before %d", more.MetadataBytes, grown.MetadataBytes)
		}
		for _, command := range vg.Commands() {
			if strings.HasPrefix(command, "lvextend") && !strings.Contains(command, "cling") {
				t.Errorf("two legs may come to lie on one device: %s", command)
			}
		}
	})
}

// A new disk is a spare for a redundant pool, and what it has is not promised.
func TestNewDiskIsASpare(t *testing.T) {
	t.Parallel()
	r := newThinRaid(t, lvm.LayoutMirror, 2)
	before, err := r.b.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.join("/dev/vdz")
	after, err := r.b.Capacity(t.Context())
	if err != nil || after.TotalBytes != before.TotalBytes || after.FreeBytes != before.FreeBytes {
		t.Fatalf("%+v, %v; before %+v", after, err, before)
	}
}

// A spare for the metadata, which lvm makes when an operator repairs them, is given up with
// the disk that it was on: it does not keep that disk in the group.
func TestLostSpareIsRemoved(t *testing.T) {
	t.Parallel()
	r := newThinRaid(t, lvm.LayoutMirror, 2)
	r.vg.Edit(r.vg.Name, func(e *lvmtest.Editor) { e.AddSpare("thin") })
	r.join("/dev/vdz")
	r.vg.SetMissing(r.vg.Devices[0], true)
	if state := r.mend(true); state.Repaired != 2 || state.DroppedDevices != 1 {
		t.Fatalf("%+v", state)
	}
	r.reads("here")
}

// A disk that holds legs of both parts is emptied onto a spare.
func TestEvacuateRedundantThinPool(t *testing.T) {
	t.Parallel()
	eachRedundant(t, func(t *testing.T, layout lvm.Layout, disks int) {
		r := newThinRaid(t, layout, disks)
		r.join("/dev/vdz")
		r.out()
		if g := r.group(); len(g.PVs) != disks || slices.ContainsFunc(g.PVs, func(pv lvm.PhysicalVolume) bool { return pv.Path == "/dev/vdb" }) {
			t.Fatalf("%+v", g.PVs)
		}
		r.reads("here")
		if state := r.mend(true); state.DegradedVolumes != 0 {
			t.Fatalf("%+v", state)
		}
	})
}

// The health of a volume is that of what it lies on.
func TestProblemsOfRedundantThinPool(t *testing.T) {
	t.Parallel()
	r := newThinRaid(t, lvm.LayoutMirror, 2)
	if problems, err := r.b.Problems(t.Context(), volumetest.ID(1), r.rec); err != nil || len(problems) > 0 {
		t.Fatalf("whole: %+v, %v", problems, err)
	}
	r.vg.SetMissing("/dev/vdb", true)
	problems, err := r.b.Problems(t.Context(), volumetest.ID(1), r.rec)
	if err != nil || len(problems) != 1 || problems[0].Reason != lvm.ReasonNotRedundant || problems[0].Inaccessible {
		t.Fatalf("degraded: %+v, %v", problems, err)
	}
}

// Too few disks, or too little room on them: no pool, and the reason.
func TestRedundantThinPoolInALittleGroup(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewRaidVG(t, lvm.LayoutMirror, 2, 12*raidMiB)
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	if _, err := vg.Backend().Tend(t.Context()); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("%v", err)
	}
}
