// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

// startEvery is the time between the starts of two hollow agents. All at once would be what no
// rollout does, and is what the herd is measured by.
const startEvery = 50 * time.Millisecond

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
