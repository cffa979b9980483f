// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package quota

// What is handed to the kernel.
type (
	DiskQuota  = diskQuota
	State      = quotaState
	Attributes = attributes
)
