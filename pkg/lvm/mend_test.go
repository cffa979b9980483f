// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const raidMiB = lvmtest.ExtentBytes

// raid is a group with a spare disk that is not in it, and a volume with something on it.
type raid struct {
	t   *testing.T
	vg  *lvmtest.VG
	b   *lvm.Backend
	rec volume.Record
}

func newRaid(t *testing.T, layout lvm.Layout, disks int) *raid {
	t.Helper()
	r := &raid{t: t, vg: lvmtest.NewRaidVG(t, layout, disks, 20*raidMiB)}
	r.vg.AddDisk("/dev/vdz", 21*raidMiB, "")
	r.b = r.vg.Backend()
	r.rec = r.create(1, 6*raidMiB)
	r.write("here")
	return r
}

func (r *raid) create(n int, sizeBytes int64) volume.Record {
	r.t.Helper()
	rec, err := r.b.Create(r.t.Context(), volume.Spec{ID: volumetest.ID(n), Name: "pvc", SizeBytes: sizeBytes, Access: volume.AccessBlock})
	if err != nil {
		r.t.Fatal(err)
	}
	return rec
}

func (r *raid) locate() volume.Location {
	r.t.Helper()
	loc, err := r.b.Locate(r.t.Context(), volumetest.ID(1), r.rec)
	if err != nil {
		r.t.Fatal(err)
	}
	return loc
}

func (r *raid) write(text string) {
	r.t.Helper()
	f, err := os.OpenFile(r.locate().Device, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); at < r.rec.SizeBytes; at += raidMiB {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			r.t.Fatal(err)
		}
	}
}

// reads fails the test unless each extent of the volume holds the text, after a reboot.
func (r *raid) reads(text string) {
	r.t.Helper()
	r.vg.Reboot()
	r.b = r.vg.Backend()
	data, err := os.ReadFile(r.locate().Device)
	if err != nil {
		r.t.Fatal(err)
	}
	for at := 0; at < len(data); at += raidMiB {
		if got := string(data[at : at+len(text)]); got != text {
			r.t.Fatalf("at %d stands %q", at, got)
		}
	}
}

func (r *raid) mend(replace bool) *lvm.RaidState {
	r.t.Helper()
	state, err := r.b.Mend(r.t.Context(), lvm.MendOptions{Replace: replace})
	if err != nil {
		r.t.Fatal(err)
	}
	return state
}

