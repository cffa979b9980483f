// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-dev/berth/pkg/hostpath"
)

var (
	trashVolumesDesc = poolDesc("berth_pool_trash_volumes", "Deleted volumes that are being removed.")
	trashBytesDesc   = poolDesc("berth_pool_trash_bytes", "What they hold by their quotas; missing where the filesystem has none.")
	trashOldestDesc  = poolDesc("berth_pool_trash_oldest_seconds", "For how long the one waits that waits for the longest time; 0 when none does.")
	trashRateDesc    = poolDesc("berth_pool_trash_rate_limit", "Files and directories that are removed in a second at most.")
	trashRemovedDesc = poolDesc("berth_pool_trash_removed_total", "Files and directories of deleted volumes that were removed.")
	trashFailedDesc  = poolDesc("berth_pool_trash_failures_total", "Rounds of the removal that left something, and are tried again.")
	keptVolumesDesc  = poolDesc("berth_pool_retained_volumes", "Deleted volumes that are kept, those that were taken back too.")
	keptBytesDesc    = poolDesc("berth_pool_retained_bytes", "What is promised to them.")
)

var trashDescs = []*prometheus.Desc{
	trashVolumesDesc, trashBytesDesc, trashOldestDesc, trashRateDesc, trashRemovedDesc, trashFailedDesc, keptVolumesDesc, keptBytesDesc,
}

// trash is how the removal of a pool's deleted volumes goes.
type trash struct {
	mu              sync.Mutex
	known           bool
	state           hostpath.TrashState
	removed, failed int
}

// collect tells the metrics of a pool. Nothing is told of one that has no trash.
func (t *trash) collect(ch chan<- prometheus.Metric, pool string, entriesPerSecond int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known {
		return
	}
	tell := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, pool)
	}
	tell(trashVolumesDesc, prometheus.GaugeValue, float64(t.state.Volumes))
	if t.state.UsedBytes >= 0 {
		tell(trashBytesDesc, prometheus.GaugeValue, float64(t.state.UsedBytes))
	}
	oldest := 0.0
	if !t.state.Oldest.IsZero() {
		oldest = max(0, now.Sub(t.state.Oldest).Seconds())
	}
	tell(trashOldestDesc, prometheus.GaugeValue, oldest)
	tell(trashRateDesc, prometheus.GaugeValue, float64(entriesPerSecond))
	tell(trashRemovedDesc, prometheus.CounterValue, float64(t.removed))
	tell(trashFailedDesc, prometheus.CounterValue, float64(t.failed))
}

// forget what was in the trash of a pool that is gone; what was counted goes on.
func (t *trash) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.state = false, hostpath.TrashState{}
}

// rootObserver hears how the removal of a root's deleted volumes goes.
type rootObserver struct {
	trash *trash
	// changed is called when there is more room than before.
	changed func()
}

// TrashWaiting implements hostpath.TrashObserver.
func (o rootObserver) TrashWaiting(_ string, state hostpath.TrashState) {
	o.trash.mu.Lock()
	o.trash.known, o.trash.state = true, state
	o.trash.mu.Unlock()
}

// TrashRemoved implements hostpath.TrashObserver.
func (o rootObserver) TrashRemoved(_ string, entries int) {
	o.trash.mu.Lock()
	o.trash.known = true
	o.trash.removed += entries
	o.trash.mu.Unlock()
}

// TrashFailed implements hostpath.TrashObserver.
func (o rootObserver) TrashFailed(string, error) {
	o.trash.mu.Lock()
	o.trash.known = true
	o.trash.failed++
	o.trash.mu.Unlock()
}

// RetainedChanged implements hostpath.TrashObserver.
func (o rootObserver) RetainedChanged(string) { o.changed() }
