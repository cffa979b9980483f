// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/smart"
	"github.com/berth-dev/berth/pkg/volume"
)

// gather is how long changes of the disks are collected before new ones are looked
// for.
const gather = 5 * time.Second

// Disks are the disks of the node; *discovery.Inventory is it.
type Disks interface {
	// Ready reports whether the disks are known.
	Ready() bool
	HealthTargets() []discovery.HealthTarget
	SetHealth(name string, h discovery.Health)
}

// Counters reads what the kernel counts; block.Sysfs is one.
type Counters interface {
	Counters(ctx context.Context, kernelName string) (c block.Counters, ok bool, err error)
}

// Options of a Monitor. All but Registerer and Now are needed.
type Options struct {
	Disks Disks
	// Changed gets a value when the disks have changed.
	Changed  <-chan struct{}
	Counters Counters
	// Runner of the host's smartctl.
	Runner smart.Runner
	// Interval between two looks at one disk.
	Interval   time.Duration
	Log        logr.Logger
	Registerer prometheus.Registerer
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Monitor looks after the disks' health. It is a Runnable of a controller-runtime
// manager on every node.
type Monitor struct {
	opts    Options
	metrics *metrics
	known   map[string]*known
}

// known is what is kept of a disk between two looks.
type known struct {
	diskSeq  uint64
	next     time.Time
	counters block.Counters
	// counted is true when the counters were read once.
	counted bool
}

// New makes a Monitor. It does nothing before Start.
func New(opts Options) (*Monitor, error) {
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Monitor{opts: opts, metrics: m, known: map[string]*known{}}, nil
}

// NeedLeaderElection is false: every node has its own disks.
func (m *Monitor) NeedLeaderElection() bool { return false }

// Start looks until the context ends: at a disk when it comes, and at each again
// when its interval is over. In between it sleeps.
func (m *Monitor) Start(ctx context.Context) error {
	due := time.Now().Add(gather)
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for {
		wait := gather
		select {
		case <-ctx.Done():
			return nil
		case <-m.opts.Changed:
			if time.Until(due) <= gather || !m.unknown() {
				continue
			}
		case <-timer.C:
			wait = m.round(ctx)
		}
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// unknown reports whether there is a disk that was not looked at yet.
func (m *Monitor) unknown() bool {
	for _, target := range m.opts.Disks.HealthTargets() {
		if k := m.known[target.Name]; k == nil || k.diskSeq != target.DiskSeq {
			return true
		}
	}
	return false
}

// round looks at every disk whose time has come and returns when the next one is
// due.
func (m *Monitor) round(ctx context.Context) time.Duration {
	if !m.opts.Disks.Ready() {
		return gather
	}
	targets := m.opts.Disks.HealthTargets()
	present := make(map[string]bool, len(targets))
	for _, target := range targets {
		present[target.Name] = true
		k := m.known[target.Name]
		if k == nil || k.diskSeq != target.DiskSeq {
			k = &known{diskSeq: target.DiskSeq}
			m.known[target.Name] = k
		}
		if ctx.Err() != nil || m.opts.Now().Before(k.next) {
			continue
		}
		m.look(ctx, target, k)
		k.next = m.opts.Now().Add(m.opts.Interval)
	}
	for name := range m.known {
		if !present[name] {
			delete(m.known, name)
			m.metrics.forget(name)
		}
	}
	next := m.opts.Interval
	for _, k := range m.known {
		next = min(next, k.next.Sub(m.opts.Now()))
	}
	return max(next, time.Second)
}

// look asks one disk.
func (m *Monitor) look(ctx context.Context, target discovery.HealthTarget, k *known) {
	var f finding
	counters, counted, err := m.opts.Counters.Counters(ctx, target.KernelName)
	if errors.Is(err, volume.ErrNotFound) {
		return // pulled out
	}
	if err != nil {
		m.opts.Log.Error(err, "cannot read the counters of a disk", "blockDevice", target.Name)
	}
	if counted && k.counted {
		f.since = block.Counters{Errors: grown(k.counters.Errors, counters.Errors), Timeouts: grown(k.counters.Timeouts, counters.Timeouts)}
	}
	f.report, f.err = smart.Ask(ctx, m.opts.Runner, target.Path)
	if ctx.Err() != nil {
		return
	}
	// Asking may itself fail commands that the disk does not know.
	if after, ok, err := m.opts.Counters.Counters(ctx, target.KernelName); err == nil && ok {
		k.counters, k.counted = after, true
	}
	h, ok := f.verdict()
	m.metrics.set(target.Name, f, counters, counted, h)
	if ok {
		m.opts.Disks.SetHealth(target.Name, h)
	}
}

// grown is by how much a counter has grown that may have begun anew.
func grown(before, after uint64) uint64 {
	if after < before {
		return after
	}
	return after - before
}