func (r *raid) join(path string) {
	r.t.Helper()
	r.vg.Devices = append(r.vg.Devices, path)
	client := lvm.NewClient(r.vg.Runner(), r.vg.Flush)
	if _, err := client.ExtendGroup(r.t.Context(), r.vg.UUID, lvm.GroupSpec{
		Name: r.vg.Name, PoolUID: lvmtest.PoolUID, Devices: []string{path}, Partial: true,
	}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raid) group() *lvm.Group {
	r.t.Helper()
	g, err := r.b.Group(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

var raidLayouts = map[lvm.Layout]int{lvm.LayoutMirror: 2, lvm.LayoutRAID5: 3, lvm.LayoutRAID6: 5, lvm.LayoutRAID10: 4}

// A disk is lost for good: the volumes go on, and are whole again on a new disk.
func TestMendReplacesALostDisk(t *testing.T) {
	t.Parallel()
	for layout, disks := range raidLayouts {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			r := newRaid(t, layout, disks)
			before := r.vg.Processes()
			if state := r.mend(true); state.Volumes != 1 || state.DegradedVolumes != 0 || r.vg.Processes() != before {
				t.Fatalf("whole: %+v, by %d processes", state, r.vg.Processes()-before)
			}
			r.vg.SetMissing("/dev/vdb", true)
			if state := r.mend(false); state.DegradedVolumes != 1 || state.Repaired != 0 || state.DroppedDevices != 0 {
				t.Fatalf("waited for: %+v", state)
			}
			if _, err := r.b.Create(t.Context(), volume.Spec{ID: volumetest.ID(2), SizeBytes: raidMiB, Access: volume.AccessBlock}); !errors.Is(err, volume.ErrPoolUnavailable) {
				t.Fatalf("create without a disk: %v", err)
			}
			if state := r.mend(true); state.DegradedVolumes != 1 || !strings.Contains(state.Waiting, "no disk of the pool") || state.DroppedDevices != 0 {
				t.Fatalf("without a spare: %+v", state)
			}
			r.reads("here")
			r.write("then")
			r.join("/dev/vdz")
			r.vg.SetSlowRebuild(true)
			if state := r.mend(true); state.Repaired != 1 || state.DroppedDevices != 1 || state.DegradedVolumes != 1 || state.RebuildingVolumes != 1 || state.RebuiltPercent != 50 || state.Waiting != "" {
				t.Fatalf("with a spare: %+v", state)
			}
			r.vg.SetSlowRebuild(false)
			if state := r.mend(true); state.DegradedVolumes != 0 || state.RebuiltPercent != 100 {
				t.Fatalf("rebuilt: %+v", state)
			}
			if g := r.group(); g.State() != lvm.StateReady || len(g.PVs) != disks || slices.ContainsFunc(g.PVs, func(pv lvm.PhysicalVolume) bool { return pv.Path == "/dev/vdb" }) {
				t.Fatalf("the group is %s on %+v", g.State(), g.PVs)
			}
			r.reads("then")
			r.create(2, raidMiB)
			// The lost disk comes back: nobody takes it for one of the group.
			r.vg.SetMissing("/dev/vdb", false)
			if state := r.mend(true); state.DegradedVolumes != 0 || len(r.group().PVs) != disks {
				t.Fatalf("the lost disk is back: %+v", state)
			}
			for _, command := range r.vg.Commands() {
				if strings.Contains(command, "--force") {
					t.Errorf("%s", command)
				}
			}
		})
	}
}

// A disk that was lost, and replaced, still says what the group was then. It is not taken
// for the group, neither while the others are away nor when the group has been removed.
func TestLostDiskIsNotTheGroup(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.vg.SetMissing("/dev/vdb", true)
	r.join("/dev/vdz")
	r.write("then")
	if state := r.mend(true); state.DroppedDevices != 1 {
		t.Fatalf("got %+v", state)
	}
	r.vg.SetMissing("/dev/vdb", false)
	others := []string{"/dev/vdc", "/dev/vdz"}
	for _, path := range others {
		r.vg.SetMissing(path, true)
	}
	r.vg.Reboot()
	for name, devices := range map[string][]string{"all that the host shows": nil, "none is there": {}} {
		r.vg.Devices = devices
		r.b = r.vg.Backend()
		if loc, err := r.b.Locate(t.Context(), volumetest.ID(1), r.rec); !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("%s: the volume as it was: %+v, %v", name, loc, err)
		}
		if _, err := r.b.Mend(t.Context(), lvm.MendOptions{Replace: true}); !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("%s: mend: %v", name, err)
		}
	}
	for _, path := range others {
		r.vg.SetMissing(path, false)
	}
	r.vg.Devices = others
	r.reads("then")
	if err := r.b.Delete(t.Context(), volumetest.ID(1), &r.rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	client := lvm.NewClient(r.vg.Runner(), r.vg.Flush)
	if err := client.RemoveGroup(t.Context(), r.vg.UUID, lvmtest.PoolUID, others); err != nil {
		t.Fatal(err)
	}
	for _, path := range others {
		if got := r.vg.Signature(path); got != "" {
			t.Errorf("%s holds %s", path, got)
		}
	}
	if got := r.vg.Signature("/dev/vdb"); got != "LVM2_member" {
		t.Errorf("the lost disk holds %q", got)
	}
	if err := client.RemoveGroup(t.Context(), r.vg.UUID, lvmtest.PoolUID, others); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A disk that is there again is taken back, also when the group was changed meanwhile.
func TestMendTakesADiskBack(t *testing.T) {
	t.Parallel()
	for name, changed := range map[string]bool{"unchanged": false, "changed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRaid(t, lvm.LayoutMirror, 2)
			r.vg.SetMissing("/dev/vdc", true)
			r.mend(false)
			if changed {
				r.join("/dev/vdz")
			}
			r.vg.SetMissing("/dev/vdc", false)
			state := r.mend(false)
			if state.Refreshed != 1 || state.DegradedVolumes != 0 || state.Repaired != 0 {
				t.Fatalf("got %+v", state)
			}
			if got := r.group().State(); got != lvm.StateReady {
				t.Errorf("the group is %s", got)
			}
			if state := r.mend(true); state.Refreshed != 0 || state.DroppedDevices != 0 {
				t.Errorf("again: %+v", state)
			}
			r.reads("here")
		})
	}
}

