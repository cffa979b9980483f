// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "context"

// Problem is something that is wrong with a volume that can be located.
type Problem struct {
	// Inaccessible: it cannot be read or written. Otherwise it goes on for now.
	Inaccessible bool
	// Reason in one word, Message for people.
	Reason, Message string
}

// HealthReporter is a Backend that can tell more of a volume than whether it is there.
type HealthReporter interface {
	// Problems returns what is wrong with a volume of that record, as the kernel says it
	// right now; nothing for one that nobody has activated. It starts no program as long
	// as nobody else changes the place.
	Problems(ctx context.Context, id string, rec Record) ([]Problem, error)
}
