// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Mirror is the status of a device that writes everything to several others and copies
// from the first to the rest what was there before (the target "mirror", drivers/md/dm-raid1.c).
// lvm moves volumes by it.
type Mirror struct {
	// Legs is how many devices it is made of, and DeadLegs how many of them have failed.
	Legs, DeadLegs int
	// SyncedRegions of Regions are the same on all legs.
	SyncedRegions, Regions uint64
}

// Synced reports whether all legs are the same.
func (m Mirror) Synced() bool {
	return m.Regions > 0 && m.SyncedRegions == m.Regions && m.DeadLegs == 0
}

// SyncedPercent is how much is the same, rounded down.
func (m Mirror) SyncedPercent() int {
	if m.Regions == 0 {
		return 0
	}
	return int(m.SyncedRegions * 100 / m.Regions) // regions are far fewer than 2^57
}

// MirrorOf reads the status of a device that is made of mirror targets; it adds them up.
func MirrorOf(status []Target) (Mirror, error) {
	if len(status) == 0 {
		return Mirror{}, errors.New("the device is no mirror: it has no table")
	}
	var all Mirror
	for _, t := range status {
		if t.Type != "mirror" {
			return Mirror{}, fmt.Errorf("the device is no mirror: it has a target %s", t.Type)
		}
		m, err := parseMirror(t.Status)
		if err != nil {
			return Mirror{}, fmt.Errorf("the status %q of a mirror: %w", t.Status, err)
		}
		all.Legs, all.DeadLegs = max(all.Legs, m.Legs), max(all.DeadLegs, m.DeadLegs)
		all.SyncedRegions += m.SyncedRegions
		all.Regions += m.Regions
	}
	return all, nil
}

// parseMirror reads what mirror_status writes: the number of devices, each of them, how
// many regions are in step, the number 1, a letter for each device, and what the log says.
func parseMirror(status string) (Mirror, error) {
	words := strings.Fields(status)
	if len(words) == 0 {
		return Mirror{}, errors.New("it is empty")
	}
	legs, err := strconv.Atoi(words[0])
	if err != nil {
		return Mirror{}, err
	}
	const beside = 4 // the number, the fraction, the 1 and the letters
	if legs < 1 || legs > len(words) || len(words) < legs+beside {
		return Mirror{}, fmt.Errorf("%d devices in %d words", legs, len(words))
	}
	m := Mirror{Legs: legs}
	if m.SyncedRegions, m.Regions, err = fraction(words[legs+1]); err != nil {
		return Mirror{}, err
	}
	letters := words[legs+3]
	if len(letters) != legs {
		return Mirror{}, fmt.Errorf("%d devices and the letters %q", legs, letters)
	}
	for _, letter := range letters {
		if letter != 'A' { // D, F, S, R, U: a kind of failure each
			m.DeadLegs++
		}
	}
	return m, nil
}
