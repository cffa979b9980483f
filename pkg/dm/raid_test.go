// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"strings"
	"testing"
)

func TestRaidOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, status    string
		want            Raid
		percent         int
		wantErrContains string
	}{
		{
			"in step, of Linux 6.12", "raid1 2 AA 81920/81920 idle 0 0 -",
			Raid{Type: "raid1", Legs: 2, Health: "AA", SyncedSectors: 81920, SyncSectors: 81920, Action: RaidIdle},
			100, "",
		},
		{
			"one is gone", "raid5_ls 3 ADA 81920/81920 idle 0 0 -",
			Raid{Type: "raid5_ls", Legs: 3, Health: "ADA", DeadLegs: 1, SyncedSectors: 81920, SyncSectors: 81920, Action: RaidIdle},
			100, "",
		},
		{
			"one is written anew", "raid5_ls 3 AAa 46152/81920 recover 0 0 -",
			Raid{Type: "raid5_ls", Legs: 3, Health: "AAa", RebuildingLegs: 1, SyncedSectors: 46152, SyncSectors: 81920, Action: RaidRecover},
			56, "",
		},
		{
			"new", "raid6_zr 5 aaaaa 81919/81920 resync 0 0 -",
			Raid{Type: "raid6_zr", Legs: 5, Health: "aaaaa", RebuildingLegs: 5, SyncedSectors: 81919, SyncSectors: 81920, Action: RaidResync},
			99, "",
		},
		{
			"one was never there, of an old kernel", "raid10 4 AAA- 0/0",
			Raid{Type: "raid10", Legs: 4, Health: "AAA-", DeadLegs: 1, Action: RaidIdle},
			0, "",
		},
		{"empty", "", Raid{}, 0, "0 words"},
		{"no number", "raid1 x AA 1/1", Raid{}, 0, "invalid syntax"},
		{"a letter too few", "raid1 2 A 1/1", Raid{}, 0, "2 devices and 1 letters"},
		{"no devices", "raid1 0 A 1/1", Raid{}, 0, "0 devices"},
		{"another letter", "raid1 2 AX 1/1", Raid{}, 0, "unknown"},
		{"more than all", "raid1 2 AA 2/1", Raid{}, 0, "2 of 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := RaidOf([]Target{{Type: "raid", Status: tt.status}})
			if tt.wantErrContains != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErrContains) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err != nil || got != tt.want || got.SyncedPercent() != tt.percent {
				t.Errorf("got %+v (%d %%), %v", got, got.SyncedPercent(), err)
			}
		})
	}
	for name, bad := range map[string][]Target{
		"a linear device":         {{Type: "linear"}},
		"a device without status": nil,
	} {
		if got, err := RaidOf(bad); err == nil {
			t.Errorf("%s is taken for a raid: %+v", name, got)
		}
	}
}

func TestRaidRecovering(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]bool{
		"raid1 2 AA 81920/81920 idle 0 0 -":         false,
		"raid1 2 Aa 81920/81920 idle 0 0 -":         true, // it is about to begin
		"raid1 2 Aa 46152/81920 recover 0 0 -":      true,
		"raid1 2 Aa 46152/81920 frozen 0 0 -":       true,
		"raid1 2 Aa 46152/81920":                    true,
		"raid1 2 aa 46152/81920 resync 0 0 -":       false,
		"raid1 2 aa 0/81920 idle 0 0 -":             false,
		"raid1 2 Da 46152/81920 idle 0 0 -":         false, // there is nothing to write it from
		"raid5_ls 3 ADA 81920/81920 idle 0 0 -":     false,
		"raid6_zr 5 AAADa 46152/81920 idle 0 0 -":   true,
		"raid6_zr 5 aaaDa 46152/81920 resync 0 0 -": false,
	} {
		if r, err := parseRaid(status); err != nil || r.Recovering() != want {
			t.Errorf("%q: %v (%v)", status, r.Recovering(), err)
		}
	}
}

func FuzzRaid(f *testing.F) {
	f.Add("raid1 2 AA 81920/81920 idle 0 0 -")
	f.Add("raid10 4 AAA- 0/0")
	f.Fuzz(func(t *testing.T, status string) {
		r, err := parseRaid(status)
		if err == nil && (r.Legs < 1 || r.DeadLegs+r.RebuildingLegs > r.Legs || r.SyncedPercent() > 100) {
			t.Errorf("%q is %+v", status, r)
		}
	})
}