// What a killed lvm has left of a repair is cleaned up, and the repair done.
func TestMendAfterARepairWasCutShort(t *testing.T) {
	t.Parallel()
	for _, mode := range []lvmtest.Mode{lvmtest.DieBefore, lvmtest.DieWithin, lvmtest.DieAfter, lvmtest.HangAfter, lvmtest.Refuse, lvmtest.Lie, lvmtest.Garbage} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			r := newRaid(t, lvm.LayoutRAID5, 3)
			r.vg.SetMissing("/dev/vdd", true)
			r.join("/dev/vdz")
			r.vg.LeaveLeg(volumetest.ID(1))
			r.vg.Inject(lvmtest.Fault{Command: "lvconvert", Mode: mode})
			_, _ = r.b.Mend(t.Context(), lvm.MendOptions{Replace: true}) // it may find its way at once
			r.vg.LeaveLeg(volumetest.ID(1))
			r.vg.Suspend(volumetest.ID(1))
			state := r.mend(true)
			if state.DegradedVolumes != 0 || state.Waiting != "" {
				t.Fatalf("got %+v", state)
			}
			g := r.group()
			if g.State() != lvm.StateReady || len(g.LVs) != 1 || len(g.PVs) != 3 {
				t.Fatalf("the group is %s with %+v on %+v", g.State(), g.LVs, g.PVs)
			}
			r.reads("here")
		})
	}
}

// A volume that a killed lvm has left suspended goes on, also while its disk is waited for.
func TestMendResumes(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.vg.SetMissing("/dev/vdb", true)
	r.vg.Suspend(volumetest.ID(1))
	if state := r.mend(false); state.Refreshed != 1 || state.DegradedVolumes != 1 {
		t.Errorf("got %+v", state)
	}
	if state := r.mend(false); state.Refreshed != 0 {
		t.Errorf("again: %+v", state)
	}
	r.vg.SetMissing("/dev/vdb", false)
	r.mend(false)
	r.vg.Suspend(volumetest.ID(1))
	if _, err := r.b.Grow(t.Context(), volumetest.ID(1), r.rec, 8*raidMiB); err != nil {
		t.Errorf("grow what is suspended: %v", err)
	}
}

// Two of raid6 are lost, and there is one spare: one leg is better than none.
func TestMendWithTooFewSpares(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutRAID6, 5)
	r.vg.SetMissing("/dev/vdb", true)
	r.vg.SetMissing("/dev/vdc", true)
	r.join("/dev/vdz")
	if state := r.mend(true); state.Repaired != 1 || state.DegradedVolumes != 1 || state.DroppedDevices != 0 || state.Waiting == "" {
		t.Fatalf("got %+v", state)
	}
	r.reads("here")
	r.vg.AddDisk("/dev/vdy", 21*raidMiB, "")
	r.join("/dev/vdy")
	if state := r.mend(true); state.Repaired != 1 || state.DegradedVolumes != 0 || state.DroppedDevices != 2 {
		t.Fatalf("with another: %+v", state)
	}
	r.reads("here")
}

// What is not ours keeps its disk, and the disk stays in the group.
func TestMendLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.vg.Edit(r.vg.Name, func(e *lvmtest.Editor) { e.Add("theirs", 1) }) // on vdb
	r.vg.SetMissing("/dev/vdb", true)
	r.join("/dev/vdz")
	if state := r.mend(true); state.Repaired != 1 || state.DegradedVolumes != 0 || state.DroppedDevices != 0 {
		t.Fatalf("got %+v", state)
	}
	if g := r.group(); g.Volume("theirs") == nil || g.MissingPVs != 1 {
		t.Fatalf("the group has %+v and misses %d", g.LVs, g.MissingPVs)
	}
}

