// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
)

func mirrorSet(s *v1alpha1.PoolSet) {
	s.Spec.Layout, s.Spec.RebuildAfter = v1alpha1.LayoutMirror, &metav1.Duration{Duration: time.Hour}
}

func (h *poolHost) says() string {
	h.t.Helper()
	return meta.FindStatusCondition(h.pool().Status.Conditions, v1alpha1.PoolReady).Message
}

// lose unplugs a disk of the pool.
func (h *poolHost) lose(disk string) {
	h.disks[disk].missing = true
	for _, g := range h.groups {
		g.missing++
	}
}

// wait makes it as long ago that the disk was lost as is waited for.
func (h *poolHost) wait() {
	p := h.pools.live("fast")
	p.missingSince = p.missingSince.Add(-time.Hour)
}

func TestRedundantPoolNeedsItsDisks(t *testing.T) {
	t.Parallel()
	for layout, needs := range map[v1alpha1.PoolLayout]int{
		v1alpha1.LayoutMirror: 2, v1alpha1.LayoutRAID5: 3, v1alpha1.LayoutRAID10: 4, v1alpha1.LayoutRAID6: 5,
	} {
		t.Run(string(layout), func(t *testing.T) {
			t.Parallel()
			all := []string{"a", "b", "c", "d", "e"}
			h := newPoolHost(t, all[:needs-1]...)
			h.apply(poolSet(func(s *v1alpha1.PoolSet) { s.Spec.Layout = layout }))
			h.settle()
			h.want(v1alpha1.PoolPending, v1alpha1.ReasonNoDisks)
			h.disks[all[needs-1]] = &fakeDisk{}
			h.settle()
			h.wantHealthy(all[:needs]...)
			if s := h.pool().Status; s.Type != string(layout) || s.Raid == nil || s.Raid.RebuiltPercent != 0 || s.Raid.DegradedVolumes != 0 {
				t.Errorf("it shows %+v", s)
			}
		})
	}
}

// A lost disk is waited for, and then replaced by one that joins; it is not part of the
// pool any more, and is left as it is.
func TestLostDiskIsReplaced(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.wantHealthy("a", "b")
	h.lose("b")
	h.raid = lvm.RaidState{Volumes: 3, DegradedVolumes: 2, RebuiltPercent: 100}
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonVGPartial)
	if said := h.says(); !strings.Contains(said, "1 of 2 disks") || !strings.Contains(said, "have been missing for 1h0m0s") {
		t.Errorf("it says %q", said)
	}
	if s := h.pool().Status.Raid; s == nil || s.DegradedVolumes != 2 {
		t.Errorf("it shows %+v", s)
	}
	h.disks["c"] = &fakeDisk{}
	h.settle()
	if g := h.groups[h.pool().Status.VGUUID]; len(g.devices) != 2 {
		t.Fatalf("a disk joined while the lost one is waited for: %v", g.devices)
	}
	h.wait()
	h.raid.RebuildingVolumes, h.raid.RebuiltPercent = 1, 40
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonNotRedundant)
	if said := h.says(); !strings.Contains(said, "2 of 3 volumes are not redundant until they are rebuilt") {
		t.Errorf("it says %q", said)
	}
	status := h.pool().Status
	if c := meta.FindStatusCondition(status.Conditions, v1alpha1.PoolReady); c.Status != metav1.ConditionTrue {
		t.Errorf("no volumes can be made: %+v", c)
	}
	if status.Raid.RebuiltPercent != 40 || status.DiskCount != 2 || status.MissingDiskCount != 0 || !slices.Equal(status.BlockDevices, []string{"a", "c"}) {
		t.Errorf("it shows %+v, %+v", status, status.Raid)
	}
	if !h.disks["b"].released || h.disks["a"].released || h.disks["c"].released {
		t.Errorf("released: %+v", h.disks)
	}
	h.raid = lvm.RaidState{Volumes: 3, RebuiltPercent: 100}
	h.settle()
	h.wantHealthy("a", "c")
}

func TestLostDiskWithoutASpare(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.lose("b")
	h.settle()
	h.wait()
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonVGPartial)
	if said := h.says(); !strings.Contains(said, "no disk of the pool has room; add a disk") {
		t.Errorf("it says %q", said)
	}
	if h.disks["b"].released {
		t.Error("the lost disk was given up")
	}
}

