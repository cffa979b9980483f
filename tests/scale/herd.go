// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/berth-dev/berth/tests/scale/hollow"
)

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
