// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
)

// The samples are of Linux 6.12.
func TestSnapshotOf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status  string
		want    dm.Snapshot
		percent int
		wrong   bool
	}{
		{status: "24/40960 16", want: dm.Snapshot{UsedSectors: 24, TotalSectors: 40960, MetadataSectors: 16}, percent: 1},
		{status: "41136/90112 176", want: dm.Snapshot{UsedSectors: 41136, TotalSectors: 90112, MetadataSectors: 176}, percent: 46},
		{status: "Invalid", want: dm.Snapshot{Lost: true}, percent: 100},
		{status: "Overflow", want: dm.Snapshot{Lost: true}, percent: 100},
		{status: "Unknown", wrong: true},
		{status: "", wrong: true},
		{status: "9/8 1", wrong: true},
		{status: "8/9 x", wrong: true},
	} {
		got, err := dm.SnapshotOf([]dm.Target{{Type: "snapshot", Status: tc.status}})
		if (err != nil) != tc.wrong || got != tc.want && !tc.wrong || !tc.wrong && got.UsedPercent() != tc.percent {
			t.Errorf("%q is %+v, %d %% (%v)", tc.status, got, got.UsedPercent(), err)
		}
	}
	if _, err := dm.SnapshotOf([]dm.Target{{Type: "linear"}}); err == nil {
		t.Error("a linear device is taken for a snapshot")
	}
}
