// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

// column of a table; those that are wide are shown with -o wide only.
type column struct {
	title string
	wide  bool
}

// printList writes a list: as a table with one line for each, or as JSON.
func printList[T any](p *plugin, columns []column, items []T, cells func(T) []string) error {
	if p.o.Output == "json" {
		return p.json(items)
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 3, ' ', 0) //nolint:mnd // as kubectl's own tables
	line := func(cells []string) {
		var shown []string
		for i, cell := range cells {
			if !columns[i].wide || p.o.Output == "wide" {
				shown = append(shown, cell)
			}
		}
		fmt.Fprintln(w, strings.Join(shown, "\t"))
	}
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	line(titles)
	for _, item := range items {
		line(cells(item))
	}
	return w.Flush()
}

func (p *plugin) json(value any) error {
	encoder := json.NewEncoder(p.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// orNone stands for what is empty in a table.
func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// bytes writes a size as people read it, rounded down.
func bytes(n int64) string {
	const kibi = 1 << 10
	if n < kibi {
		return fmt.Sprintf("%d", n)
	}
	value, unit := float64(n), ""
	for _, next := range []string{"Ki", "Mi", "Gi", "Ti", "Pi"} {
		if value < kibi {
			break
		}
		value, unit = value/kibi, next
	}
	if value < 10 && value != float64(int64(value)) { //nolint:mnd // one digit behind the point where there is one before
		return fmt.Sprintf("%.1f%s", float64(int64(value*10))/10, unit) //nolint:mnd // rounded down
	}
	return fmt.Sprintf("%d%s", int64(value), unit)
}
