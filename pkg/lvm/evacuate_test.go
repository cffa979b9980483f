// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// emptied is the disk that the tests evacuate, spare the one with room for what is on it.
const emptied, spare = "/dev/vdb", "/dev/vdz"

// evacuations are pools of all kinds with a volume on the disk that is to be emptied.
var evacuations = map[string]func(t *testing.T) *raid{
	"linear": func(t *testing.T) *raid { return newEvacuation(t, lvmtest.NewVG(t, 20*raidMiB)) },
	"striped": func(t *testing.T) *raid {
		return newEvacuation(t, lvmtest.NewStripedVG(t, 2, 40*raidMiB))
	},
	"thin": func(t *testing.T) *raid {
		vg := lvmtest.NewThinVG(t, 20*raidMiB)
		return newEvacuation(t, vg)
	},
	"mirror": func(t *testing.T) *raid {
		return newEvacuation(t, lvmtest.NewRaidVG(t, lvm.LayoutMirror, 2, 20*raidMiB))
	},
	"raid5": func(t *testing.T) *raid {
		return newEvacuation(t, lvmtest.NewRaidVG(t, lvm.LayoutRAID5, 3, 20*raidMiB))
	},
	"raid10": func(t *testing.T) *raid {
		return newEvacuation(t, lvmtest.NewRaidVG(t, lvm.LayoutRAID10, 4, 20*raidMiB))
	},
}

func newEvacuation(t *testing.T, vg *lvmtest.VG) *raid {
	t.Helper()
	r := &raid{t: t, vg: vg, b: vg.Backend().CompareFollowed()}
	r.rec = r.create(1, 6*raidMiB)
	r.write("here")
	// One more extent than the largest disk of the pools above has.
	r.vg.AddDisk(spare, 64*raidMiB, "")
	r.join(spare)
	return r
}

func (r *raid) evacuate(o lvm.EvacuateOptions) []lvm.Evacuation {
	r.t.Helper()
	states, err := r.b.Evacuate(r.t.Context(), o)
	if err != nil {
		r.t.Fatal(err)
	}
	return states
}

// out evacuates until the disk is out of the group.
func (r *raid) out() {
	r.t.Helper()
	for range 20 {
		s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]
		if s.Out {
			r.vg.Devices = slices.DeleteFunc(slices.Clone(r.vg.Devices), func(path string) bool { return path == emptied })
			return
		}
		if s.Waiting != "" {
			r.t.Fatalf("it waits: %+v", s)
		}
	}
	r.t.Fatal("it does not come to the end")
}

func TestEvacuate(t *testing.T) {
	t.Parallel()
	for kind, newPool := range evacuations {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newPool(t)
			r.out()
			g := r.group()
			if slices.ContainsFunc(g.PVs, func(pv lvm.PhysicalVolume) bool { return pv.Path == emptied }) {
				t.Errorf("the disk is still in the group: %+v", g.PVs)
			}
			r.reads("here")
			r.write("then")
			rec := r.rec
			r.rec = r.create(2, raidMiB)
			if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; !s.Out {
				t.Errorf("asked again: %+v", s)
			}
			r.rec = rec
			r.reads("then")
		})
	}
}

// Each part of a redundant volume is on a disk of its own, before and after.
func TestEvacuateKeepsLegsApart(t *testing.T) {
	t.Parallel()
	r := evacuations["raid5"](t)
	r.out()
	lv := r.group().Volume(volumetest.ID(1))
	on := map[string]string{}
	for _, leg := range lv.Legs {
		number := leg.Name[strings.LastIndex(leg.Name, "_"):]
		if len(leg.Devices) != 1 || on[leg.Devices[0]] != "" && on[leg.Devices[0]] != number {
			t.Errorf("%s is on %v", leg.Name, leg.Devices)
			continue
		}
		on[leg.Devices[0]] = number
	}
}

// Legs of several volumes, of which the others are on all other disks between them.
func TestEvacuateOfManyRedundantVolumes(t *testing.T) {
	t.Parallel()
	r := evacuations["mirror"](t)
	for n := 2; n < 8; n++ {
		r.create(n, raidMiB)
	}
	others := map[string]bool{}
	for _, lv := range r.group().LVs {
		var on []string
		for _, leg := range lv.Legs {
			on = append(on, leg.Devices...)
		}
		if slices.Contains(on, emptied) {
			for _, path := range on {
				others[path] = true
			}
		}
	}
	if len(others) != len(r.vg.Devices) {
		t.Fatalf("the volumes on %s have their other legs on %v only", emptied, others)
	}
	r.out()
	r.reads("here")
}

