// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package block knows facts about block devices: what the kernel shows in sysfs,
// what udev noted, which device is which (identity), who uses it, what is on it,
// and how to lock, erase and verify it. It holds no policy and knows nothing of
// Kubernetes: which disk may be used is decided in internal/discovery.
//
// Everything but Zero, Discard and Wipe opens devices read-only. Those three take
// a file that the caller opened with OpenExclusive, so that no path of this
// package can write to a disk merely because it was seen.
package block
