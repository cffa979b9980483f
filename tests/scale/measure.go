// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

// follows is how many resources an agent follows at least: that it follows them all is
// waited for.
const follows = 8

// startEvery is the time between the starts of two hollow agents. All at once would be what no
// rollout does, and is what the herd is measured by.
const startEvery = 50 * time.Millisecond

// run is one number of nodes being measured.
type run struct {
	plan
	nodes int
	dir   string
	row   row

	control     *controlPlane
	cluster     *cluster
	agents      *hollowAgents
	provisioner *program
	real        *program
	host        *process
	// heard is how much of each log was shown.
	heard map[string]int
}

// measure measures one number of nodes on a fresh control plane, or on the one that it was
// given, and leaves nothing behind.
func measure(ctx context.Context, p plan, nodes int) (_ row, err error) {
	dir, err := workDir(p.dir)
	if err != nil {
		return row{}, err
	}
	r := &run{plan: p, nodes: nodes, dir: dir, heard: map[string]int{}, row: row{Date: time.Now().Format(time.DateOnly), Nodes: nodes, Volumes: nodes * p.volumes, Claims: p.claims}}
	defer func() { err = errors.Join(err, r.cleanUp(err)) }()
	type step struct {
		what string
		do   func(context.Context) error
	}
	steps := []step{
		{"control plane", r.startControlPlane},
		{"nodes and agents", r.startAgents},
		{"volumes", r.guarded(r.fill)},
		{"nothing happens", r.guarded(r.idle)},
		{"apiserver killed", r.guarded(r.herd)},
		{"claims bound", r.guarded(r.bind)},
	}
	if p.kubeconfig != "" {
		steps = []step{
			{"connect", r.connect},
			{"nodes and agents", r.startAgents},
			{"volumes", r.guarded(r.fill)},
			{"nothing happens", r.guarded(r.idle)},
			{"claims bound", r.guarded(r.bind)},
			{"leave the cluster as it was", r.leave},
		}
	}
	for _, step := range steps {
		began := time.Now()
		r.say("%s", step.what)
		if err := step.do(ctx); err != nil {
			return r.row, fmt.Errorf("%d nodes, %s: %w", nodes, step.what, err)
		}
		r.say("%s: done in %s", step.what, time.Since(began).Round(time.Second))
		if err := r.complaints(); err != nil {
			return r.row, err
		}
	}
	return r.row, nil
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %4d nodes  %s\n", time.Now().Format(time.TimeOnly), r.nodes, fmt.Sprintf(format, args...))
}

// poolPath is where the volumes are on each host.
func (r *run) poolPath() string { return filepath.Join(r.dir, "pool") }

// stopAgents ends the agents. A repeated call does nothing.
func (r *run) stopAgents() {
	if r.real != nil {
		r.real.stop(3 * time.Second)
	}
	if r.agents != nil {
		r.agents.stop(0)
	}
	if r.host != nil {
		r.host.stop(0)
	}
}

// cleanUp ends all processes and removes their files; it shows the ends of their logs after a
// failure.
func (r *run) cleanUp(failure error) error {
	if failure != nil && r.kubeconfig != "" && r.agents != nil {
		// Also after an interrupt; another one ends that too.
		if err := r.leave(context.Background()); err != nil {
			r.say("what is called scale-… and berth-scale is left in the cluster: %v", err)
		}
	}
	if r.provisioner != nil {
		r.provisioner.stop(3 * time.Second)
	}
	r.stopAgents()
	if r.control != nil {
		r.control.stop()
	}
	if failure != nil {
		r.say("%v", failure)
		for _, log := range []string{"hollow.log", "provisioner/log", "agent/log", "kube-apiserver.log"} {
			if said := tail(filepath.Join(r.dir, log)); said != "" {
				fmt.Fprintf(os.Stderr, "--- the end of %s\n%s\n", log, said)
			}
		}
	}
	return os.RemoveAll(r.dir)
}

// complaint is what is told of a line of a log: what failed, not of which node.
var complaint = regexp.MustCompile(`level=(?:WARN|ERROR) msg=("[^"]*"|\S+)`)

// complaints shows what the agents and the provisioner have logged since it was called last.
func (r *run) complaints() error {
	for _, log := range []string{"hollow.log", "agent/log", "provisioner/log"} {
		content, err := os.ReadFile(filepath.Join(r.dir, log))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		counts, examples := map[string]int{}, map[string]string{}
		for line := range strings.Lines(string(content[r.heard[log]:])) {
			if match := complaint.FindStringSubmatch(line); match != nil {
				counts[match[1]]++
				examples[match[1]] = line[:min(len(line), 300)]
			}
		}
		r.heard[log] = len(content)
		for what, n := range counts {
			r.say("  %s: %d times %s: %s", log, n, what, strings.TrimSpace(examples[what]))
		}
	}
	return nil
}

