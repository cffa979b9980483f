// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestProblemsOfARedundantVolume(t *testing.T) {
	t.Parallel()
	r := newRaid(t, lvm.LayoutRAID5, 3)
	problems := func() string {
		t.Helper()
		before := r.vg.Processes()
		found, err := r.b.Problems(t.Context(), volumetest.ID(1), r.rec)
		if err != nil {
			t.Fatal(err)
		}
		if r.vg.Processes() != before {
			t.Errorf("it took %d processes", r.vg.Processes()-before)
		}
		var said []string
		for _, p := range found {
			said = append(said, p.Reason+": "+p.Message)
		}
		return strings.Join(said, "; ")
	}
	if got := problems(); got != "" {
		t.Errorf("whole: %s", got)
	}
	r.vg.SetMissing("/dev/vdb", true)
	if got := problems(); got != "NotRedundant: 1 of its 3 disks have failed or are missing" {
		t.Errorf("without a disk: %s", got)
	}
	r.join("/dev/vdz")
	r.vg.SetSlowRebuild(true)
	r.mend(true)
	if got := problems(); got != "Rebuilding: it is being rebuilt on 1 of its 3 disks, and at least 50 % of that is done" {
		t.Errorf("while it is rebuilt: %s", got)
	}
	other := r.rec
	other.LVM = &volume.LVMRecord{VGName: r.vg.Name, VGUUID: r.vg.UUID, LVName: volumetest.ID(2), LVUUID: r.rec.LVM.LVUUID}
	if _, err := r.b.Problems(t.Context(), volumetest.ID(1), other); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("by the record of another: %v", err)
	}
}

func TestProblemsOfAThinVolume(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 20*thinMiB)
	b := vg.Backend()
	loc := thinVolume(t, b, 1, 20*thinMiB)
	found, err := b.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Problems(t.Context(), volumetest.ID(1), found[0].Record); err != nil || len(got) != 0 {
		t.Errorf("with room: %+v, %v", got, err)
	}
	fill(t, loc, 20*thinMiB)
	if got, err := b.Problems(t.Context(), volumetest.ID(1), found[0].Record); err != nil || len(got) != 1 || got[0].Reason != lvm.ReasonThinPoolFull || got[0].Inaccessible {
		t.Errorf("full: %+v, %v", got, err)
	}
}
