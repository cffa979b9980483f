// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

// pace decides when the next copy of something that changes is made.
type pace struct {
	// settle is how long a change waits for others, patience how long the first of them
	// waits at most, least how long after the copy before, and every when there is a copy
	// also without a change; 0 is never.
	settle, patience, least, every time.Duration

	wanted, kept            uint64
	known, copied           bool
	firstChange, lastChange time.Time
	// at is when the last copy was made or failed.
	at time.Time
	// notBefore is set after a failure.
	notBefore time.Time
}

// see notes the generation that there is now.
func (p *pace) see(generation uint64, now time.Time) {
	if p.known && p.wanted == generation {
		return
	}
	if !p.changed() {
		p.firstChange = now
	}
	p.wanted, p.known, p.lastChange = generation, true, now
}

func (p *pace) changed() bool { return p.known && (!p.copied || p.wanted != p.kept) }

// due returns when the next copy is made; ok is false when none is.
func (p *pace) due() (when time.Time, ok bool) {
	switch {
	case !p.known:
		return time.Time{}, false
	case p.changed():
		when = p.lastChange.Add(p.settle)
		if latest := p.firstChange.Add(p.patience); when.After(latest) {
			when = latest
		}
		if !p.at.IsZero() && when.Before(p.at.Add(p.least)) {
			when = p.at.Add(p.least)
		}
	case p.every > 0:
		when = p.at.Add(p.every)
	default:
		return time.Time{}, false
	}
	if when.Before(p.notBefore) {
		when = p.notBefore
	}
	return when, true
}

// isDue reports whether a copy is due.
func (p *pace) isDue(now time.Time) bool {
	when, ok := p.due()
	return ok && !now.Before(when)
}

// done notes a copy of a generation.
func (p *pace) done(generation uint64, now time.Time) {
	p.kept, p.copied, p.at, p.notBefore = generation, true, now, time.Time{}
	if p.changed() {
		p.firstChange = now
	}
}

// failed has the next attempt wait.
func (p *pace) failed(now time.Time, wait time.Duration) { p.at, p.notBefore = now, now.Add(wait) }