func (r *run) startControlPlane(ctx context.Context) (err error) {
	if r.control, err = newControlPlane(ctx, r.assets, r.dir); err != nil {
		return err
	}
	if r.cluster, err = newCluster(r.control.admin); err != nil {
		return err
	}
	if err := r.cluster.install(ctx, r.manifest); err != nil {
		return err
	}
	if err := r.cluster.prepare(ctx, r.poolPath()); err != nil {
		return err
	}
	if r.provisioner, err = newProvisioner(ctx, r.cluster, filepath.Join(r.binaries, "provisioner"), filepath.Join(r.dir, "provisioner")); err != nil {
		return err
	}
	if err := r.provisioner.start(); err != nil {
		return err
	}
	return r.provisioner.awaitLead(ctx)
}

// startAgents starts the agents of all nodes but the last in one process, and that of the
// last in its own.
func (r *run) startAgents(ctx context.Context) error {
	nodes, err := r.cluster.join(ctx, r.nodes)
	if err != nil {
		return err
	}
	last := nodes[len(nodes)-1]
	r.real, r.host, err = newAgent(r.cluster, filepath.Join(r.binaries, "node-agent"), filepath.Join(r.dir, "agent"), last)
	if err != nil {
		return err
	}
	if err := hollow.Register(ctx, filepath.Join(r.dir, "agent", "berth.dev-reg.sock")); err != nil {
		return err
	}
	began := time.Now()
	r.agents, err = startHollow(hollow.Spec{
		Dir: filepath.Join(r.dir, "n"), Server: r.cluster.config.Host, CA: r.cluster.config.CAData, Namespace: namespace,
		StartEvery: startEvery, Follows: follows, Nodes: nodes[:len(nodes)-1],
	}, filepath.Join(r.dir, "hollow.log"))
	if err != nil {
		return err
	}
	if r.control != nil {
		// An interrupt does not wait for its answer. A cluster that was given needs them to the end.
		context.AfterFunc(ctx, func() { r.agents.stop(0) })
	}
	shown := time.Now()
	var report hollow.Report
	err = until(ctx, "all agents are ready", 20*time.Minute, r.processes(), func() (bool, error) {
		if report, err = r.agents.report(false); err != nil {
			return false, err
		}
		ready, err := r.real.ready(ctx)
		if err != nil || report.Ready < r.nodes-1 || report.Synced < r.nodes-1 || !ready {
			if time.Since(shown) > 15*time.Second {
				shown = time.Now()
				r.say("%d ready, %d follow everything, %d MiB", report.Ready, report.Synced, report.ResidentKiB/1024)
			}
			return false, err
		}
		return true, nil
	})
	r.row.StartSeconds = time.Since(began).Seconds()
	r.row.StartWhat = report.Traffic.Requests
	r.say("%d MiB more, for which they asked: %s", (report.ResidentKiB-report.BaseKiB)/1024, list(report.Traffic.Requests))
	return err
}

// processes are those that must run.
func (r *run) processes() []*process {
	running := []*process{r.agents.process, r.real.process, r.host}
	if r.control != nil {
		running = append(running, r.control.etcd)
	}
	return running
}

// guarded does something until one of the processes ends. It plays kubelet for the provisioner,
// which ends when it cannot renew its lease in time, as on a machine without a processor to
// spare.
func (r *run) guarded(do func(context.Context) error) func(context.Context) error {
	return func(parent context.Context) error {
		ctx, cancel := context.WithCancelCause(parent)
		defer cancel(nil)
		watching := make(chan struct{})
		go func() {
			defer close(watching)
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				for _, p := range r.processes() {
					if err := p.err(); err != nil {
						cancel(err)
					}
				}
				if r.provisioner == nil || r.provisioner.err() == nil {
					continue
				}
				r.row.ProvisionerEnds++
				r.say("the provisioner has ended and is started again: %s", lastLine(r.provisioner.log))
				if err := r.provisioner.start(); err != nil {
					cancel(err)
				}
			}
		}()
		err := do(ctx)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		<-watching
		return err
	}
}

// fill makes the volumes that are there while the rest is measured, as everybody makes them.
func (r *run) fill(ctx context.Context) error {
	shown := time.Now() // progress is called by one at a time
	b := &batch{cluster: r.cluster, controllers: r.control == nil, name: "fill", count: r.row.Volumes, nodes: r.nodes, underWay: 500, progress: func(bound int) {
		if time.Since(shown) > 30*time.Second {
			shown = time.Now()
			r.say("%d of %d volumes", bound, r.row.Volumes)
		}
	}}
	took, _, err := b.bind(ctx)
	if err != nil {
		return err
	}
	r.row.FillPerSecond = float64(r.row.Volumes) / took.Seconds()
	return r.settle(ctx)
}

