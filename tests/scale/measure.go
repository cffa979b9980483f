// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

// follows is how many resources an agent follows at least: that it follows them all is
// waited for.
const follows = 8

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
		r.row.BindMedian = append(r.row.BindMedian, each.Median())
		r.row.BindP95 = append(r.row.BindP95, each.Quantile(0.95))
		r.say("%d claims in %.1f s", r.claims, took.Seconds())
	}
	if r.control == nil {
		return nil
	}
	peak, err := hollow.StatusKiB(r.provisioner.pid(), "VmHWM")
	r.row.ProvisionerPeakKiB = max(r.row.ProvisionerPeakKiB, peak)
	return err
}
