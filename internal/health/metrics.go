// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/smart"
)

const label = "blockdevice"

// metrics are gauges by BlockDevice: a disk that comes anew begins its counts anew.
type metrics struct {
	healthy, errors, timeouts, temperature, used, mediaErrors, pending, reallocated *prometheus.GaugeVec
	looks                                                                           *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		healthy:     gauge("berth_disk_healthy", "1 if the disk is well, 0 if it is failing; missing while nothing is known."),
		errors:      gauge("berth_disk_command_errors", "Commands that the disk has failed since the kernel found it."),
		timeouts:    gauge("berth_disk_command_timeouts", "Commands that the disk has not answered since the kernel found it."),
		temperature: gauge("berth_disk_temperature_celsius", "Temperature of the disk when it was last asked."),
		used:        gauge("berth_disk_endurance_used_ratio", "Share of the expected life of a flash disk that is used up; may exceed 1."),
		mediaErrors: gauge("berth_disk_media_errors", "Blocks that an NVMe disk could not read correctly."),
		pending:     gauge("berth_disk_pending_sectors", "Sectors of an ATA disk that wait to be replaced by spare ones."),
		reallocated: gauge("berth_disk_reallocated_sectors", "Sectors that a disk has replaced by spare ones."),
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_disk_health_checks_total", Help: "Times that a disk was asked for its health, by result.",
		}, []string{"result"}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range append([]prometheus.Collector{m.looks}, m.collectors()...) {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of health: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) gauges() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{m.healthy, m.errors, m.timeouts, m.temperature, m.used, m.mediaErrors, m.pending, m.reallocated}
}

func (m *metrics) collectors() []prometheus.Collector {
	var collectors []prometheus.Collector
	for _, g := range m.gauges() {
		collectors = append(collectors, g)
	}
	return collectors
}

// set shows what a look has brought. What was not told keeps its last value.
func (m *metrics) set(name string, f finding, counters block.Counters, counted bool, h discovery.Health) {
	switch {
	case f.err == nil:
		m.looks.WithLabelValues("ok").Inc()
	case errors.Is(f.err, smart.ErrAsleep):
		m.looks.WithLabelValues("asleep").Inc()
	default:
		m.looks.WithLabelValues("error").Inc()
	}
	switch h.Status {
	case metav1.ConditionTrue:
		m.healthy.WithLabelValues(name).Set(1)
	case metav1.ConditionFalse:
		m.healthy.WithLabelValues(name).Set(0)
	case metav1.ConditionUnknown:
		m.healthy.DeleteLabelValues(name)
	}
	if counted {
		m.errors.WithLabelValues(name).Set(float64(counters.Errors))
		m.timeouts.WithLabelValues(name).Set(float64(counters.Timeouts))
	}
	for _, g := range []struct {
		gauge *prometheus.GaugeVec
		value *int64
		scale float64
	}{
		{m.temperature, f.report.TemperatureCelsius, 1},
		{m.used, f.report.PercentageUsed, 0.01},
		{m.mediaErrors, f.report.MediaErrors, 1},
		{m.pending, f.report.PendingSectors, 1},
		{m.reallocated, f.report.ReallocatedSectors, 1},
	} {
		if g.value != nil {
			g.gauge.WithLabelValues(name).Set(float64(*g.value) * g.scale)
		}
	}
}

func (m *metrics) forget(name string) {
	for _, g := range m.gauges() {
		g.DeleteLabelValues(name)
	}
}
