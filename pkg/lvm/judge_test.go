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
		before, want, parted    string
	}{
		"in step":                              {"", "AA", dm.RaidIdle, "", "", ""},
		"in step again":                        {"", "AA", dm.RaidIdle, "b", "", ""},
		"one is gone":                          {"b", "AD", dm.RaidIdle, "", "b", ""},
		"one fails":                            {"", "AD", dm.RaidIdle, "", "b", ""},
		"new":                                  {"", "aa", dm.RaidResync, "", "", ""},
		"a new leg":                            {"", "Aa", dm.RaidRecover, "", "b", ""},
		"a new leg that is not written to yet": {"", "Aa", dm.RaidIdle, "", "b", ""},
		"what it is written from goes":         {"a", "Da", dm.RaidIdle, "b", "b", ""},
		"what it is written from goes, and comes":      {"", "Aa", dm.RaidIdle, "b", "b", ""},
		"written anew unseen, and the other one fails": {"", "DA", dm.RaidIdle, "b", "b", "a"},
		"written anew unseen, and the other one goes":  {"a", "DA", dm.RaidIdle, "b", "b", "a"},
		"the last one goes, and is not failed":         {"a", "AA", dm.RaidIdle, "b", "b", ""},
	} {
		status := dm.Raid{Legs: 2, Health: tt.health, Action: tt.action, RebuildingLegs: strings.Count(tt.health, "a"), DeadLegs: strings.Count(tt.health, "D")}
		behind := map[string]bool{}
		if tt.before != "" {
			behind[tt.before] = true
		}
		if parted := strings.Join(mirrored(tt.missing).judgeBehind(status, behind), ","); parted != tt.parted {
			t.Errorf("%s: not to be told of %q", name, parted)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(behind)), ","); got != tt.want {
			t.Errorf("%s: behind are %q", name, got)
		}
	}
}

// The images of a raid10 that hold the same are told by their order alone.
func TestOldOfUnknownOrder(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		order           []string
		missing, behind []string
		old             bool
	}{
		"one of each pair":                    {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1"}, []string{"3"}, false},
		"both of a pair":                      {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1"}, []string{"4"}, true},
		"both of a pair, and another is gone": {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"2"}, []string{"1", "4"}, true},
		"both of a pair, and all are there":   {[]string{"v_rimage_4", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, nil, []string{"1", "4"}, false},
		"a pair, and the order unknown":       {[]string{"v_rimage_9", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1"}, []string{"4"}, true},
		"one, and the order unknown":          {[]string{"v_rimage_9", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, nil, []string{"1"}, false},
		"one that is gone, the order unknown": {[]string{"v_rimage_9", "v_rimage_1", "v_rimage_2", "v_rimage_3"}, []string{"1"}, []string{"1"}, false},
	} {
		lv := &LogicalVolume{Name: "v", UUID: "v", Layout: []string{"raid", "raid10"}, onVolumes: tt.order}
		for _, number := range []string{"1", "2", "3", "4"} {
			lv.Legs = append(lv.Legs, Leg{Name: "v_rimage_" + number, UUID: number, Missing: slices.Contains(tt.missing, number)})
		}
		g := &Group{behind: &atomic.Pointer[[]string]{}}
		g.behind.Store(&tt.behind)
		if why := g.old(lv); (why != "") != tt.old {
			t.Errorf("%s: %q", name, why)
		}
	}
}
