// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metrics measures what a process does for others: the host's programs that
// it runs and the CSI calls that it serves.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Commands measures the host's programs. It implements hostexec.Observer.
type Commands struct{ duration *prometheus.HistogramVec }

// NewCommands returns Commands that are registered.
func NewCommands(registerer prometheus.Registerer) (*Commands, error) {
	m := &Commands{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_host_command_duration_seconds",
		Help:    "Duration of programs that were run on the host, by program and result.",
		Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"program", "result"})}
	return m, registerer.Register(m.duration)
}

// CommandDone takes in one run of a program.
func (m *Commands) CommandDone(binary string, duration time.Duration, ok bool) {
	result := "ok"
	if !ok {
		result = "error"
	}
	m.duration.WithLabelValues(binary, result).Observe(duration.Seconds())
}

// Calls measures CSI calls. It implements csi.Observer.
type Calls struct{ duration *prometheus.HistogramVec }

// NewCalls returns Calls that are registered.
func NewCalls(registerer prometheus.Registerer) (*Calls, error) {
	m := &Calls{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "berth_csi_call_duration_seconds",
		Help:    "Duration of CSI calls by method and gRPC code.",
		Buckets: []float64{.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"method", "code"})}
	return m, registerer.Register(m.duration)
}

// CallDone takes in one call.
func (m *Calls) CallDone(method string, code codes.Code, duration time.Duration) {
	m.duration.WithLabelValues(method, code.String()).Observe(duration.Seconds())
}

// RegisterDamagedEntries exposes how many files of the node's ledger cannot be
// understood; each is a volume that is not served until an operator has looked.
func RegisterDamagedEntries(registerer prometheus.Registerer, count func() int) error {
	return registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "berth_ledger_damaged_entries",
		Help: "Files of the node's ledger that cannot be understood.",
	}, func() float64 { return float64(count()) }))
}
