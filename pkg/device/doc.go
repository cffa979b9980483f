// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package device is the backend that makes a volume of a whole disk.
//
// Which disks there are, who holds them and which of them wait to be wiped is
// kept by a Registry, an interface declared here and implemented elsewhere. This
// package decides which disk a volume gets, and does the two things that must
// never go wrong: it takes a disk only when the disk itself, opened exclusively
// and locked, proves to be the disk that was meant and blank; and it wipes a
// disk only under the same proof and with the single-use token that the release
// of its claim has minted.
//
// The package knows neither Kubernetes nor CSI.
package device
