// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs

// What is handed to the kernel.
type (
	NamedArgs  = namedArgs
	NamedArgs2 = namedArgs2
	InfoArgs   = infoArgs
	RefsArgs   = refsArgs
)
