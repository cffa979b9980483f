// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestSumBtrfsErrors(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"": 0,
		"write_errs 0\nread_errs 3\nflush_errs 0\ncorruption_errs 4\ngeneration_errs 0\n": 7,
		"no count\n": -1,
		"alone\n":    -1,
	} {
		got, err := sumBtrfsErrors(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// A mount of which nobody knows the disk is never taken for one of another disk (I4).
func TestBtrfsNamesDoesNotGuess(t *testing.T) {
	t.Parallel()
	at := func(fsType, source string) *mountinfo.Info {
		return &mountinfo.Info{FSType: fsType, Source: source, Mountpoint: "/mnt"}
	}
	if shows, err := btrfsNames(at(Btrfs, "/dev/berth-nothing"), []uint64{1}); err == nil {
		t.Errorf("a source that is not there: %v, and no error", shows)
	}
	for _, i := range []*mountinfo.Info{at(Ext4, "/dev/berth-nothing"), at(Ext4, "overlay")} {
		if shows, err := btrfsNames(i, []uint64{1}); shows || err != nil {
			t.Errorf("%s: %v, %v", i.FSType, shows, err)
		}
	}
	if shows, err := btrfsNames(at(Btrfs, "/dev/berth-nothing"), nil); shows || err != nil {
		t.Errorf("of a device that is in no mounted btrfs: %v, %v", shows, err)
	}
}
