// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package volumetest holds the conformance suite of volume.Backend, and Memory, a
// stateful fake backend that passes it.
//
// A backend's own test package calls Run with a Harness. Its New makes an empty
// place of storage and a backend over it; the hooks of the Place let the suite
// do what the world does to storage: reboot, tamper, unplug, hold a volume open,
// refuse to answer, and kill the process at any step. A hook that a backend
// cannot offer stays nil, and the tests that need it are skipped with that
// reason.
//
//	func TestConformance(t *testing.T) {
//		volumetest.Run(t, volumetest.Harness{
//			Access:  []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
//			CanGrow: true,
//			New: func(t *testing.T) *volumetest.Place {
//				vg := newFakeVG(t, 64<<20)           // state that outlives the backend
//				return &volumetest.Place{
//					Backend:     lvm.New(…vg…),
//					VolumeBytes: 16 << 20,
//					Volumes:     4,
//					Reboot:      func(t *testing.T) volume.Backend { vg.deactivateAll(); return lvm.New(…vg…) },
//					CrashAt:     vg.crashAt, // one step before and one after the effect of every command
//				}
//			},
//		})
//	}
package volumetest