func TestEvacuateWaitsForRoom(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{"linear": "no other disk of the pool has room for", "mirror": "nothing else of its volume on it"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			vg := lvmtest.NewVG(t, 20*raidMiB)
			if kind == "mirror" {
				vg = lvmtest.NewRaidVG(t, lvm.LayoutMirror, 2, 20*raidMiB)
			}
			r := &raid{t: t, vg: vg, b: vg.Backend()}
			r.rec = r.create(1, 6*raidMiB)
			r.write("here")
			s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]
			if !strings.Contains(s.Waiting, want) || s.Moving || s.Out || s.RemainingBytes < 6*raidMiB {
				t.Errorf("got %+v", s)
			}
			if _, err := r.b.Create(t.Context(), spec(2, raidMiB)); !errors.Is(err, volume.ErrNoSpace) {
				t.Errorf("a new volume on a disk that is being emptied: %v", err)
			}
			r.vg.AddDisk(spare, 64*raidMiB, "")
			r.join(spare)
			r.out()
			r.reads("here")
		})
	}
}

// Half of it is copied, and it is wanted back.
func TestEvacuateIsTakenBack(t *testing.T) {
	t.Parallel()
	for kind, newPool := range evacuations {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newPool(t)
			r.vg.SetSlowCopy(true)
			whole := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]
			if !whole.Moving || whole.Out || whole.Waiting != "" {
				t.Fatalf("while it is copied: %+v", whole)
			}
			processes := r.vg.Processes()
			if again := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; again != whole || r.vg.Processes() != processes {
				t.Errorf("nothing has happened: %+v, and before %+v, by %d processes", again, whole, r.vg.Processes()-processes)
			}
			r.evacuate(lvm.EvacuateOptions{Open: []string{emptied}})
			if i := slices.IndexFunc(r.group().PVs, func(pv lvm.PhysicalVolume) bool { return pv.Path == emptied && !pv.Closed }); i < 0 {
				t.Errorf("it was not opened: %+v", r.group().PVs)
			}
			r.vg.SetSlowCopy(false)
			r.reads("here")
			r.create(2, raidMiB)
		})
	}
}

// What was put on a disk after it was looked at is moved from it, too.
func TestEvacuateWhatCameBetween(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"linear", "striped", "thin"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := evacuations[kind](t)
			r.evacuate(lvm.EvacuateOptions{Open: []string{emptied}}) // looks where everything lies
			r.create(2, raidMiB)
			r.out()
			r.reads("here")
		})
	}
}

// It is wanted back when it has left the group already.
func TestEvacuateIsTakenBackTooLate(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	r.out()
	states := r.evacuate(lvm.EvacuateOptions{Empty: []string{spare}, Open: []string{emptied}})
	if last := states[len(states)-1]; len(states) != 2 || states[0].Out || last.Path != emptied || !last.Out {
		t.Errorf("got %+v", states)
	}
}

func TestEvacuateGoesOnAfterAReboot(t *testing.T) {
	t.Parallel()
	for kind, newPool := range evacuations {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newPool(t)
			r.vg.SetSlowCopy(true)
			r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})
			r.reads("here")
			r.write("then")
			r.vg.SetSlowCopy(false)
			r.out()
			r.reads("then")
		})
	}
}

// A disk fails while it is copied: the volumes are where they were.
func TestEvacuateFails(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	r.vg.FailCopy()
	if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; !strings.Contains(s.Waiting, "failed") || s.Moving {
		t.Errorf("got %+v", s)
	}
	r.reads("here")
	r.out()
	r.reads("here")
}

// What lvm moves it does not change otherwise: that is tried again later.
func TestChangesOfWhatIsMoved(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	r.vg.SetSlowCopy(true)
	r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})
	if _, err := r.b.Grow(t.Context(), volumetest.ID(1), r.rec, 8*raidMiB); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("grow: %v", err)
	}
	other := r.create(2, 2*raidMiB)
	r.vg.Edit(r.vg.Name, func(e *lvmtest.Editor) { e.Deactivate(volumetest.ID(2)) })
	if _, err := r.b.Locate(t.Context(), volumetest.ID(2), other); err != nil {
		t.Errorf("activate another one: %v", err)
	}
	processes := r.vg.Processes()
	if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; !s.Moving || r.vg.Processes() != processes {
		t.Errorf("after that %+v, seen by %d processes", s, r.vg.Processes()-processes)
	}
	if err := r.b.Delete(t.Context(), volumetest.ID(2), &other, volume.WipeZero); err != nil {
		t.Errorf("delete another one: %v", err)
	}
	if err := r.b.Delete(t.Context(), volumetest.ID(1), &r.rec, volume.WipeNone); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("delete: %v", err)
	}
	r.vg.SetSlowCopy(false)
	r.out()
	if err := r.b.Delete(t.Context(), volumetest.ID(1), &r.rec, volume.WipeNone); err != nil {
		t.Errorf("delete afterwards: %v", err)
	}
}

