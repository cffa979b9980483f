// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-dev/berth/api/v1alpha1"
)

type metrics struct {
	filtersValid prometheus.Gauge
	uevents      prometheus.Counter
	probes       prometheus.Counter
	scans        *prometheus.CounterVec
	scanSeconds  prometheus.Histogram
	wipes        *prometheus.CounterVec
	wiping       prometheus.Gauge
	wiped        *prometheus.GaugeVec
}

// newMetrics registers the metrics. objects are called at each scrape.
func newMetrics(registerer prometheus.Registerer, objects func() []*v1alpha1.BlockDevice) (*metrics, error) {
	m := &metrics{
		filtersValid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_filters_valid", Help: "1 if the ConfigMap berth-config is there and valid, 0 if an older configuration, or none, is in force.",
		}),
		uevents: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_block_events_total", Help: "Events of the kernel and of udev about block devices.",
		}),
		probes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_block_examinations_total", Help: "Times that the content of a disk was read.",
		}),
		scans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_block_scans_total", Help: "Complete walks over the block devices by result.",
		}, []string{"result"}),
		scanSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_block_scan_duration_seconds", Help: "Duration of complete walks over the block devices.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
	m.wipes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_disk_wipes_total", Help: "Wipes of released disks that have ended, by policy and result.",
	}, []string{"policy", "result"})
	m.wiping = prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_disks_being_wiped", Help: "Released disks that are being wiped now."})
	m.wiped = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "berth_disk_wiped_bytes", Help: "How much is clean of a released disk that is being wiped now.",
	}, []string{"blockdevice"})
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.wipes, m.wiping, m.wiped, diskCounter{objects}, m.filtersValid, m.uevents, m.probes, m.scans, m.scanSeconds} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) scanned(duration time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.scans.WithLabelValues(result).Inc()
	m.scanSeconds.Observe(duration.Seconds())
}

// diskCounter counts the disks when it is asked, and costs nothing in between.
type diskCounter struct {
	objects func() []*v1alpha1.BlockDevice
}

var disksDesc = prometheus.NewDesc("berth_block_devices", "BlockDevices of this node by state, claim state and the reason of their condition Usable.",
	[]string{"state", "claim_state", "reason"}, nil)

// Describe implements prometheus.Collector.
func (diskCounter) Describe(descs chan<- *prometheus.Desc) { descs <- disksDesc }

// Collect implements prometheus.Collector.
func (c diskCounter) Collect(out chan<- prometheus.Metric) {
	count := map[[3]string]int{}
	for _, bd := range c.objects() {
		reason := ""
		if c := condition(&bd.Status); c != nil {
			reason = c.Reason
		}
		claimState := bd.Status.ClaimState
		if claimState == "" {
			claimState = v1alpha1.ClaimStateUnclaimed
		}
		count[[3]string{string(bd.Status.State), string(claimState), reason}]++
	}
	for labels, n := range count {
		out <- prometheus.MustNewConstMetric(disksDesc, prometheus.GaugeValue, float64(n), labels[:]...)
	}
}
