// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package capacity

import "time"

const (
	// settle is how long the publisher waits for more changes after the first. A volume
	// that was just made is handed out meanwhile, instead of waiting behind numbers: the
	// scheduler may be this far behind, the admission on the node never is.
	settle = time.Second
	// materialSpacing is the least time between two writes of one object when what
	// fits changes materially.
	materialSpacing = 2 * time.Second
	// minorSpacing is the same for the other changes, and minorDelay how old each must
	// be: the pods of the volumes that were just made are started first, and what is
	// given back meanwhile is never written.
	minorSpacing = 15 * time.Second
	minorDelay   = 10 * time.Second

	// materialFraction of what was published is a material change.
	materialFraction = 20 // one twentieth, 5 %
	// scarceBytes: below it every loss of room counts, for a volume of usual size may
	// not fit any more.
	scarceBytes = 10 << 30
)

// material reports whether a change decides what fits.
func material(published, now Room) bool {
	return published.None() != now.None() ||
		moved(published.FreeBytes, now.FreeBytes) || moved(published.MaxVolumeBytes, now.MaxVolumeBytes)
}

func moved(from, to int64) bool {
	if to < from && to < scarceBytes {
		return true
	}
	delta := max(from-to, to-from)
	return delta > 0 && delta >= from/materialFraction
}

// due returns when a change may be written that was first seen at a time: what decides
// what fits at once, if it is the first in a while, and later while changes follow each
// other; the rest when it has stayed. Room that came or went as a whole never waits.
func due(published, now Room, lastWrite, seen time.Time) time.Time {
	switch {
	case published.None() != now.None():
		return time.Time{}
	case material(published, now):
		return lastWrite.Add(materialSpacing)
	}
	at := lastWrite.Add(minorSpacing)
	if stayed := seen.Add(minorDelay); stayed.After(at) {
		at = stayed
	}
	return at
}
