// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package luks encrypts block devices with LUKS2: it drives the host's cryptsetup, as
// package lvm drives lvm, and reads headers by itself.
//
// A key reaches cryptsetup by its standard input and in no other way: not in an argument,
// an environment, a file or a log.
//
// A header is known by its UUID, which the caller chooses before it is made, and an open
// device by its name and its device-mapper UUID, which holds the UUID of the header.
//
// The key of a slot is derived by argon2id with 32 MiB of memory and 4 passes in one lane,
// whatever the machine is that formats: what a fast one would take for a second could take a
// small one minutes. One derivation runs at a time, so that a node that starts many pods
// at once needs that memory once.
//
// cryptsetup 2.1 or newer is needed.
//
// Sources: the LUKS2 on-disk format specification 1.1.1
// (https://gitlab.com/cryptsetup/LUKS2-docs), cryptsetup(8) and the manual pages of its
// actions.
package luks
