// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// samples are measurements of one thing.
type samples []float64

// quantile is the smallest sample that at least the share q of all do not exceed.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	ordered := slices.Clone(s)
	slices.Sort(ordered)
	i := int(q*float64(len(ordered))+0.999999) - 1
	return ordered[min(max(i, 0), len(ordered)-1)]
}

func printRows(out io.Writer, p plan, rows []row) {
	header := []string{""}
	for _, r := range rows {
		header = append(header, r.class)
	}
	lines := [][]string{header, nil}
	add := func(name string, cell func(row) string) {
		line := []string{name}
		for _, r := range rows {
			line = append(line, cell(r))
		}
		lines = append(lines, line)
	}
	seconds := func(s samples) string { return fmt.Sprintf("%.2f s, p95 %.2f s", s.quantile(0.5), s.quantile(0.95)) }
	add(fmt.Sprintf("claim and pod created → claim Bound, median (n=%d)", p.single), func(r row) string { return seconds(r.bound) })
	add("claim and pod created → pod Running, median", func(r row) string { return seconds(r.running) })
	add("pod without a volume → Running, in turn with it", func(r row) string { return seconds(r.bare) })
	add("API requests per creation (less a bare pod's)", func(r row) string { return fmt.Sprintf("%.1f", r.requestsCreate) })
	add("API requests per deletion", func(r row) string { return fmt.Sprintf("%.1f", r.requestsDelete) })
	if p.burst > 0 {
		add(fmt.Sprintf("burst of %d on one node, bound per second", p.burst), func(r row) string { return fmt.Sprintf("%.2f", r.boundPerSecond) })
		add("deleted per second", func(r row) string { return fmt.Sprintf("%.2f", r.deletePerSecond) })
		add("API requests per claim of the burst, created / deleted", func(r row) string { return fmt.Sprintf("%.1f / %.1f", r.burstCreate, r.burstDelete) })
	}
	lines[1] = slices.Repeat([]string{"---"}, len(header))
	for _, line := range lines {
		fmt.Fprintln(out, "| "+strings.Join(line, " | ")+" |")
	}
}
