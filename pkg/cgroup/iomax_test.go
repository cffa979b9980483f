// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"math"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
)

func TestParseLimits(t *testing.T) {
	t.Parallel()
	device := Number{253, 3}
	tests := []struct {
		name, content string
		want          volume.Limits
		wantErr       bool
	}{
		{"nothing is limited", "", volume.Limits{}, false},
		{"another device", "253:33 rbps=1 wbps=2 riops=3 wiops=4\n3:3 rbps=max wbps=max riops=max wiops=1\n", volume.Limits{}, false},
		{
			"all four", "8:0 rbps=max wbps=max riops=max wiops=1\n253:3 rbps=1048576 wbps=2097152 riops=100 wiops=200\n",
			volume.Limits{ReadBytesPerSecond: 1048576, WriteBytesPerSecond: 2097152, ReadIOPS: 100, WriteIOPS: 200},
			false,
		},
		{"some", "253:3 rbps=max wbps=2097152 riops=max wiops=max", volume.Limits{WriteBytesPerSecond: 2097152}, false},
		{"a key of a newer kernel", "253:3 rbps=max wbps=max riops=7 wiops=max idle=1", volume.Limits{ReadIOPS: 7}, false},
		{"no number", "253:3 rbps=many wbps=max riops=max wiops=max", volume.Limits{}, true},
		{"larger than is counted here", "253:3 rbps=18446744073709551615 wbps=max riops=max wiops=max", volume.Limits{}, true},
		{"zero", "253:3 rbps=0 wbps=max riops=max wiops=max", volume.Limits{}, true},
		{"cut off", "253:3 rbps=", volume.Limits{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseLimits(tt.content, device)
			if got != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestFormatLimits(t *testing.T) {
	t.Parallel()
	for want, limits := range map[string]volume.Limits{
		"8:16 rbps=max wbps=max riops=max wiops=max":                 {},
		"8:16 rbps=1 wbps=max riops=max wiops=4294967294":            {ReadBytesPerSecond: 1, WriteIOPS: 4294967294},
		"8:16 rbps=max wbps=9223372036854775807 riops=100 wiops=max": {WriteBytesPerSecond: math.MaxInt64, ReadIOPS: 100},
	} {
		if got := formatLimits(Number{8, 16}, limits); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParseLimits(f *testing.F) {
	f.Add("253:3 rbps=1048576 wbps=max riops=100 wiops=max\n", uint32(253), uint32(3))
	f.Add("253:3 rbps=", uint32(253), uint32(3))
	f.Fuzz(func(t *testing.T, content string, major, minor uint32) {
		device := Number{major, minor}
		limits, err := parseLimits(content, device)
		if err != nil {
			return
		}
		if !limits.Valid() {
			t.Errorf("%q is taken for %+v", content, limits)
		}
		if again, err := parseLimits(formatLimits(device, limits), device); err != nil || again != limits {
			t.Errorf("%+v is read back as %+v, %v", limits, again, err)
		}
	})
}
