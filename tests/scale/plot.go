// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"math"
	"strings"
)

// The sizes of the plot, in pixels. Each panel has a frame with room for its title and the
// labels of its axes.
const (
	panelWidth, panelHeight = 360, 280
	marginLeft, marginRight = 56, 16
	marginTop, marginBottom = 74, 36
)

// curve is one line of a panel.
type curve struct {
	name  string
	value func(row) float64
}

// panel has both axes logarithmic: what grows with the nodes is a line that rises by one
// decade in each, and what does not is level.
type panel struct {
	title  string
	curves []curve
}

var panels = []panel{
	{"idle, per node and minute", []curve{
		{"bytes of watches", func(r row) float64 { return r.IdleWatch.Mean() }},
		{"requests, with watches renewed", func(r row) float64 { return r.IdleRequests.Mean() + r.IdleRenewals.Mean() }},
	}},
	{"resident, MiB", []curve{
		{"provisioner", func(r row) float64 { return float64(r.ProvisionerKiB) / 1024 }},
		{"one agent", func(r row) float64 { return float64(r.AgentKiB) / 1024 }},
		{"apiserver", func(r row) float64 { return float64(r.APIServerKiB) / 1024 }},
	}},
	{"claims at once over all nodes, seconds", []curve{
		{"all bound", func(r row) float64 { return r.BindSeconds.Median() }},
		{"the median claim", func(r row) float64 { return r.BindMedian.Median() }},
	}},
	{"apiserver killed and started", []curve{
		{"seconds until all are in sync", func(r row) float64 { return r.HerdSynced.Median() }},
		{"seconds until it is ready", func(r row) float64 { return r.HerdReady.Median() }},
		{"requests in the busiest second", func(r row) float64 { return r.HerdPeak.Median() }},
	}},
}

// colours are told apart by those who see no red or green, too.
var colours = []string{"#0b6e99", "#c2570c", "#6b7280"}

// plot draws the panels, two beside each other, as SVG.
func (r results) plot() []byte {
	var out bytes.Buffer
	width, height := 2*panelWidth, (len(panels)+1)/2*panelHeight
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	for i, p := range panels {
		fmt.Fprintf(&out, `<g transform="translate(%d,%d)">`+"\n", i%2*panelWidth, i/2*panelHeight)
		p.draw(&out, r)
		fmt.Fprintln(&out, "</g>")
	}
	fmt.Fprintln(&out, "</svg>")
	return out.Bytes()
}

// axis maps values to pixels, logarithmically, over whole decades.
type axis struct{ from, to, least, most float64 }

func newAxis(values []float64, from, to float64) axis {
	a := axis{from: from, to: to, least: math.Inf(1), most: math.Inf(-1)}
	for _, v := range values {
		if v > 0 { // nothing else has a logarithm
			a.least, a.most = min(a.least, math.Floor(math.Log10(v))), max(a.most, math.Ceil(math.Log10(v)))
		}
	}
	if math.IsInf(a.least, 0) {
		a.least, a.most = 0, 1
	}
	if a.least == a.most {
		a.most++
	}
	return a
}

func (a axis) at(v float64) float64 {
	return a.from + (math.Log10(v)-a.least)/(a.most-a.least)*(a.to-a.from)
}

func (a axis) decades() []float64 {
	var ticks []float64
	for d := a.least; d <= a.most; d++ {
		ticks = append(ticks, math.Pow(10, d))
	}
	return ticks
}

func (p panel) draw(out *bytes.Buffer, rows results) {
	var nodes, values []float64
	for _, r := range rows {
		nodes = append(nodes, float64(r.Nodes))
		for _, c := range p.curves {
			values = append(values, c.value(r))
		}
	}
	x := newAxis(nodes, marginLeft, panelWidth-marginRight)
	y := newAxis(values, panelHeight-marginBottom, marginTop)
	fmt.Fprintf(out, `<text x="%d" y="16" font-weight="bold">%s</text>`+"\n", marginLeft, p.title)
	for _, v := range x.decades() {
		fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#e5e7eb"/>`+"\n", x.at(v), marginTop, x.at(v), panelHeight-marginBottom)
		fmt.Fprintf(out, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x.at(v), panelHeight-marginBottom+14, number(v))
	}
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">nodes</text>`+"\n", panelWidth-marginRight, panelHeight-6)
	for _, v := range y.decades() {
		fmt.Fprintf(out, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#e5e7eb"/>`+"\n", marginLeft, y.at(v), panelWidth-marginRight, y.at(v))
		fmt.Fprintf(out, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", marginLeft-6, y.at(v)+4, number(v))
	}
	for i, c := range p.curves {
		var points []string
		var dots bytes.Buffer
		for _, r := range rows {
			v := c.value(r)
			if v <= 0 {
				continue
			}
			px, py := x.at(float64(r.Nodes)), y.at(v)
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(&dots, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%d nodes: %s</title></circle>`+"\n", px, py, colours[i], r.Nodes, number(v))
		}
		fmt.Fprintf(out, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>`+"\n", colours[i], strings.Join(points, " "))
		out.Write(dots.Bytes())
		fmt.Fprintf(out, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", marginLeft, 32+14*i, colours[i], c.name)
	}
}

// number is short.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.3gk", v/1e3)
	}
	return fmt.Sprintf("%.3g", v)
}
