// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import "context"

// LeftOver names a volume that is there and that no object stands for, twice over: by the ID
// that it lies under, and by the Identity that Examine gives. Both must be true.
type LeftOver struct {
	ID, Identity string
}

// LeftOverTaker is a Backend that can give a volume that is there another ID: a left-over becomes
// the volume of another object, and nothing in it is read, copied or changed.
type LeftOverTaker interface {
	Examiner

	// TakeOver makes the left-over the volume of Spec.ID and returns its record; from then on
	// there is none of the old ID. It is as large as it was: of Spec only the ID, the names, the
	// access and Limited count. Repeated, also after a call that was killed, it returns the same.
	//
	// sure is called as long as the left-over has its old ID, before anything is changed. Its
	// error is the call's, and nothing was changed then.
	//
	// ErrNotAdoptable: there is none of that ID, or it has another identity, is in use (ErrInUse,
	// too), or has snapshots, or a copy is being made of it. It was not touched.
	TakeOver(ctx context.Context, spec Spec, from LeftOver, sure func(context.Context) error) (Record, error)

	// LetGo ends a TakeOver to that ID, which may have been killed, and removes nothing of what
	// the volume holds: it is a left-over again, of the old ID, or of the new one where it had
	// got that. It returns nil where nothing had begun.
	LetGo(ctx context.Context, id string) error
}
