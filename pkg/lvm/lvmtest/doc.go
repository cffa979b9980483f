// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lvmtest is a stateful fake of a host with lvm: disks with bytes, volume
// groups, logical volumes and their device nodes. It takes the command lines that
// package lvm writes, refuses any that it does not know, and answers with reports
// in lvm's own form.
//
// It can be told to fail, to hang, to lie, to die before, within and after the work of
// each command, and to lose its power. NewVG makes a backend over it for tests
// that need a volume.Backend without root.
package lvmtest
