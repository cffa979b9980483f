// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build race

package lvm_test

// raceDetector slows everything down many times. What another layout adds to what was run with
// the first one are no other goroutines, so that it runs without.
const raceDetector = true
