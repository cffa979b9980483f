// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package btrfs

// What is handed to the kernel.
type (
	NamedArgs  = namedArgs
	NamedArgs2 = namedArgs2
	InfoArgs   = infoArgs
	RefsArgs   = refsArgs
	SearchArgs = searchArgs
	LimitArgs  = limitArgs
	CreateArgs = createArgs
	RescanArgs = rescanArgs
)

// FirstItem takes the content of an item out of what the kernel has answered.
var FirstItem = firstItem
