// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// The suite of all backends, over the fake of lvm.
func TestConformance(t *testing.T) {
	t.Parallel()
	conform(t, false)
}

// The same where each loss of power leaves half of the metadata behind that was not
// flushed.
func TestConformanceTorn(t *testing.T) {
	t.Parallel()
	conform(t, true)
}

func conform(t *testing.T, torn bool) {
	t.Helper()
	const volumeBytes, volumes = 2 * lvmtest.ExtentBytes, 4
	volumetest.Run(t, volumetest.Harness{
		Access:  []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
		CanGrow: true,
		New: func(t *testing.T) *volumetest.Place {
			vg := lvmtest.NewVG(t, volumes*volumeBytes)
			vg.SetTearing(torn)
			return &volumetest.Place{
				Backend:     vg.Backend(),
				VolumeBytes: volumeBytes,
				Volumes:     volumes,
				Reboot: func(*testing.T) volume.Backend {
					vg.Reboot()
					return vg.Backend()
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