// settle waits until no agent has written anything for a while: numbers of capacity are
// written some time after the volumes.
func (r *run) settle(ctx context.Context) error {
	const quiet = 30 * time.Second
	last, since := -1, time.Now()
	return until(ctx, "the agents write nothing for "+quiet.String(), 10*time.Minute, r.processes(), func() (bool, error) {
		report, err := r.agents.report(false)
		if err != nil {
			return false, err
		}
		writes := 0
		for what, n := range report.Traffic.Requests {
			if verb, _, _ := strings.Cut(what, " "); verb != "watch" && verb != "list" && verb != "get" {
				writes += n
			}
		}
		if writes != last {
			last, since = writes, time.Now()
		}
		return time.Since(since) > quiet, nil
	})
}

// reading is what is counted at one moment of the idle time.
type reading struct {
	at                                  time.Time
	report                              hollow.Report
	served, own, real, provisioner, cpu float64
}

func (r *run) read(ctx context.Context) (x reading, err error) {
	x.at = time.Now()
	if x.report, err = r.agents.report(false); err != nil {
		return x, err
	}
	if x.real, err = r.real.metric(ctx, "rest_client_requests_total"); err != nil {
		return x, err
	}
	if r.control != nil {
		if x.provisioner, err = r.provisioner.metric(ctx, "rest_client_requests_total"); err != nil {
			return x, err
		}
		if x.cpu, err = r.control.apiserver.cpuSeconds(); err != nil {
			return x, err
		}
	}
	if x.served, err = r.cluster.served(ctx); err != nil {
		return x, err
	}
	x.own = float64(r.cluster.own.total())
	return x, nil
}

// idle measures minutes in which nobody asks for anything and kubelets report.
func (r *run) idle(ctx context.Context) error {
	beating, stop := context.WithCancel(ctx)
	beats := make(chan error, 1)
	go func() { beats <- r.cluster.beat(beating, r.nodes) }()
	defer func() { stop(); <-beats }()

	first, err := r.read(ctx)
	if err != nil {
		return err
	}
	agents := float64(r.nodes - 1)
	r.row.IdleWhat = map[string]int{}
	before := first
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for range r.minutes {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-beats:
			beats <- nil
			return err
		case <-tick.C:
		}
		now, err := r.read(ctx)
		if err != nil {
			return err
		}
		perAgent := func(n float64) float64 { return n / agents / now.at.Sub(before.at).Minutes() }
		var requests, renewals, watched float64
		for what, n := range now.report.Traffic.Requests {
			n -= before.report.Traffic.Requests[what]
			if n == 0 {
				continue
			}
			r.row.IdleWhat[what] += n
			if strings.HasPrefix(what, "watch ") {
				renewals += float64(n)
			} else {
				requests += float64(n)
			}
		}
		for what, n := range now.report.Traffic.WatchBytes {
			watched += float64(n - before.report.Traffic.WatchBytes[what])
		}
		r.row.IdleRequests = append(r.row.IdleRequests, perAgent(requests))
		r.row.IdleRenewals = append(r.row.IdleRenewals, perAgent(renewals))
		r.row.IdleWatch = append(r.row.IdleWatch, perAgent(watched))
		r.row.IdleReceived = append(r.row.IdleReceived, perAgent(float64(now.report.Traffic.ReceivedBytes-before.report.Traffic.ReceivedBytes)))
		r.row.IdleSent = append(r.row.IdleSent, perAgent(float64(now.report.Traffic.SentBytes-before.report.Traffic.SentBytes)))
		before = now
	}
	minutes := before.at.Sub(first.at).Minutes()
	r.row.IdleReal = (before.real - first.real) / minutes
	r.row.IdleProvision = (before.provisioner - first.provisioner) / minutes
	r.row.IdleServed = (before.served - first.served - (before.own - first.own)) / minutes
	r.row.IdleProcessor = (before.cpu - first.cpu) / (minutes * 60) * 100
	r.say("%.3f requests and %.2f renewals of watches, %.0f bytes of watches per agent and minute: %s", r.row.IdleRequests.mean(), r.row.IdleRenewals.mean(), r.row.IdleWatch.mean(), list(r.row.IdleWhat))
	return r.memory()
}

