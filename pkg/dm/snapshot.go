// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Snapshot is the status of a copy-on-write snapshot (the target "snapshot",
// Documentation/admin-guide/device-mapper/snapshot.rst).
type Snapshot struct {
	// UsedSectors of TotalSectors of its area are taken, MetadataSectors of them by the table
	// of what is where. All are 0 for one that is lost.
	UsedSectors, TotalSectors, MetadataSectors uint64
	// Lost: its area was full, or could not be written. It cannot be read any more.
	Lost bool
}

// UsedPercent is how much of the area is taken, rounded up; 100 for one that is lost.
func (s Snapshot) UsedPercent() int {
	if s.Lost {
		return 100
	}
	return percent(s.UsedSectors, s.TotalSectors)
}

// SnapshotOf reads the status of a device that is one copy-on-write snapshot.
func SnapshotOf(status []Target) (Snapshot, error) {
	if len(status) != 1 || status[0].Type != "snapshot" {
		return Snapshot{}, fmt.Errorf("the device is no snapshot: it has %d targets (%+v)", len(status), status)
	}
	s, err := parseSnapshot(status[0].Status)
	if err != nil {
		return Snapshot{}, fmt.Errorf("the status %q of a snapshot: %w", status[0].Status, err)
	}
	return s, nil
}

// parseSnapshot reads what snapshot_status in drivers/md/dm-snap.c writes.
func parseSnapshot(status string) (s Snapshot, err error) {
	switch status {
	case "Invalid", "Overflow", "Merge failed":
		return Snapshot{Lost: true}, nil
	}
	words := strings.Fields(status)
	const all = 2
	if len(words) != all {
		return Snapshot{}, fmt.Errorf("%d words, and not %d", len(words), all)
	}
	var errs [2]error
	s.UsedSectors, s.TotalSectors, errs[0] = fraction(words[0])
	s.MetadataSectors, errs[1] = strconv.ParseUint(words[1], 10, 64)
	return s, errors.Join(errs[:]...)
}
