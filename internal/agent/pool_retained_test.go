// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
)

func keptVolume(n int, deleted time.Time) hostpath.Retained {
	return hostpath.Retained{
		Entry: fmt.Sprintf("entry-%d", n), Name: fmt.Sprintf("pvc-%d", n), Claim: "shop/db", SizeBytes: mib,
		Deleted: deleted, KeptUntil: deleted.Add(72 * time.Hour), Directory: fmt.Sprintf("/srv/berth/.retained/entry-%d", n),
	}
}

// A Pool shows what is kept of its deleted volumes, and takes back what it is asked for.
func TestRetainedVolumes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t)
		h.apply(poolSet(hostpathSet))
		h.settle()
		if s := h.pool().Status; s.RetainedCount != 0 || len(s.Retained)+len(s.TakenBack) > 0 {
			t.Fatalf("nothing was deleted, and yet: %+v", s)
		}
		at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		for n := range shownRetained + 6 {
			h.retained = append(h.retained, keptVolume(n, at.Add(time.Duration(n)*time.Minute)))
		}
		time.Sleep(numbersInterval) //nolint:forbidigo // it is how the bubble's clock moves on
		h.settle()
		s := h.pool().Status
		if s.RetainedCount != shownRetained+6 || len(s.Retained) != shownRetained {
			t.Fatalf("%d are kept, %d of them shown", s.RetainedCount, len(s.Retained))
		}
		if got := s.Retained[0]; got.Volume != "pvc-69" || got.Claim != "shop/db" || got.Capacity.Value() != mib ||
			got.KeptUntil == nil || got.KeptUntil.Sub(got.Deleted.Time) != 72*time.Hour || !strings.HasPrefix(got.Path, "/srv/berth/.retained/") {
			t.Errorf("the last that was deleted is shown as %+v", got)
		}
		const metrics = `# HELP berth_pool_retained_bytes What is promised to them.
# TYPE berth_pool_retained_bytes gauge
berth_pool_retained_bytes{pool="fast"} 7.340032e+07
# HELP berth_pool_retained_volumes Deleted volumes that are kept, those that were taken back too.
# TYPE berth_pool_retained_volumes gauge
berth_pool_retained_volumes{pool="fast"} 70
`
		if err := testutil.CollectAndCompare(h.pools, strings.NewReader(metrics), "berth_pool_retained_volumes", "berth_pool_retained_bytes"); err != nil {
			t.Error(err)
		}
		h.writes = 0
		h.settle()
		if h.writes > 0 {
			t.Errorf("%d writes for nothing", h.writes)
		}

		// By name, by entry, and one that is not there. The first is not even shown.
		pool := h.pool()
		pool.Spec.TakeBack = []string{"pvc-0", "entry-69", "pvc-99"}
		if err := h.api.Update(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		time.Sleep(numbersInterval) //nolint:forbidigo // as above
		h.settle()
		s = h.pool().Status
		if len(s.TakenBack) != 3 || s.TakenBack[0].Path != "/srv/berth/taken-back/entry-0" || s.TakenBack[1].Path != "/srv/berth/taken-back/entry-69" {
			t.Fatalf("taken back: %+v", s.TakenBack)
		}
		if missing := s.TakenBack[2]; missing.Path != "" || !strings.Contains(missing.Message, "pvc-99") {
			t.Errorf("of one that is not there: %+v", missing)
		}
		if got := s.Retained[0]; got.KeptUntil != nil || got.Path != "/srv/berth/taken-back/entry-69" {
			t.Errorf("what was taken back is shown as %+v", got)
		}
		pool = h.pool()
		pool.Spec.TakeBack = nil
		if err := h.api.Update(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		h.settle()
		if s := h.pool().Status; len(s.TakenBack) > 0 || !h.retained[0].TakenBack {
			t.Errorf("asked for no more: %+v, taken back %v", s.TakenBack, h.retained[0].TakenBack)
		}
	})
}

// A root whose records cannot be read makes nothing, and is shown as it was.
func TestRetainedVolumesAreNotKnown(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.retained = append(h.retained, keptVolume(1, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)))
	h.apply(poolSet(hostpathSet))
	h.settle()
	h.retainedErr = fmt.Errorf("read the record: %w", volume.ErrIdentity)
	if err := h.reconcile(); err == nil {
		t.Error("what cannot be read was no error")
	}
	if s := h.pool().Status; s.RetainedCount != 1 || !strings.Contains(h.says(), "read the record") {
		t.Errorf("it shows %d and says %q", s.RetainedCount, h.says())
	}
	h.retainedErr = nil
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
}

// specWatcher remembers what it was asked for.
type specWatcher struct {
	volume.Backend
	asked volume.Spec
}

func (w *specWatcher) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	w.asked = spec
	return w.Backend.Create(ctx, spec)
}

// What the class says comes to the backend, with whose volume it is.
func TestWishesForDirectoriesAreHandedOn(t *testing.T) {
	t.Parallel()
	lv := localVolume()
	lv.Spec.Mode, lv.Spec.Pool, lv.Spec.FSType = v1alpha1.ModeHostpath, "dirs", ""
	lv.Spec.RetainFor = &metav1.Duration{Duration: 72 * time.Hour}
	lv.Spec.Directory = "shop/db"
	lv.Spec.ClaimRef = &v1alpha1.ClaimReference{Namespace: "shop", Name: "db"}
	h := newHost(t, volume.ModeHostpath, lv)
	watcher := &specWatcher{Backend: h.memory}
	h.backends.Set(PoolBackend{Name: "dirs", Mode: volume.ModeHostpath, Backend: watcher})
	h.settle()
	h.wantCondition(metav1.ConditionTrue, v1alpha1.ReasonCarved)
	if watcher.asked.RetainFor != 72*time.Hour || watcher.asked.Claim != "shop/db" || watcher.asked.Directory != "shop/db" {
		t.Errorf("asked for %+v", watcher.asked)
	}
}