// The loss of power at any step of a repair loses nothing.
func TestMendLosesPower(t *testing.T) {
	t.Parallel()
	for _, torn := range []bool{false, true} {
		for n := 0; ; n++ {
			r := newRaid(t, lvm.LayoutMirror, 2)
			r.vg.SetTearing(torn)
			r.vg.SetMissing("/dev/vdb", true)
			r.join("/dev/vdz")
			lost := r.vg.LosePower(n)
			_, _ = r.b.Mend(t.Context(), lvm.MendOptions{Replace: true})
			happened := lost()
			r.vg.Reboot()
			r.b = r.vg.Backend()
			state := r.mend(true)
			if g := r.group(); state.DegradedVolumes != 0 || g.State() != lvm.StateReady || len(g.LVs) != 1 || len(g.PVs) != 2 {
				t.Fatalf("torn %v, step %d: %+v, the group is %s with %+v", torn, n, state, g.State(), g.LVs)
			}
			r.reads("here")
			if !happened {
				break
			}
		}
	}
}

// A group of a layout that is not redundant has nothing to mend.
func TestMendOfOtherLayouts(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 10*raidMiB)
	if state, err := vg.Backend().Mend(t.Context(), lvm.MendOptions{Replace: true}); state != nil || err != nil {
		t.Errorf("got %+v, %v", state, err)
	}
}

// The volume is found by its legs to be unfinished, is made anew, and takes what it
// should.
func TestUnfinishedVolumeIsMadeAnew(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewRaidVG(t, lvm.LayoutRAID10, 4, 20*raidMiB)
	b := vg.Backend()
	empty, err := b.Capacity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := volume.Spec{ID: volumetest.ID(1), Name: "pvc", SizeBytes: 4 * raidMiB, Access: volume.AccessBlock}
	vg.Inject(lvmtest.Fault{Command: "lvcreate", Mode: lvmtest.DieWithin})
	if _, err := b.Create(t.Context(), spec); err == nil {
		t.Fatal("it was killed")
	}
	g, err := b.Group(t.Context())
	if err != nil || g.Volume(spec.ID) == nil || !g.Volume(spec.ID).Unfinished {
		t.Fatalf("the group is %+v, %v", g, err)
	}
	if _, err := b.Locate(t.Context(), spec.ID, volume.Record{
		Mode: volume.ModeLVM, SizeBytes: 4 * raidMiB,
		LVM: &volume.LVMRecord{VGName: vg.Name, VGUUID: vg.UUID, LVName: spec.ID, LVUUID: g.Volume(spec.ID).UUID},
	}); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("locate: %v", err)
	}
	rec, err := b.Create(t.Context(), spec)
	if err != nil || rec.LVM.LVUUID == g.Volume(spec.ID).UUID {
		t.Fatalf("created again: %+v, %v", rec, err)
	}
	if err := b.Delete(t.Context(), spec.ID, &rec, volume.WipeDiscard); err != nil {
		t.Fatal(err)
	}
	vg.Inject(lvmtest.Fault{Command: "lvcreate", Mode: lvmtest.DieWithin})
	_, _ = b.Create(t.Context(), spec)
	if err := b.Delete(t.Context(), spec.ID, nil, volume.WipeZero); err != nil {
		t.Fatalf("delete what is unfinished: %v", err)
	}
	if now, err := b.Capacity(t.Context()); err != nil || now != empty {
		t.Errorf("left is %+v, %v; was %+v", now, err, empty)
	}
}

// While a disk is missing no volume is removed, and none is wiped for that.
func TestDeleteWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	r := evacuations["mirror"](t)
	r.vg.SetMissing("/dev/vdb", true)
	wiped := 0
	r.vg.OnWipe(func(volume.WipePolicy) { wiped++ })
	for range 2 {
		if err := r.b.Delete(t.Context(), volumetest.ID(1), &r.rec, volume.WipeZero); !errors.Is(err, volume.ErrPoolUnavailable) || wiped > 0 {
			t.Errorf("Delete: %v, wiped %d times", err, wiped)
		}
	}
	r.vg.SetMissing("/dev/vdb", false)
	r.reads("here")
	r.mend(false)
	if err := r.b.Delete(t.Context(), volumetest.ID(1), &r.rec, volume.WipeZero); err != nil {
		t.Error(err)
	}
}
