// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// A volume says what is wrong with it when its pool may be another than it was, once, and
// says when it is well again.
func TestVolumeHealth(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume(func(lv *v1alpha1.LocalVolume) {
		lv.Spec.ClaimRef = &v1alpha1.ClaimReference{Namespace: "shop", Name: "db", UID: "1"}
	}))
	h.settle()
	h.wantReady()
	told := &tellingBackend{Backend: h.memory}
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: told})
	look := func(wantWrites int) *metav1.Condition {
		t.Helper()
		before := h.writes
		h.agent.poolJudged("fast")
		h.settle()
		if got := h.writes - before; got != wantWrites {
			t.Errorf("%d writes, want %d", got, wantWrites)
		}
		h.wantReady()
		return meta.FindStatusCondition(h.get().Status.Conditions, v1alpha1.LocalVolumeHealthy)
	}
	if c := look(0); c != nil {
		t.Errorf("nothing was ever wrong: %+v", c)
	}
	told.problems = []volume.Problem{{Reason: lvm.ReasonNotRedundant, Message: "1 of its 2 disks have failed or are missing"}}
	h.settle()
	if meta.FindStatusCondition(h.get().Status.Conditions, v1alpha1.LocalVolumeHealthy) != nil {
		t.Error("it was looked at though nothing has happened")
	}
	h.news.expect(t)
	if c := look(1); c == nil || c.Status != metav1.ConditionFalse || c.Reason != "NotRedundant" || !strings.Contains(c.Message, "missing; Pool fast-n1 says") {
		t.Errorf("without a disk: %+v", c)
	}
	h.news.expect(t, "Warning NotRedundant of PersistentVolumeClaim shop/db")
	look(0)
	h.news.expect(t)
	told.problems = []volume.Problem{{Reason: lvm.ReasonRebuilding, Message: "at least 40 % of that is done"}}
	if c := look(1); c == nil || c.Reason != "Rebuilding" {
		t.Errorf("while it is rebuilt: %+v", c)
	}
	h.news.expect(t, "Normal Rebuilding of PersistentVolumeClaim shop/db")
	told.problems[0].Message = "at least 50 % of that is done"
	look(1)
	h.news.expect(t) // progress is in the condition
	h.start()
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Reason: "it was not looked at yet"})
	look(0)
	told.problems = nil
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: told})
	if c := look(1); c == nil || c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonGood {
		t.Errorf("well again: %+v", c)
	}
	h.news.expect(t, "Normal Good of PersistentVolumeClaim shop/db")
	look(0)
}

// A pool has its volumes looked at when it looks otherwise than before, and while it is
// rebuilt.
func TestPoolsJudge(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	var judged []string
	h.backends.OnJudge(func(pool string) { judged = append(judged, pool) })
	want := func(what string, atLeast, most int) {
		t.Helper()
		judged = nil
		h.settle()
		if len(judged) < atLeast || len(judged) > most || slices.ContainsFunc(judged, func(name string) bool { return name != "fast" }) {
			t.Errorf("%s: judged are %q", what, judged)
		}
	}
	const often = 100
	h.apply(poolSet(mirrorSet))
	want("at first", 1, 1)
	want("nothing has happened", 0, 0)
	h.raid = lvm.RaidState{Volumes: 1, DegradedVolumes: 1, RebuildingVolumes: 1, RebuiltPercent: 40}
	want("while it is rebuilt", 1, often)
	want("while it goes on", 1, often)
	h.raid = lvm.RaidState{Volumes: 1, RebuiltPercent: 100}
	want("when it is done", 1, 1)
	want("afterwards", 0, 0)

	h = newPoolHost(t, "a", "b")
	h.backends.OnJudge(func(pool string) { judged = append(judged, pool) })
	h.apply(poolSet())
	want("one that is not redundant", 1, 1)
	vg := h.pool().Status.VGUUID
	h.groups[vg].missing = 1
	want("without a disk", 1, 1)
	h.groups[vg].missing = 0
	want("with all disks again", 1, 1)
	gone := h.groups[vg]
	delete(h.groups, vg)
	want("without any disk", 1, 1)
	h.groups[vg] = gone
	want("with them again", 1, 1)
	want("nothing happens", 0, 0)

	h = newPoolHost(t, "a")
	h.backends.OnJudge(func(pool string) { judged = append(judged, pool) })
	h.thin = &lvm.ThinState{DataBytes: 100 * mib, MetadataBytes: 8 * mib, Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataBlocks: 100, MetadataBlocks: 100}}
	h.apply(thinSet())
	want("a thin one", 1, 1)
	h.thin.Usage.DataUsed = 50
	want("filled a little", 0, 0)
	h.thin.Usage.Mode = dm.ThinPoolOutOfData
	want("full", 1, 1)
}