// The power fails at each step in turn, and the disk is emptied all the same.
func TestEvacuatePowerLoss(t *testing.T) {
	t.Parallel()
	for kind, newPool := range evacuations {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for n, came := 0, true; came; n++ {
				r := newPool(t)
				r.vg.SetTearing(true)
				lost := r.vg.LosePower(n)
				for range 20 {
					states, err := r.b.Evacuate(t.Context(), lvm.EvacuateOptions{Empty: []string{emptied}})
					if err != nil || states[0].Out {
						break
					}
				}
				if came = lost(); !came {
					break
				}
				r.vg.Reboot()
				r.b = r.vg.Backend()
				r.out()
				r.reads("here")
				if t.Failed() {
					t.Fatalf("the power failed at step %d", n)
				}
			}
		})
	}
}

// lvm goes wrong in each way at each command.
func TestEvacuateFaultMatrix(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"pvchange", "pvmove", "vgreduce", "pvs"} {
		for _, mode := range lvmtest.Modes() {
			t.Run(fmt.Sprintf("%s %s", command, mode), func(t *testing.T) {
				t.Parallel()
				r := evacuations["linear"](t)
				r.vg.Inject(lvmtest.Fault{Command: command, Mode: mode})
				for range 20 {
					states, err := r.b.Evacuate(t.Context(), lvm.EvacuateOptions{Empty: []string{emptied}})
					if err != nil || states[0].Out {
						break
					}
				}
				if left := r.vg.Faults(); len(left) > 0 {
					t.Fatalf("it did not come to %+v", left)
				}
				r.out()
				r.reads("here")
			})
		}
	}
}

// A device that lvm knows by another name is not taken for one that has left the group.
func TestEvacuateByAnotherName(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	r.vg.SetAlias(emptied, "/dev/mapper/mpatha")
	states, err := r.b.Evacuate(t.Context(), lvm.EvacuateOptions{Empty: []string{emptied}})
	if !errors.Is(err, volume.ErrIdentity) || len(states) > 0 {
		t.Errorf("got %+v, %v", states, err)
	}
}

// Which devices the group has is not known any more while one is being emptied: pvmove would
// end, or abort, whatever it finds on the host.
func TestEvacuateNeedsItsDevices(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	r.vg.SetSlowCopy(true)
	r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})
	r.vg.SetSlowCopy(false)
	before := len(r.vg.Commands())
	devices := r.vg.Devices
	r.vg.Devices = nil
	for _, o := range []lvm.EvacuateOptions{{Empty: []string{emptied}}, {Open: []string{emptied}}} {
		if _, err := r.b.Evacuate(t.Context(), o); !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if more := r.vg.Commands()[before:]; len(more) > 0 {
		t.Errorf("it ran %q", more)
	}
	r.vg.Devices = devices
	r.out()
}

// Many volumes are moved one after the other in one call, as long as that goes fast.
func TestEvacuateManyVolumes(t *testing.T) {
	t.Parallel()
	r := evacuations["linear"](t)
	for n := 2; n < 14; n++ {
		if _, err := r.b.Create(t.Context(), spec(n, raidMiB)); err != nil {
			t.Fatal(err)
		}
	}
	r.out()
	r.reads("here")
}

// While a thin pool is moved the kernel tells of it in time.
func TestEvacuateThinPoolKeepsItsLowWaterMark(t *testing.T) {
	t.Parallel()
	r := evacuations["thin"](t)
	tend(t, r.b)
	r.vg.SetSlowCopy(true)
	if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; !s.Moving {
		t.Fatalf("got %+v", s)
	}
	before := len(r.vg.Commands())
	if state := tend(t, r.b); state.Usage.LowWaterBlocks == 0 || len(r.vg.Commands()) != before {
		t.Errorf("got %+v, after %q", state, r.vg.Commands()[before:])
	}
}

// A thin pool takes all the room there is, but for what a disk needs that is being emptied.
func TestEvacuateThinPoolThatTakesAll(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 20*raidMiB)
	r := &raid{t: t, vg: vg, b: vg.Backend()}
	r.rec = r.create(1, 6*raidMiB)
	r.write("here")
	if s := r.evacuate(lvm.EvacuateOptions{Empty: []string{emptied}})[0]; s.Waiting == "" {
		t.Fatalf("without another disk: %+v", s)
	}
	vg.AddDisk(spare, 80*raidMiB, "")
	r.join(spare)
	before := r.group().Volume("thin").SizeBytes
	if _, err := r.b.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := r.group().Volume("thin").SizeBytes; after <= before {
		t.Errorf("the pool has %d bytes, and had %d: it took none of the room that is not needed", after, before)
	}
	r.out()
	r.reads("here")
}