// A disk that comes back in time is as if it had never been away.
func TestLostDiskComesBack(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.lose("b")
	h.settle()
	h.disks["b"].missing = false
	for _, g := range h.groups {
		g.missing = 0
	}
	h.settle()
	h.wantHealthy("a", "b")
	h.lose("b")
	h.settle()
	if since := h.pools.live("fast").missingSince; time.Since(since) > time.Minute {
		t.Errorf("it was missing since %s", since)
	}
}

// A disk that failed and is still there is told.
func TestFailedLeg(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.raid = lvm.RaidState{Volumes: 3, DegradedVolumes: 1, FailedVolumes: 1, RebuiltPercent: 100}
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonNotRedundant)
	if said := h.says(); !strings.Contains(said, "1 of 3 volumes") || !strings.Contains(said, "unplug it") {
		t.Errorf("it says %q", said)
	}
}

// The agent is killed at each step of giving up a disk.
func TestReplacementIsKilled(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newPoolHost(t, "a", "b")
		h.apply(poolSet(mirrorSet))
		h.settle()
		h.lose("b")
		h.settle()
		h.disks["c"] = &fakeDisk{}
		h.wait()
		h.killer.arm(n)
		_ = h.reconcile()
		killed := h.killer.killed
		h.start()
		h.settle()
		if h.groups[h.pool().Status.VGUUID].missing > 0 {
			h.wait() // a new process waits anew
			h.settle()
		}
		h.wantHealthy("a", "c")
		if !h.disks["b"].released {
			t.Fatalf("step %d: the lost disk is still the pool's", n)
		}
		if !killed {
			break
		}
	}
}

// A thin pool of a redundant layout is both: it says how full it is, and whether it outlives
// the next disk.
func TestRedundantThinPool(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.thin = &lvm.ThinState{
		DataBytes: 100 * mib, MetadataBytes: 8 * mib,
		Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 10, DataBlocks: 100, MetadataUsed: 3, MetadataBlocks: 100},
	}
	h.apply(poolSet(mirrorSet, func(s *v1alpha1.PoolSet) { s.Spec.Thin = thinSet().Spec.Thin }))
	h.settle()
	h.wantHealthy("a", "b")
	if s := h.pool().Status; s.Type != "thin-mirror" || s.Raid == nil || s.Thin == nil || s.Thin.DataPercent != 10 {
		t.Errorf("it shows %+v", s)
	}
	h.raid = lvm.RaidState{Volumes: 2, DegradedVolumes: 2, RebuildingVolumes: 1, RebuiltPercent: 40}
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonNotRedundant)
	if said := h.says(); !strings.Contains(said, "the thin pool, and with it all its volumes, is not redundant until it is rebuilt") {
		t.Errorf("it says %q", said)
	}
	h.raid = lvm.RaidState{Volumes: 2, RebuiltPercent: 100}
	h.thin.Usage.Mode, h.thin.Usage.DataUsed = dm.ThinPoolOutOfData, 100
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolFull)
	// The object was lost: what it is comes from the record, and the PoolSet must fit it.
	for _, known := range []struct {
		of     string
		layout v1alpha1.PoolLayout
		thin   bool
	}{{"thin", "linear", true}, {"thin-raid5", "raid5", true}, {"raid5", "raid5", false}} {
		layout, thin := layoutOf(&v1alpha1.Pool{Status: v1alpha1.PoolStatus{Type: known.of}}, nil)
		if layout != known.layout || thin != known.thin {
			t.Errorf("%s is %s, thin %t", known.of, layout, thin)
		}
	}
}

// A pool that can be used again says so to whoever publishes its room and waits for it: no
// volume has come or gone.
func TestRecoveredPoolIsPublished(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.wantHealthy("a", "b")
	touched := 0
	h.backends.OnTouch(func(pool string) {
		if pool == "fast" {
			touched++
		}
	})
	h.lose("b")
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonVGPartial)
	if touched == 0 {
		t.Error("its room is still published")
	}
	touched = 0
	h.disks["b"].missing = false
	for _, g := range h.groups {
		g.missing = 0
	}
	h.settle()
	h.wantHealthy("a", "b")
	if touched == 0 {
		t.Error("its room is not published again")
	}
	touched = 0
	h.settle()
	if touched > 0 {
		t.Errorf("told %d times though nothing has changed", touched)
	}
}
