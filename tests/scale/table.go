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

// spread is the median, and between which values the others lie.
func (s samples) spread(format string, unit float64) string {
	text := fmt.Sprintf(format, s.median()/unit)
	least, most := fmt.Sprintf(format, s.quantile(0)/unit), fmt.Sprintf(format, s.quantile(1)/unit)
	if least == text && most == text {
		return text
	}
	return fmt.Sprintf("%s (%s to %s)", text, least, most)
}

// average is the mean, and between which values the minutes lie: renewals come in some
// minutes and not in others.
func (s samples) average(format string, unit float64) string {
	if len(s) == 1 {
		return fmt.Sprintf(format, s[0]/unit)
	}
	return fmt.Sprintf(format+" ("+format+" to "+format+")", s.mean()/unit, s.quantile(0)/unit, s.quantile(1)/unit)
}

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
	line("idle: requests per node and minute, without watches", func(of row) string { return of.IdleRequests.average("%.3f", 1) })
	line("idle: watches renewed per node and minute", func(of row) string { return of.IdleRenewals.average("%.2f", 1) })
	line("idle: both, the agent in a process of its own", func(of row) string { return fmt.Sprintf("%.2f", of.IdleReal) })
	line("idle: bytes of watches per node and minute", func(of row) string { return of.IdleWatch.average("%.0f", 1) })
	line("idle: bytes received per node and minute, with TLS and HTTP/2", func(of row) string { return of.IdleReceived.average("%.0f", 1) })
	line("idle: bytes sent per node and minute", func(of row) string { return of.IdleSent.average("%.0f", 1) })
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
	line("→ all bound", func(of row) string { return of.BindSeconds.spread("%.1f", 1) + " s" })
	line("→ the median claim bound", func(of row) string { return of.BindMedian.spread("%.1f", 1) + " s" })
	line("→ 95 % of them bound", func(of row) string { return of.BindP95.spread("%.1f", 1) + " s" })
	own("apiserver killed → ready again", func(of row) string { return of.HerdReady.spread("%.1f", 1) + " s" })
	own("→ all agents in sync", func(of row) string { return of.HerdSynced.spread("%.1f", 1) + " s" })
	own("→ the most requests in one second", func(of row) string { return of.HerdPeak.spread("%.0f", 1) })
	own("→ requests in the first minute", func(of row) string { return of.HerdMinute.spread("%.0f", 1) })
	own("→ of a node", func(of row) string { return of.HerdMinute.spread("%.1f", float64(of.Nodes-1)) })
	own("→ of these refused, to be asked again", func(of row) string { return of.HerdRefused.spread("%.0f", 1) })
	own("→ received by all agents, MiB", func(of row) string { return of.HerdReceived.spread("%.1f", 1<<20) })
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
