// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build race

package hostpath_test

// raceDetector slows everything down many times. What the filesystem can do besides adds no
// other goroutines to what was run without, so that the conformance tests of most run without it.
const raceDetector = true