func (r *run) memory() error {
	report, err := r.agents.report(true)
	if err != nil {
		return err
	}
	r.row.HollowKiB = float64(report.ResidentKiB-report.BaseKiB) / float64(r.nodes-1)
	if r.row.AgentKiB, err = hollow.ResidentKiB(r.real.pid()); err != nil || r.control == nil {
		return err
	}
	for _, of := range []struct {
		pid   int
		field string
		to    *int
	}{
		{r.provisioner.pid(), "VmRSS", &r.row.ProvisionerKiB},
		{r.provisioner.pid(), "VmHWM", &r.row.ProvisionerPeakKiB},
		{r.control.apiserver.pid(), "VmRSS", &r.row.APIServerKiB},
	} {
		if *of.to, err = hollow.StatusKiB(of.pid, of.field); err != nil {
			return err
		}
	}
	return nil
}

// herd kills the apiserver and starts it again at once, so that all come back together.
func (r *run) herd(ctx context.Context) error {
	for range r.rounds {
		if err := r.restartAPIServer(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) restartAPIServer(ctx context.Context) error {
	before, err := r.agents.report(false)
	if err != nil {
		return err
	}
	// The counts are by the second.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Second))):
	}
	killed := time.Now()
	r.control.apiserver.stop(0)
	if err := r.control.startAPIServer(ctx); err != nil {
		return err
	}
	ready := time.Since(killed)
	var report hollow.Report
	var first int64
	err = until(ctx, "all agents follow everything again", 15*time.Minute, []*process{r.control.etcd, r.control.apiserver, r.agents.process}, func() (bool, error) {
		if report, err = r.agents.report(false); err != nil {
			return false, err
		}
		first = math.MaxInt64
		for second := range report.Traffic.PerSecond {
			if second >= killed.Unix() {
				first = min(first, second)
			}
		}
		if first == math.MaxInt64 || report.Synced < r.nodes-1 || report.SyncedAt.Before(killed) {
			return false, fmt.Errorf("%d of %d do", report.Synced, r.nodes-1)
		}
		// A watch that begins where the apiserver was before may be refused by what comes.
		return time.Since(report.SyncedAt) > 10*time.Second && time.Now().Unix() > first+60, nil
	})
	if err != nil {
		return err
	}
	var peak, minute int
	for second, n := range report.Traffic.PerSecond {
		if second < killed.Unix() {
			continue
		}
		peak = max(peak, n)
		if second < first+60 {
			minute += n
		}
	}
	r.row.HerdReady = append(r.row.HerdReady, ready.Seconds())
	r.row.HerdSynced = append(r.row.HerdSynced, report.SyncedAt.Sub(killed).Seconds())
	r.row.HerdPeak = append(r.row.HerdPeak, float64(peak))
	r.row.HerdMinute = append(r.row.HerdMinute, float64(minute))
	r.row.HerdRefused = append(r.row.HerdRefused, float64(refused(report.Traffic)-refused(before.Traffic)))
	r.row.HerdReceived = append(r.row.HerdReceived, float64(report.Traffic.ReceivedBytes-before.Traffic.ReceivedBytes))
	r.say("ready after %.1f s, in sync after %.1f s, %d requests in one second, %d in a minute", ready.Seconds(), report.SyncedAt.Sub(killed).Seconds(), peak, minute)
	for what, n := range report.Traffic.Requests {
		if n -= before.Traffic.Requests[what]; n > 0 {
			r.say("  %d %s", n, what)
		}
	}
	return r.provisioner.awaitLead(ctx)
}

// refused are the requests that were answered with a no. An apiserver that begins says so
// while it does not know its rights (403) or fills its caches (429).
func refused(t hollow.Traffic) int {
	sum := 0
	for code, n := range t.Codes {
		if code >= 400 {
			sum += n
		}
	}
	return sum
}

// bind measures how long a number of claims takes that does not depend on that of nodes.
func (r *run) bind(ctx context.Context) error {
	for i := range r.rounds {
		if err := r.settle(ctx); err != nil {
			return err
		}
		b := &batch{cluster: r.cluster, controllers: r.control == nil, name: fmt.Sprintf("round-%d", i), count: r.claims, nodes: r.nodes, underWay: r.claims}
		took, each, err := b.bind(ctx)
		if err != nil {
			return err
		}
		r.row.BindSeconds = append(r.row.BindSeconds, took.Seconds())
		r.row.BindMedian = append(r.row.BindMedian, each.median())
		r.row.BindP95 = append(r.row.BindP95, each.quantile(0.95))
		r.say("%d claims in %.1f s", r.claims, took.Seconds())
	}
	if r.control == nil {
		return nil
	}
	peak, err := hollow.StatusKiB(r.provisioner.pid(), "VmHWM")
	r.row.ProvisionerPeakKiB = max(r.row.ProvisionerPeakKiB, peak)
	return err
}
