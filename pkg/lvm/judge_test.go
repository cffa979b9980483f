// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
)

// mirrored is a mirror with the images a and b.
func mirrored(missing string) *LogicalVolume {
	lv := &LogicalVolume{Name: "v", UUID: "v", Layout: []string{"raid", "raid1"}, onVolumes: []string{"v_rimage_0", "v_rimage_1"}}
	for i, uuid := range []string{"a", "b"} {
		lv.Legs = append(lv.Legs, Leg{Name: lv.onVolumes[i], UUID: uuid, Missing: uuid == missing})
	}
	return lv
}

func TestJudgeBehind(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		missing, health, action string
		before, want            string
	}{
		"in step":                              {"", "AA", dm.RaidIdle, "", ""},
		"in step again":                        {"", "AA", dm.RaidIdle, "b", ""},
		"one is gone":                          {"b", "AD", dm.RaidIdle, "", "b"},
		"one fails":                            {"", "AD", dm.RaidIdle, "", "b"},
		"new":                                  {"", "aa", dm.RaidResync, "", ""},
		"a new leg":                            {"", "Aa", dm.RaidRecover, "", "b"},
		"a new leg that is not written to yet": {"", "Aa", dm.RaidIdle, "", "b"},
		"what it is written from goes":         {"a", "Da", dm.RaidIdle, "b", "b"},
		"what it is written from goes, and comes": {"", "Aa", dm.RaidIdle, "b", "b"},
	} {
		status := dm.Raid{Legs: 2, Health: tt.health, Action: tt.action, RebuildingLegs: strings.Count(tt.health, "a"), DeadLegs: strings.Count(tt.health, "D")}
		behind := map[string]bool{}
		if tt.before != "" {
			behind[tt.before] = true
		}
		mirrored(tt.missing).judgeBehind(status, behind)
		if got := strings.Join(slices.Sorted(maps.Keys(behind)), ","); got != tt.want {
			t.Errorf("%s: behind are %q", name, got)
		}
	}
}

// The images of a raid10 that hold the same are told by their order alone.
func TestOldOfUnknownOrder(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		order  []string
		behind []string
		old    bool
	}{
		"one of each pair":              {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1", "3"}, false},
		"both of a pair":                {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1", "4"}, true},
		"a pair, and the order unknown": {[]string{"v_rimage_9", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1", "4"}, true},
		"one, and the order unknown":    {[]string{"v_rimage_9", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1"}, false},
	} {
		lv := &LogicalVolume{Name: "v", UUID: "v", Layout: []string{"raid", "raid10"}, onVolumes: tt.order}
		for _, number := range []string{"1", "2", "3", "4"} {
			lv.Legs = append(lv.Legs, Leg{Name: "v_rimage_" + number, UUID: number})
		}
		g := &Group{behind: &atomic.Pointer[[]string]{}}
		g.behind.Store(&tt.behind)
		if why := g.old(lv); (why != "") != tt.old {
			t.Errorf("%s: %q", name, why)
		}
	}
}
