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

	"github.com/berth-dev/berth/tests/samples"
)

// started says what was started how often per volume, the most frequent first. What was
// started less than once in twenty volumes is somebody else's.
func started(counts map[string]int, volumes int) string {
	var parts []string
	for _, name := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	}) {
		if each := float64(counts[name]) / float64(volumes); each >= 0.05 {
			parts = append(parts, fmt.Sprintf("%.2f %s", each, name))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// printResident prints what the node's processes hold after all that.
func printResident(out io.Writer, p plan, residentKiB map[string][]int) {
	fmt.Fprintf(out, "\n| process on %s | resident |\n| --- | --- |\n", p.node)
	for _, name := range slices.Sorted(maps.Keys(residentKiB)) {
		for _, kib := range residentKiB[name] {
			fmt.Fprintf(out, "| %s | %.1f MiB |\n", name, float64(kib)/1024)
		}
	}
}

// summary is what a run shows of a class as soon as it was measured.
func (r row) summary() string {
	s := fmt.Sprintf("Bound %.2f s, Running %.2f s, without a volume %.2f s", r.bound.Quantile(0.5), r.running.Quantile(0.5), r.bare.Quantile(0.5))
	if r.burst > 0 {
		s += fmt.Sprintf("; burst of %d: %.2f bound and %.2f deleted per second", r.burst, r.boundPerSecond, r.deletePerSecond)
	}
	return s
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
	seconds := func(s samples.Of) string { return fmt.Sprintf("%.2f s, p95 %.2f s", s.Quantile(0.5), s.Quantile(0.95)) }
	add(fmt.Sprintf("claim and pod created → claim Bound, median (n=%d)", p.single), func(r row) string { return seconds(r.bound) })
	add("claim and pod created → pod bound to its node, median", func(r row) string { return seconds(r.scheduled) })
	add("claim and pod created → pod Running, median", func(r row) string { return seconds(r.running) })
	add("pod without a volume → Running, in turn with it", func(r row) string { return seconds(r.bare) })
	add("API requests per creation (less a bare pod's)", func(r row) string { return fmt.Sprintf("%.1f", r.requestsCreate) })
	add("API requests per deletion", func(r row) string { return fmt.Sprintf("%.1f", r.requestsDelete) })
	if p.burst > 0 {
		add(fmt.Sprintf("burst of %d on one node, bound per second", p.burst), func(r row) string { return fmt.Sprintf("%.2f", r.boundPerSecond) })
		add("deleted per second", func(r row) string { return fmt.Sprintf("%.2f", r.deletePerSecond) })
		add("programs started on the node in the burst, creating", func(r row) string { return started(r.startedCreate, p.burst) })
		add("the same, deleting", func(r row) string { return started(r.startedDelete, p.burst) })
		add("API requests per claim of the burst, created / deleted", func(r row) string { return fmt.Sprintf("%.1f / %.1f", r.burstCreate, r.burstDelete) })
	}
	lines[1] = slices.Repeat([]string{"---"}, len(header))
	for _, line := range lines {
		fmt.Fprintln(out, "| "+strings.Join(line, " | ")+" |")
	}
}
