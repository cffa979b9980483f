// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

func thinSet() *v1alpha1.PoolSet {
	s := poolSet()
	s.Spec.Thin = &v1alpha1.ThinPool{
		OverprovisionRatio: "1.5", InitialPercent: 100, HighWaterPercent: 95, WhenFull: v1alpha1.WhenFullFail,
		Autoextend: v1alpha1.Autoextend{ThresholdPercent: 80, Percent: 20},
	}
	return s
}

func TestThinPolicyOfAPoolSet(t *testing.T) {
	t.Parallel()
	var p thinPolicy
	if err := p.get().Check(); err != nil {
		t.Errorf("before it was read: %v", err)
	}
	if err := p.set(thinSet().Spec.Thin); err != nil {
		t.Fatal(err)
	}
	got := p.get()
	if got.FailWhenFull == nil || !*got.FailWhenFull {
		t.Error("writes to a full pool wait")
	}
	got.FailWhenFull = nil
	want := lvm.ThinPolicy{OverprovisionPercent: 150, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, ratio := range []string{"", "0.5", "x", "1.234", "1e300"} {
		s := thinSet().Spec.Thin
		s.OverprovisionRatio = ratio
		if err := p.set(s); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("ratio %q: %v", ratio, err)
		}
	}
	if kept := p.get(); kept.OverprovisionPercent != 150 {
		t.Errorf("a bad one took the place of the good one: %+v", kept)
	}
}

func TestThinPool(t *testing.T) {
	t.Parallel()
	usage := func(change func(*dm.ThinPool)) *lvm.ThinState {
		u := dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 10, DataBlocks: 100, MetadataUsed: 3, MetadataBlocks: 100}
		change(&u)
		return &lvm.ThinState{DataBytes: 100 * mib, MetadataBytes: 8 * mib, Usage: u}
	}
	for name, tc := range map[string]struct {
		thin   *lvm.ThinState
		err    error
		state  v1alpha1.PoolState
		reason string
		says   string
	}{
		"healthy":         {usage(func(*dm.ThinPool) {}), nil, v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady, "volumes can be made"},
		"full":            {usage(func(u *dm.ThinPool) { u.Mode, u.DataUsed = dm.ThinPoolOutOfData, 100 }), nil, v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolFull, "is full"},
		"failed":          {usage(func(u *dm.ThinPool) { u.Mode = dm.ThinPoolFailed }), nil, v1alpha1.PoolFailed, v1alpha1.ReasonPoolError, "lvconvert --repair"},
		"to be repaired":  {usage(func(u *dm.ThinPool) { u.NeedsCheck = true }), nil, v1alpha1.PoolFailed, v1alpha1.ReasonPoolError, "lvconvert --repair"},
		"too little room": {nil, volume.ErrNoSpace, v1alpha1.PoolFailed, v1alpha1.ReasonPoolError, "not enough space"},
		"not made":        {nil, nil, v1alpha1.PoolFailed, v1alpha1.ReasonPoolError, "no thin pool"},
		"of another transaction": {
			nil, fmt.Errorf("activate thin pool: %w", lvm.ErrThinTransaction), v1alpha1.PoolFailed, v1alpha1.ReasonThinPoolBehind, "restore-lvm-metadata.md",
		},
		"cannot be managed": {nil, volume.ErrExists, v1alpha1.PoolFailed, v1alpha1.ReasonPoolError, "exists"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPoolHost(t, "a")
			h.thin, h.thinErr = tc.thin, tc.err
			h.apply(thinSet())
			h.settle()
			h.want(tc.state, tc.reason)
			status := h.pool().Status
			if c := meta.FindStatusCondition(status.Conditions, v1alpha1.PoolReady); !strings.Contains(c.Message, tc.says) {
				t.Errorf("it says %q", c.Message)
			}
			if status.Type != "thin" {
				t.Errorf("type %q", status.Type)
			}
			if tc.thin == nil {
				if status.Thin != nil {
					t.Errorf("it shows %+v", status.Thin)
				}
				return
			}
			if status.Thin == nil || int(status.Thin.DataPercent) != tc.thin.Usage.DataPercent() || status.Thin.Data.Value() != 100*mib {
				t.Errorf("it shows %+v", status.Thin)
			}
		})
	}
}

// A pool that admits nothing though not all was promised says so.
func TestThinPoolAboveItsHighWaterMark(t *testing.T) {
	t.Parallel()
	view := healthy()
	view.capacity = &volume.Capacity{TotalBytes: 200, AllocatedBytes: 150}
	judgeThinPool(&view, &lvm.ThinState{Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 96, DataBlocks: 100, MetadataUsed: 3, MetadataBlocks: 100}}, nil)
	if view.ready != metav1.ConditionFalse || view.reason != v1alpha1.ReasonThinPoolFull || !strings.Contains(view.message, "96 % of the thin pool's data and 3 % of its metadata") {
		t.Errorf("got %+v", view)
	}
	view = healthy()
	view.capacity = &volume.Capacity{TotalBytes: 200, AllocatedBytes: 200}
	judgeThinPool(&view, &lvm.ThinState{Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 50, DataBlocks: 100, MetadataBlocks: 100}}, nil)
	if view.ready != metav1.ConditionTrue {
		t.Errorf("all is promised, nothing is wrong: %+v", view)
	}
}

// A thin pool is no thick one, whatever a new PoolSet of its name says.
func TestThinPoolStaysThin(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.thin = &lvm.ThinState{DataBytes: 100 * mib, MetadataBytes: 8 * mib, Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataBlocks: 100, MetadataBlocks: 100}}
	s := thinSet()
	h.apply(s)
	h.settle()
	h.wantHealthy("a")
	if err := h.api.Delete(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	h.apply(poolSet())
	h.settle()
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
	if c := meta.FindStatusCondition(h.pool().Status.Conditions, v1alpha1.PoolReady); !strings.Contains(c.Message, "of type thin") {
		t.Errorf("it says %q", c.Message)
	}
}

func TestPoolMetrics(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.thin = &lvm.ThinState{DataBytes: 100 * mib, MetadataBytes: 8 * mib, Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 25, DataBlocks: 100, MetadataUsed: 3, MetadataBlocks: 100}}
	h.apply(thinSet())
	h.settle()
	want := `
# HELP berth_pool_missing_disks Disks of the volume group that the node does not show.
# TYPE berth_pool_missing_disks gauge
berth_pool_missing_disks{pool="fast"} 0
# HELP berth_pool_capacity_bytes What may be promised to volumes, the reserve taken off.
# TYPE berth_pool_capacity_bytes gauge
berth_pool_capacity_bytes{pool="fast"} 1.048576e+08
# HELP berth_pool_ready 1 if volumes can be made in the pool, 0 if not; its condition Ready says why.
# TYPE berth_pool_ready gauge
berth_pool_ready{pool="fast"} 1
# HELP berth_pool_thin_data_used_ratio Share of a thin pool's data that is in use.
# TYPE berth_pool_thin_data_used_ratio gauge
berth_pool_thin_data_used_ratio{pool="fast"} 0.25
`
	names := []string{"berth_pool_ready", "berth_pool_capacity_bytes", "berth_pool_missing_disks", "berth_pool_thin_data_used_ratio"}
	if err := testutil.CollectAndCompare(h.pools, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h.pools)
	metricstest.CheckSeries(t, registry, names...)
	if n := testutil.CollectAndCount(h.pools); n != 13 { // 4 of them are the kinds of left-overs
		t.Errorf("%d series of one pool", n)
	}
}
