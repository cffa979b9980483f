// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// skipUnderRace leaves out what differs from another test by the commands of lvm alone. make
// test runs it once more without the race detector.
func skipUnderRace(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("it has no other goroutines than the same in another layout, and runs without the race detector")
	}
}

// The suite of all backends, over the fake of lvm.
func TestConformance(t *testing.T) {
	t.Parallel()
	conform(t, false, true, lvmtest.NewVG)
}

// The same where each loss of power leaves half of the metadata behind that was not
// flushed.
func TestConformanceTorn(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	conform(t, true, true, lvmtest.NewVG)
}

// The same with volumes that lie in stripes on two disks.
func TestConformanceStriped(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	conform(t, false, true, func(t testing.TB, sizeBytes int64) *lvmtest.VG { return lvmtest.NewStripedVG(t, 2, sizeBytes) })
}

// The same with volumes of each redundant layout.
func TestConformanceRaid(t *testing.T) {
	t.Parallel()
	for layout, disks := range map[lvm.Layout]int{lvm.LayoutMirror: 2, lvm.LayoutRAID5: 3, lvm.LayoutRAID6: 5, lvm.LayoutRAID10: 4} {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			if layout != lvm.LayoutMirror {
				skipUnderRace(t)
			}
			conform(t, false, false, func(t testing.TB, sizeBytes int64) *lvmtest.VG { return raidVG(t, layout, disks, sizeBytes) })
		})
	}
}

// The same where each loss of power leaves half of the metadata behind.
func TestConformanceRaidTorn(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	conform(t, true, false, func(t testing.TB, sizeBytes int64) *lvmtest.VG { return raidVG(t, lvm.LayoutMirror, 2, sizeBytes) })
}

// raidVG has room for volumes of two extents each that are sizeBytes together.
func raidVG(t testing.TB, layout lvm.Layout, disks int, sizeBytes int64) *lvmtest.VG {
	data := map[lvm.Layout]int64{lvm.LayoutMirror: 1, lvm.LayoutRAID5: 2, lvm.LayoutRAID6: 3, lvm.LayoutRAID10: 2}[layout]
	volumes := sizeBytes / (2 * lvmtest.ExtentBytes)
	share := (2 + data - 1) / data // of two extents
	return lvmtest.NewRaidVG(t, layout, disks, volumes*(share+1)*lvmtest.ExtentBytes)
}

// The same with volumes of a thin pool.
func TestConformanceThin(t *testing.T) {
	t.Parallel()
	conform(t, false, true, lvmtest.NewThinVG)
}

// The same with thin volumes over each layout of their pool.
func TestConformanceThinOverLayouts(t *testing.T) {
	t.Parallel()
	for layout, disks := range thinLayouts {
		t.Run(string(layout), func(t *testing.T) {
			skipUnderRace(t)
			t.Parallel()
			conform(t, false, true, func(t testing.TB, sizeBytes int64) *lvmtest.VG {
				return lvmtest.NewThinVGOf(t, layout, disks, sizeBytes)
			})
		})
	}
}

// The same with volumes of a thin pool that somebody else has made.
func TestConformanceAdoptedThin(t *testing.T) {
	t.Parallel()
	for name, torn := range map[string]bool{"whole": false, "torn": true} {
		t.Run(name, func(t *testing.T) {
			skipUnderRace(t)
			t.Parallel()
			conform(t, torn, true, func(t testing.TB, sizeBytes int64) *lvmtest.VG {
				t.Helper()
				const books = 3
				extents := int(sizeBytes/lvmtest.ExtentBytes) + books
				vg := lvmtest.NewVG(t, 2*sizeBytes+64*lvmtest.ExtentBytes)
				vg.Edit(vg.Name, func(e *lvmtest.Editor) {
					vg.ThinPool = &lvm.ThinPoolID{Name: "tank", UUID: e.AddThinPool("tank", extents, "raid,raid1")}
					e.AddThin("tank", "books", books, "")
				})
				vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
				return vg
			})
		})
	}
}

var thinLayouts = map[lvm.Layout]int{lvm.LayoutStriped: 2, lvm.LayoutMirror: 2, lvm.LayoutRAID5: 3, lvm.LayoutRAID6: 5, lvm.LayoutRAID10: 4}

// The same where each loss of power may tear the metadata.
func TestConformanceThinTorn(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	conform(t, true, true, lvmtest.NewThinVG)
}

func conform(t *testing.T, torn, snapshots bool, newVG func(testing.TB, int64) *lvmtest.VG) {
	t.Helper()
	const volumeBytes = 2 * lvmtest.ExtentBytes
	thin, volumes := newVG(t, 8*volumeBytes).Thin != nil, 4
	if snapshots && !thin {
		volumes = 6 // a clone is copied from a snapshot
	}
	volumetest.Run(t, volumetest.Harness{
		Access:  []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
		CanGrow: true, CanSnapshot: snapshots, CanSnapshotGroup: thin,
		New: func(t *testing.T) *volumetest.Place {
			vg := newVG(t, int64(volumes)*volumeBytes)
			vg.SetTearing(torn)
			vg.Snapshots = &lvm.SnapshotPolicy{InitialPercent: 100, ThresholdPercent: 70, ExtendPercent: 20}
			backend := vg.Backend().CompareFollowed()
			return &volumetest.Place{
				Backend: backend,
				// Where it fails, what is left shows.
				Settle:      func(t *testing.T) { _ = backend.Sweep(t.Context()) },
				VolumeBytes: volumeBytes,
				Volumes:     volumes,
				Reboot: func(*testing.T) volume.Backend {
					vg.Reboot()
					if vg.ThinPool != nil {
						vg.Activate(vg.Name, vg.ThinPool.Name)
					}
					backend = vg.Backend().CompareFollowed()
					return backend
				},
				Tamper: func(_ *testing.T, id string, _ volume.Record) {
					vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Replace(id) })
				},
				Vanish: func(_ *testing.T, id string, _ volume.Record) {
					vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Remove(id) })
				},
				Blind: func(*testing.T) func() {
					vg.SetBlind(true)
					return func() { vg.SetBlind(false) }
				},
				Hold:       func(_ *testing.T, loc volume.Location) func() { return vg.Hold(loc.Device) },
				CrashAt:    func(_ *testing.T, n int) func() bool { return vg.LosePower(n) },
				LoseCaches: func(*testing.T) { vg.LoseCaches() },
			}
		},
	})
}
