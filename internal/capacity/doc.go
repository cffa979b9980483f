// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package capacity tells the scheduler how much room this node has: one
// CSIStorageCapacity object per StorageClass of ours, written by the node's agent
// from the same function that admits a volume (I8).
//
// The scheduler reads these objects for every pod and node it looks at, and each
// write wakes every scheduler and autoscaler. So a change that decides what fits is
// published at once, the small change of one more volume is put together with the
// next ones, and a node without room has no object at all.
package capacity
