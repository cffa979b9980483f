// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package hostpath_test

const raceDetector = false
