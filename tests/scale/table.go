// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// print prints the results as Markdown, with the growth from each number of nodes to the next.
func (r results) print(out io.Writer) {
	line := func(name string, cell func(row) string) {
		cells := []string{name}
		for _, of := range r {
			cells = append(cells, cell(of))
		}
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
	// own leaves out what is not known of a cluster that was there before.
	own := func(name string, cell func(row) string) {
		line(name, func(of row) string {
			if of.APIServerKiB == 0 {
				return "–"
			}
			return cell(of)
		})
	}
	line("", func(of row) string { return fmt.Sprintf("%d nodes", of.Nodes) })
	line("---", func(row) string { return "---" })
	line("volumes", func(of row) string { return fmt.Sprint(of.Volumes) })
	line("idle: requests per node and minute, without watches", func(of row) string { return of.IdleRequests.Average("%.3f", 1) })
	line("idle: watches renewed per node and minute", func(of row) string { return of.IdleRenewals.Average("%.2f", 1) })
	line("idle: both, the agent in a process of its own", func(of row) string { return fmt.Sprintf("%.2f", of.IdleReal) })
	line("idle: bytes of watches per node and minute", func(of row) string { return of.IdleWatch.Average("%.0f", 1) })
	line("idle: bytes received per node and minute, with TLS and HTTP/2", func(of row) string { return of.IdleReceived.Average("%.0f", 1) })
	line("idle: bytes sent per node and minute", func(of row) string { return of.IdleSent.Average("%.0f", 1) })
	own("idle: requests of the provisioner per minute", func(of row) string { return fmt.Sprintf("%.1f", of.IdleProvision) })
	line("idle: requests per minute by the apiserver's own count", func(of row) string { return fmt.Sprintf("%.0f", of.IdleServed) })
	own("idle: apiserver, of one processor", func(of row) string { return fmt.Sprintf("%.1f %%", of.IdleProcessor) })
	own("resident: provisioner", func(of row) string { return mib(float64(of.ProvisionerKiB)) })
	own("resident: provisioner, the most it ever had", func(of row) string { return mib(float64(of.ProvisionerPeakKiB)) })
	line("resident: one agent in a process of its own", func(of row) string { return mib(float64(of.AgentKiB)) })
	line("resident: one more agent in a process of many", func(of row) string { return mib(of.HollowKiB) })
	own("resident: apiserver", func(of row) string { return mib(float64(of.APIServerKiB)) })
	line("agents started, 20 per second → all ready", func(of row) string { return fmt.Sprintf("%.1f s", of.StartSeconds) })
	line("claims bound per second, until the volumes were there", func(of row) string { return fmt.Sprintf("%.1f", of.FillPerSecond) })
	line("claims created at once", func(of row) string { return fmt.Sprint(of.Claims) })
	line("→ all bound", func(of row) string { return of.BindSeconds.Spread("%.1f", 1) + " s" })
	line("→ the median claim bound", func(of row) string { return of.BindMedian.Spread("%.1f", 1) + " s" })
	line("→ 95 % of them bound", func(of row) string { return of.BindP95.Spread("%.1f", 1) + " s" })
	own("apiserver killed → ready again", func(of row) string { return of.HerdReady.Spread("%.1f", 1) + " s" })
	own("→ all agents in sync", func(of row) string { return of.HerdSynced.Spread("%.1f", 1) + " s" })
	own("→ the most requests in one second", func(of row) string { return of.HerdPeak.Spread("%.0f", 1) })
	own("→ requests in the first minute", func(of row) string { return of.HerdMinute.Spread("%.0f", 1) })
	own("→ of a node", func(of row) string { return of.HerdMinute.Spread("%.1f", float64(of.Nodes-1)) })
	own("→ of these refused, to be asked again", func(of row) string { return of.HerdRefused.Spread("%.0f", 1) })
	own("→ received by all agents, MiB", func(of row) string { return of.HerdReceived.Spread("%.1f", 1<<20) })
	line("measured on", func(of row) string { return of.Date })
	for _, of := range r {
		fmt.Fprintf(out, "\nWhat %d agents asked for until they were ready: %s.\n", of.Nodes-1, list(of.StartWhat))
		fmt.Fprintf(out, "What they asked for in %d idle minutes: %s.\n", len(of.IdleRequests), list(of.IdleWhat))
	}
}

func mib(kib float64) string { return fmt.Sprintf("%.1f MiB", kib/1024) }

// list is the most frequent first.
func list(counts map[string]int) string {
	var parts []string
	for _, what := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[what], what))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}
