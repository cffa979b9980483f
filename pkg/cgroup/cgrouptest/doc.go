// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgrouptest is a cgroup v2 hierarchy in memory that behaves like the kernel's
// where package cgroup relies on it: controllers are handed down from group to group,
// io.max is there only where io was, a line of it changes what it names and nothing
// else, and what loses the controller loses its limits.
package cgrouptest
