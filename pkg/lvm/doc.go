// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lvm makes volumes of LVM's logical volumes: one volume group is one
// pool.
package lvm
