// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package health finds out how the disks of a node are: what they say themselves
// (pkg/smart) and how many commands they have failed (sysfs). It asks each disk when
// it comes and then every half hour, and tells discovery, which decides what follows.
package health
