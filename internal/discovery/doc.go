// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package discovery decides which disks of a node may be used, says why the
// others may not, keeps the node's BlockDevice objects, and hands disks out.
//
// It looks and never writes: not one byte goes to a disk because discovery has
// seen it. The facts come from pkg/block, the operator's wishes from the ConfigMap
// berth-config, what was promised from the BlockDevice objects. A disk that
// cannot be understood is not usable, and an object is kept when its disk is gone.
package discovery
