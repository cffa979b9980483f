// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// The disks that a volume of each layout can do without, and one too many of them.
var oldDisks = map[lvm.Layout][]string{
	lvm.LayoutMirror: {"/dev/vdb"}, lvm.LayoutRAID5: {"/dev/vdb"}, lvm.LayoutRAID6: {"/dev/vdb", "/dev/vdc"}, lvm.LayoutRAID10: {"/dev/vdb"},
}

func (r *raid) missing(missing bool, paths ...string) {
	for _, path := range paths {
		r.vg.SetMissing(path, missing)
	}
}

// restart is a loss of power.
func (r *raid) restart() {
	r.vg.Reboot()
	r.b = r.vg.Backend()
}

func (r *raid) wantOld(path string) {
	r.t.Helper()
	for range 2 { // nothing that is tried in between makes it better
		loc, err := r.b.Locate(r.t.Context(), volumetest.ID(1), r.rec)
		if !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "were away while it was written to ("+path) {
			r.t.Fatalf("the volume as it was: %+v, %v", loc, err)
		}
		if state := r.mend(true); state.Repaired > 0 || state.OldVolumes == 0 || !strings.Contains(state.Old, "("+path) {
			r.t.Fatalf("made whole from what is old: %+v", state)
		}
	}
}

// Disks that were away while a volume was written to are not the volume, when they are there
// and the others are not.
func TestOldLegsAreNotTheVolume(t *testing.T) {
	t.Parallel()
	eachRedundant(t, func(t *testing.T, layout lvm.Layout, disks int) {
		for name, r := range map[string]*raid{"thick": newRaid(t, layout, disks), "thin": newThinRaid(t, layout, disks)} {
			if name == "thin" && layout == lvm.LayoutRAID6 {
				continue // its metadata are on fewer disks
			}
			t.Log(name)
			old, other := oldDisks[layout], map[bool]string{true: "/dev/vdd", false: "/dev/vdc"}[layout == lvm.LayoutRAID6]
			r.missing(true, old...)
			r.mend(false)
			r.write("then")
			r.restart()
			r.mend(false)
			r.locate() // on the others it is served
			before := r.vg.Processes()
			if r.locate(); r.vg.Processes() != before {
				t.Errorf("to locate it again took %d processes", r.vg.Processes()-before)
			}
			r.missing(false, old...)
			r.missing(true, other)
			r.restart()
			r.wantOld("/dev/vdb")
			r.missing(false, other)
			r.reads("then")
			// The kernel has written them anew: the other one may go.
			if state := r.mend(false); state.DegradedVolumes != 0 {
				t.Fatalf("all are there: %+v", state)
			}
			r.missing(true, other)
			r.reads("then")
		}
	})
}

// One that is still being written from the others is as old as it was.
func TestLegsThatAreBeingRebuiltAreOld(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.missing(true, "/dev/vdb")
	r.mend(false)
	r.missing(false, "/dev/vdb")
	r.vg.SetSlowRebuild(true)
	if state := r.mend(false); state.RebuildingVolumes != 1 {
		t.Fatalf("got %+v", state)
	}
	r.missing(true, "/dev/vdc")
	r.mend(false) // it stands still: the one that is away now is not behind
	r.restart()
	r.wantOld("/dev/vdb")
	r.missing(true, "/dev/vdb")
	r.missing(false, "/dev/vdc")
	r.restart()
	r.reads("here")
}

// A new one is not the volume before it is whole.
func TestNewLegIsNotTheVolume(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.missing(true, "/dev/vdb")
	r.join("/dev/vdz")
	r.vg.SetSlowRebuild(true)
	if state := r.mend(true); state.Repaired != 1 || state.RebuildingVolumes != 1 {
		t.Fatalf("got %+v", state)
	}
	r.missing(true, "/dev/vdc")
	r.restart()
	r.wantOld("/dev/vdz")
	r.missing(false, "/dev/vdc")
	r.restart()
	r.reads("here")
}

// Nor when the host's own lvm has activated it so, as it may when it boots.
func TestOldLegsThatTheHostActivates(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*raid{"thick": newRaid(t, lvm.LayoutMirror, 2), "thin": newThinRaid(t, lvm.LayoutMirror, 2)} {
		t.Log(name)
		r.missing(true, "/dev/vdb")
		r.mend(false)
		r.write("then")
		r.missing(false, "/dev/vdb")
		r.missing(true, "/dev/vdc")
		r.restart()
		r.vg.Activate(r.vg.Name, volumetest.ID(1))
		if loc, err := r.b.Locate(t.Context(), volumetest.ID(1), r.rec); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "(/dev/vdb)") {
			t.Errorf("it is served: %+v, %v", loc, err)
		}
		r.missing(false, "/dev/vdc")
		r.reads("then")
	}
}

