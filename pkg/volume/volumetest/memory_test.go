// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestMemoryConforms(t *testing.T) {
	t.Parallel()
	const volumeBytes = 3<<20 + 512
	for _, mode := range []volume.Mode{volume.ModeLVM, volume.ModeDevice, volume.ModeHostpath} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			access := []volume.Access{volume.AccessFilesystem}
			if mode != volume.ModeHostpath {
				access = append(access, volume.AccessBlock)
			}
			volumetest.Run(t, volumetest.Harness{
				Access:  access,
				CanGrow: true,
				New: func(t *testing.T) *volumetest.Place {
					m := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), Mode: mode, TotalBytes: 4 * volumeBytes})
					return &volumetest.Place{
						Backend:     m,
						VolumeBytes: volumeBytes,
						Volumes:     4,
						Reboot:      func(*testing.T) volume.Backend { m.Reboot(); return m },
						Tamper:      func(_ *testing.T, id string, _ volume.Record) { m.Tamper(id) },
						Vanish: func(t *testing.T, id string, _ volume.Record) {
							if err := m.Vanish(id); err != nil {
								t.Fatal(err)
							}
						},
						Blind: func(*testing.T) func() {
							m.Blind(errors.New("blind"))
							return func() { m.Blind(nil) }
						},
						Hold:    func(t *testing.T, loc volume.Location) func() { return m.Hold(idAt(t, m, loc)) },
						CrashAt: func(_ *testing.T, n int) func() bool { return m.CrashAt(n) },
					}
				},
			})
		})
	}
}

// idAt returns which volume is there.
func idAt(t *testing.T, m *volumetest.Memory, loc volume.Location) string {
	t.Helper()
	found, err := m.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if there, err := m.Locate(t.Context(), f.ID, f.Record); err == nil && there.Device == loc.Device && there.Directory == loc.Directory {
			return f.ID
		}
	}
	t.Fatalf("no volume is at %+v", loc)
	return ""
}

// A hook may fail a call after its work, which is what an unknown outcome is.
func TestMemoryHook(t *testing.T) {
	t.Parallel()
	m := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), TotalBytes: 1 << 20})
	lost := errors.New("the answer was lost")
	var steps []volumetest.Step
	m.SetHook(func(_ context.Context, s volumetest.Step) error {
		steps = append(steps, s)
		if s.Done {
			return lost
		}
		return nil
	})
	spec := volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: 1 << 20, Access: volume.AccessBlock}
	if _, err := m.Create(t.Context(), spec); !errors.Is(err, lost) {
		t.Fatalf("Create = %v, want the hook's error", err)
	}
	if len(steps) != 2 || steps[0].Done || !steps[1].Done || steps[1].Op != "Create" || steps[1].ID != spec.ID {
		t.Fatalf("steps = %+v", steps)
	}
	m.SetHook(nil)
	if found, err := m.List(t.Context()); err != nil || len(found) != 1 {
		t.Fatalf("List = %v, %v, want the volume that was made", found, err)
	}
	m.SetHook(func(context.Context, volumetest.Step) error { return lost })
	if err := m.Delete(t.Context(), spec.ID, nil, volume.WipeZero); !errors.Is(err, lost) {
		t.Fatalf("Delete = %v, want the hook's error", err)
	}
	m.SetHook(nil)
	if found, err := m.List(t.Context()); err != nil || len(found) != 1 {
		t.Fatalf("List = %v, %v, want the volume that was not deleted", found, err)
	}
}
