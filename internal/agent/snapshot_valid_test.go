// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
)

// A snapshot that is gone from its pool says so, nothing is restored from it, and it is well again
// when the pool shows it.
func TestSnapshotThatIsGone(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, newHost newCopies) {
		h := newHost(t, localVolume(), localSnapshot())
		h.settleCopies()
		events := &told{}
		h.snapshots.Recorder = events
		pools := &PoolReconciler{PoolOptions: PoolOptions{Client: h.api, Ledger: h.agent.Ledger, DoubtSnapshot: h.snapshots.Doubt, Log: slog.New(slog.DiscardHandler)}}
		look := func() (doubted bool) {
			t.Helper()
			if _, err := pools.findLeftOvers(t.Context(), &poolRecord{PoolSet: "fast"}, h.backend); err != nil {
				t.Fatal(err)
			}
			doubted = h.snapshots.doubted[snapName]
			h.settleCopies()
			return doubted
		}
		rename := func(from, to string) {
			h.vg.Edit(h.vg.Name, func(e *lvmtest.Editor) { e.RenameVolume(from, to) })
		}
		h.snapshots.Doubt(snapName) // which may be by what was seen a while ago
		h.settleCopies()
		h.wantValid("")
		if look() {
			t.Error("it is doubted though it is there")
		}
		rename("snap-"+snapUID, "aside")
		if !look() {
			t.Error("it is not doubted")
		}
		h.wantValid(v1alpha1.ReasonMissing)
		h.create(copyVolume(v1alpha1.SourceSnapshot))
		h.settleCopies()
		if c := meta.FindStatusCondition(h.copied().Status.Conditions, v1alpha1.LocalVolumeReady); c == nil || c.Reason != v1alpha1.ReasonInvalid || !strings.Contains(c.Message, "is gone from its pool") {
			t.Errorf("a restore of what is gone: %+v", c)
		}
		rename("aside", "snap-"+snapUID)
		if !look() {
			t.Error("it is not looked at again")
		}
		h.wantValid(v1alpha1.ReasonHeld)
		if !slices.Equal(events.reasons, []string{v1alpha1.ReasonMissing, v1alpha1.ReasonHeld}) {
			t.Errorf("Events %q", events.reasons)
		}
		h.vg.Edit(h.vg.Name, func(e *lvmtest.Editor) { e.Remove("snap-" + snapUID) })
		look()
		h.wantValid(v1alpha1.ReasonMissing)
		if err := h.api.Delete(t.Context(), h.snapshot()); err != nil {
			t.Fatal(err)
		}
		h.settleCopies()
		if s := h.snapshot(); s != nil {
			t.Errorf("it cannot be deleted: %+v", s.Status)
		}
	})
}
