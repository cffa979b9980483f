// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"strings"
	"testing"
)

func TestMirrorOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name            string
		status          []string
		want            Mirror
		synced          bool
		percent         int
		wantErrContains string
	}{
		{"begun, of Linux 6.12", []string{"2 253:2 253:3 3/100 1 AA 1 core"}, Mirror{2, 0, 3, 100}, false, 3, ""},
		{"the same", []string{"2 253:2 253:3 100/100 1 AA 1 core"}, Mirror{2, 0, 100, 100}, true, 100, ""},
		{"one has failed", []string{"2 253:2 253:3 100/100 1 AD 1 core"}, Mirror{2, 1, 100, 100}, false, 100, ""},
		{"in two pieces", []string{"2 253:2 253:3 50/50 1 AA 1 core", "2 253:2 253:4 49/50 1 SA 1 core"}, Mirror{2, 1, 99, 100}, false, 99, ""},
		{"without regions", []string{"1 253:2 0/0 1 A 1 core"}, Mirror{1, 0, 0, 0}, false, 0, ""},
		{"empty", []string{""}, Mirror{}, false, 0, "empty"},
		{"no table", nil, Mirror{}, false, 0, "no table"},
		{"no number", []string{"x 253:2"}, Mirror{}, false, 0, "invalid syntax"},
		{"too short", []string{"2 253:2 253:3 3/100 1"}, Mirror{}, false, 0, "2 devices in 5 words"},
		{"none", []string{"0 3/100 1 AA 1 core"}, Mirror{}, false, 0, "0 devices"},
		{"a letter too few", []string{"2 253:2 253:3 3/100 1 A 1 core"}, Mirror{}, false, 0, "letters"},
		{"more than all", []string{"2 253:2 253:3 101/100 1 AA 1 core"}, Mirror{}, false, 0, "101 of 100"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var targets []Target
			for _, status := range tt.status {
				targets = append(targets, Target{Type: "mirror", Status: status})
			}
			got, err := MirrorOf(targets)
			if tt.wantErrContains != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErrContains) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err != nil || got != tt.want || got.Synced() != tt.synced || got.SyncedPercent() != tt.percent {
				t.Errorf("got %+v, synced %v, %d %%, %v", got, got.Synced(), got.SyncedPercent(), err)
			}
		})
	}
	if got, err := MirrorOf([]Target{{Type: "linear"}}); err == nil {
		t.Errorf("a linear device is taken for a mirror: %+v", got)
	}
}

func FuzzMirror(f *testing.F) {
	f.Add("2 253:2 253:3 3/100 1 AA 1 core")
	f.Add("1 253:2 0/0 1 D 1 core")
	f.Fuzz(func(t *testing.T, status string) {
		m, err := parseMirror(status)
		if err == nil && (m.Legs < 1 || m.DeadLegs > m.Legs || m.SyncedPercent() > 100) {
			t.Errorf("%q is %+v", status, m)
		}
	})
}
