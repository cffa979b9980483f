// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"time"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

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
	r.say("%.3f requests and %.2f renewals of watches, %.0f bytes of watches per agent and minute: %s", r.row.IdleRequests.Mean(), r.row.IdleRenewals.Mean(), r.row.IdleWatch.Mean(), list(r.row.IdleWhat))
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
