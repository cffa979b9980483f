// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package smart

import (
	"fmt"
	"strings"
)

// Report is what a disk says of itself. A nil field was not told.
type Report struct {
	// Passed is the disk's own summary.
	Passed *bool
	// Explanation is what a SCSI disk says of why it did not pass.
	Explanation string
	// CriticalWarning are the bits of the NVMe health log (NVM Express Base
	// Specification 2.0, figure 207).
	CriticalWarning *uint8
	// PercentageUsed is how much of its expected life a flash disk has had. It may
	// exceed 100.
	PercentageUsed *int64
	// MediaErrors are blocks that an NVMe disk could not read correctly.
	MediaErrors *int64
	// ReallocatedSectors, PendingSectors and UncorrectableSectors are the attributes 5,
	// 197 and 198 of an ATA disk; ReallocatedSectors also the grown defects of a SCSI
	// one.
	ReallocatedSectors, PendingSectors, UncorrectableSectors *int64
	// BelowThreshold are the ATA attributes that foretell a failure and are at or below
	// their threshold now.
	BelowThreshold     []string
	TemperatureCelsius *int64
	PowerOnHours       *int64
}

// Level is how a disk is.
type Level int

const (
	// Unknown is a disk that tells nothing.
	Unknown Level = iota
	// Good is a disk that has nothing to complain about.
	Good
	// Worn is a disk that works and should be replaced at the next occasion.
	Worn
	// Failing is a disk that says itself that it is failing or cannot be relied on.
	Failing
)

func (l Level) String() string {
	switch l {
	case Good:
		return "Good"
	case Worn:
		return "Worn"
	case Failing:
		return "Failing"
	}
	return "Unknown"
}

// The bits of CriticalWarning.
const (
	warnSpare = 1 << iota
	warnTemperature
	warnReliability
	warnReadOnly
	warnBackup
	warnPersistentMemory
)

var failingBits = []struct {
	bit  uint8
	text string
}{
	{warnSpare, "its spare blocks are below the threshold"},
	{warnReliability, "it is unreliable after media or internal errors"},
	{warnReadOnly, "it has made itself read-only"},
	{warnBackup, "the backup of its volatile memory has failed"},
	{warnPersistentMemory, "its persistent memory region is unreliable"},
}

// Judge sums the report up: how the disk is, and why in words. The words change
// only when something is news, so a temperature is not among them.
func (r Report) Judge() (Level, string) {
	if reasons := r.failing(); len(reasons) > 0 {
		return Failing, strings.Join(reasons, "; ")
	}
	if reasons := r.worn(); len(reasons) > 0 {
		return Worn, strings.Join(reasons, "; ")
	}
	if r.Passed == nil && r.CriticalWarning == nil {
		return Unknown, "it tells nothing of its health"
	}
	return Good, "it says that it is well"
}

func (r Report) failing() (reasons []string) {
	if r.CriticalWarning != nil {
		// smartctl sums up every bit as failed, heat as well, so the bits count alone.
		for _, b := range failingBits {
			if *r.CriticalWarning&b.bit != 0 {
				reasons = append(reasons, b.text)
			}
		}
		return reasons
	}
	if r.Passed != nil && !*r.Passed {
		text := "its own check has failed"
		if r.Explanation != "" {
			text += ": " + r.Explanation
		}
		reasons = append(reasons, text)
	}
	return reasons
}

func (r Report) worn() (reasons []string) {
	if r.CriticalWarning != nil && *r.CriticalWarning&warnTemperature != 0 {
		reasons = append(reasons, "it is outside of its range of temperature")
	}
	if r.PercentageUsed != nil && *r.PercentageUsed >= 100 {
		reasons = append(reasons, "it has had the writes that it was made for")
	}
	for _, c := range []struct {
		count *int64
		text  string
	}{
		{r.MediaErrors, "blocks could not be read correctly"},
		{r.PendingSectors, "sectors wait to be replaced by spare ones"},
		{r.UncorrectableSectors, "sectors cannot be read"},
	} {
		if c.count != nil && *c.count > 0 {
			reasons = append(reasons, fmt.Sprintf("%d %s", *c.count, c.text))
		}
	}
	if len(r.BelowThreshold) > 0 {
		reasons = append(reasons, "below its threshold: "+strings.Join(r.BelowThreshold, ", "))
	}
	return reasons
}