// Nor is a new leg made of it, where the whole one has been away for so long that it is given up.
func TestNothingIsMadeOfOldLegs(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.missing(true, "/dev/vdb")
	r.mend(false)
	r.write("then")
	r.missing(false, "/dev/vdb")
	r.vg.SetSlowRebuild(true)
	r.join("/dev/vdz")
	if state := r.mend(false); state.RebuildingVolumes != 1 {
		t.Fatalf("got %+v", state)
	}
	r.missing(true, "/dev/vdc")
	if state := r.mend(true); state.Repaired+state.DroppedDevices > 0 || !strings.Contains(state.Old, "(/dev/vdb)") {
		t.Errorf("made whole from what is old: %+v", state)
	}
	r.missing(false, "/dev/vdc")
	r.vg.SetSlowRebuild(false)
	r.reads("then")
}

// Also where the journal holds nothing: an operator who has decided that an old disk is to be used
// has taken away what it held, and no change of the group was made since.
func TestOldLegsAreKnownWithoutAGeneration(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.vg.Journal().Forget(r.vg.UUID)
	r.restart()
	r.locate()
	r.missing(true, "/dev/vdb")
	r.mend(false)
	r.write("then")
	r.missing(false, "/dev/vdb")
	r.missing(true, "/dev/vdc")
	r.restart()
	r.wantOld("/dev/vdb")
	r.missing(false, "/dev/vdc")
	r.reads("then")
	r.rec = r.create(2, raidMiB)
	if kept, found, err := r.vg.Journal().Kept(r.vg.UUID); err != nil || !found || kept.Seqno == 0 {
		t.Errorf("after a change the journal holds %+v, %v, %v", kept, found, err)
	}
}

// What is known of a leg ends with it.
func TestOldLegsAreReplaced(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutMirror, 2)
	r.missing(true, "/dev/vdb")
	r.mend(false)
	r.join("/dev/vdz")
	if state := r.mend(true); state.Repaired != 1 {
		t.Fatalf("got %+v", state)
	}
	r.missing(true, "/dev/vdc")
	r.reads("here")
}

// A disk was away and was written anew while the agent was away, and then the other one died: the
// record is of before that. Who uses the volume goes on with the disk that is recorded as old, so the
// other one is old from then on.
func TestRebuiltUnseenAndTheOtherDies(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*raid{"thick": newRaid(t, lvm.LayoutMirror, 2), "thin": newThinRaid(t, lvm.LayoutMirror, 2)} {
		for _, used := range []bool{true, false} {
			t.Logf("%s, used: %t", name, used)
			r.missing(true, "/dev/vdb")
			r.mend(false)
			r.missing(false, "/dev/vdb")
			r.vg.SetSlowRebuild(true)
			if state := r.mend(false); state.RebuildingVolumes == 0 {
				t.Fatalf("got %+v", state)
			}
			release := func() {}
			if used {
				release = r.vg.Hold(r.locate().Device)
			}
			// While nobody looks:
			r.vg.SetSlowRebuild(false)
			r.missing(true, "/dev/vdc")
			r.b = r.vg.Backend()
			if state := r.mend(false); state.Refreshed+state.Repaired > 0 {
				t.Fatalf("got %+v", state)
			}
			release()
			r.missing(false, "/dev/vdc")
			r.missing(true, "/dev/vdb")
			r.restart()
			if used {
				r.wantOld("/dev/vdc")
			} else {
				r.reads("here")
			}
			r.missing(false, "/dev/vdb")
			r.reads("here")
			if state := r.mend(false); state.DegradedVolumes != 0 || state.OldVolumes != 0 {
				t.Fatalf("all are there: %+v", state)
			}
			r.missing(true, "/dev/vdc")
			r.reads("here")
			r.missing(false, "/dev/vdc")
			r.mend(false)
		}
	}
}

// A disk that was away is back, and the other one goes before anything was written to it: it is not
// put below whoever uses the volume.
func TestOldLegsAreNotRefreshedAlone(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*raid{"thick": newRaid(t, lvm.LayoutMirror, 2), "thin": newThinRaid(t, lvm.LayoutMirror, 2)} {
		t.Log(name)
		r.missing(true, "/dev/vdb")
		r.mend(false)
		r.write("then")
		r.missing(false, "/dev/vdb")
		r.missing(true, "/dev/vdc")
		if state := r.mend(false); state.Refreshed > 0 {
			t.Errorf("refreshed: %+v", state)
		}
		r.missing(false, "/dev/vdc")
		if state := r.mend(false); state.Refreshed == 0 {
			t.Errorf("not refreshed: %+v", state)
		}
		r.reads("then")
	}
}
