// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func poolDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"pool"}, nil)
}

var (
	poolReadyDesc     = poolDesc("berth_pool_ready", "1 if volumes can be made in the pool, 0 if not; its condition Ready says why.")
	poolCapacityDesc  = poolDesc("berth_pool_capacity_bytes", "What may be promised to volumes, the reserve taken off.")
	poolAllocatedDesc = poolDesc("berth_pool_allocated_bytes", "What is promised.")
	poolFreeDesc      = poolDesc("berth_pool_free_bytes", "What can still be promised, by the function that admits a volume.")
	poolVolumesDesc   = poolDesc("berth_pool_volumes", "Volumes in the pool.")
	poolDisksDesc     = poolDesc("berth_pool_disks", "Disks of the volume group, missing ones too.")
	poolMissingDesc   = poolDesc("berth_pool_missing_disks", "Disks of the volume group that the node does not show.")
	poolDegradedDesc  = poolDesc("berth_pool_degraded_volumes", "Volumes of a redundant pool that lack a disk, or have not caught up with one.")
	poolRebuiltDesc   = poolDesc("berth_pool_rebuilt_ratio", "How far the volume is rebuilt that has come the least far; 1 when none is being rebuilt.")
	poolDataDesc      = poolDesc("berth_pool_thin_data_used_ratio", "Share of a thin pool's data that is in use.")
	leftOversDesc     = prometheus.NewDesc("berth_left_overs", "What the pool has and no object stands for, by kind: Volume, Snapshot, Record (an entry of the node's ledger without storage), Directory (which Berth has no record of).", []string{"pool", "kind"}, nil)
	poolMetadataDesc  = poolDesc("berth_pool_thin_metadata_used_ratio", "Share of a thin pool's metadata that is in use.")
)

// Describe implements prometheus.Collector.
func (r *PoolReconciler) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range append([]*prometheus.Desc{
		poolReadyDesc, poolCapacityDesc, poolAllocatedDesc, poolFreeDesc, poolVolumesDesc, poolDisksDesc, poolMissingDesc, poolDegradedDesc, poolRebuiltDesc, poolDataDesc, poolMetadataDesc, leftOversDesc,
	}, trashDescs...) {
		ch <- desc
	}
}

// Collect implements prometheus.Collector: how each pool looked last. What was not known
// then is left out.
func (r *PoolReconciler) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	views := map[string]*poolView{}
	trashes := map[string]*trash{}
	leftOvers := map[string]map[v1alpha1.LeftOverKind]int{}
	for name, p := range r.pools {
		trashes[name] = &p.trash
		if counts := p.leftOvers.counts.Load(); counts != nil {
			leftOvers[name] = *counts
		}
		if view := p.last.Load(); view != nil {
			views[name] = view
		}
	}
	r.mu.Unlock()
	for name, t := range trashes {
		t.collect(ch, name, r.TrashEntriesPerSecond, time.Now())
	}
	for name, counts := range leftOvers {
		for kind, count := range counts {
			ch <- prometheus.MustNewConstMetric(leftOversDesc, prometheus.GaugeValue, float64(count), name, string(kind))
		}
	}
	for name, view := range views {
		tell := func(desc *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, name)
		}
		ready := 0.0
		if view.ready == metav1.ConditionTrue {
			ready = 1
		}
		tell(poolReadyDesc, ready)
		if c := view.capacity; c != nil {
			tell(poolCapacityDesc, float64(c.TotalBytes))
			tell(poolAllocatedDesc, float64(c.AllocatedBytes))
			tell(poolFreeDesc, float64(c.FreeBytes))
			tell(poolVolumesDesc, float64(c.Volumes))
		}
		if view.disks > 0 {
			tell(poolDisksDesc, float64(view.disks))
			tell(poolMissingDesc, float64(view.missingDisks))
		}
		if view.retained != nil {
			tell(keptVolumesDesc, float64(view.retained.count))
			tell(keptBytesDesc, float64(view.retained.bytes))
		}
		if view.raid != nil {
			tell(poolDegradedDesc, float64(view.raid.DegradedVolumes))
			tell(poolRebuiltDesc, float64(view.raid.RebuiltPercent)/100)
		}
		if view.thin != nil {
			tell(poolDataDesc, float64(view.thin.DataPercent)/100)
			tell(poolMetadataDesc, float64(view.thin.MetadataPercent)/100)
		}
	}
}
