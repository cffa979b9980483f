// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"fmt"
	"strconv"
	"strings"
)

// Raid is the status of a device that keeps its data on several others (the target
// "raid", Documentation/admin-guide/device-mapper/dm-raid.rst).
type Raid struct {
	// Type as the kernel calls it ("raid1", "raid5_ls").
	Type string
	// Legs is how many devices it is made of, DeadLegs how many of them have failed or
	// are not there, and RebuildingLegs how many are alive and not in step yet.
	Legs, DeadLegs, RebuildingLegs int
	// Health has a letter for each leg: LegInStep, LegRebuilding, LegDead or LegAbsent.
	Health string
	// SyncedSectors of SyncSectors are in step.
	SyncedSectors, SyncSectors uint64
	// Action is what the kernel does about it now: RaidIdle, RaidRecover, RaidResync, or a
	// word that is not known here.
	Action string
}

// What the kernel may be doing (Raid.Action).
const (
	RaidIdle    = "idle"
	RaidRecover = "recover" // writes legs anew, from the others
	RaidResync  = "resync"  // brings the legs in step after they were made, or after a crash
)

// The letters of Raid.Health.
const (
	LegInStep     = 'A'
	LegRebuilding = 'a'
	LegDead       = 'D'
	LegAbsent     = '-'
)

// RaidOf reads the status of a device that is one raid target.
func RaidOf(status []Target) (Raid, error) {
	if len(status) != 1 || status[0].Type != "raid" {
		return Raid{}, fmt.Errorf("the device is no raid: it has %d targets (%+v)", len(status), status)
	}
	r, err := parseRaid(status[0].Status)
	if err != nil {
		return Raid{}, fmt.Errorf("the status %q of a raid: %w", status[0].Status, err)
	}
	return r, nil
}

// parseRaid reads what raid_status in drivers/md/dm-raid.c writes: type, number of
// devices, a letter for each, how much is in step, and since version 1.5 of the target
// what it does.
func parseRaid(status string) (Raid, error) {
	words := strings.Fields(status)
	const least = 4
	if len(words) < least {
		return Raid{}, fmt.Errorf("%d words, %d are the least", len(words), least)
	}
	r := Raid{Type: words[0], Action: RaidIdle}
	legs, err := strconv.Atoi(words[1])
	if err != nil {
		return Raid{}, err
	}
	if legs < 1 || len(words[2]) != legs {
		return Raid{}, fmt.Errorf("%d devices and %d letters", legs, len(words[2]))
	}
	r.Legs, r.Health = legs, words[2]
	for _, letter := range words[2] {
		switch letter {
		case LegInStep:
		case LegRebuilding:
			r.RebuildingLegs++
		case LegDead, LegAbsent:
			r.DeadLegs++
		default:
			return Raid{}, fmt.Errorf("the letter %q of a device is unknown", letter)
		}
	}
	if r.SyncedSectors, r.SyncSectors, err = fraction(words[3]); err != nil {
		return Raid{}, err
	}
	if len(words) > least {
		r.Action = words[least]
	}
	return r, nil
}

// Recovering reports whether legs are written anew from others that have all. The kernel says
// that it is idle before it has begun, and when it was kept from going on; while it brings
// all legs in step with each other, it says of all that they are not.
func (r Raid) Recovering() bool {
	begins := r.Action != RaidResync && r.RebuildingLegs+r.DeadLegs < r.Legs
	return r.RebuildingLegs > 0 && (r.Action == RaidRecover || begins)
}

// SyncedPercent is how much is in step, rounded down, so that only what is whole shows
// 100.
func (r Raid) SyncedPercent() int {
	if r.SyncSectors == 0 {
		return 0
	}
	// Sectors are far fewer than 2^57.
	return int(r.SyncedSectors * 100 / r.SyncSectors)
}
