// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package volume is the contract of a storage backend: the values that go in and
// out, the interface that hostpath, device and LVM mode implement, and the
// sentinel errors that everything above them understands.
//
// The package knows neither Kubernetes nor CSI. Its conformance suite,
// volumetest, runs the same tests against every backend.
package volume
