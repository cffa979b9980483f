// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package monitoring tests of deploy/monitoring what promtool does not: the dashboard's queries
// with Prometheus' parser, that each alert is explained and tested, and that both ask only for
// metrics that the programs have. Those are the tables of docs/reference/metrics.md, which unit tests of
// the programs hold against what they register. It is a module of its own so that the product
// does not need Prometheus.
package monitoring

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	metricsPage = "../../docs/reference/metrics.md"
	guide       = "../../docs/guides/monitor.md"
	rulesFile   = "../../deploy/monitoring/rules.yaml"
	dashboard   = "../../deploy/monitoring/dashboard.json"
	testsFile   = "../../deploy/monitoring/tests/rules.yaml"
)

// metric is one of the tables.
type metric struct {
	kind   string
	labels []string
}

// targetLabels are those that Prometheus adds to what it scrapes, as deploy/monitoring tells
// it to.
var targetLabels = []string{"job", "instance", "namespace", "pod", "node"}

var codeSpan = regexp.MustCompile("`([a-z_]+)`")

// documented reads the tables. up is Prometheus' own.
func documented(t *testing.T) map[string]metric {
	t.Helper()
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string]metric{
		"up":                            {kind: "gauge"},
		"process_resident_memory_bytes": {kind: "gauge"},
		"rest_client_requests_total":    {kind: "counter", labels: []string{"code", "method", "host"}},
	}
	for line := range strings.SplitSeq(string(page), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 6 {
			continue
		}
		m := metric{kind: strings.TrimSpace(cells[2])}
		for _, match := range codeSpan.FindAllStringSubmatch(cells[3], -1) {
			m.labels = append(m.labels, match[1])
		}
		for _, match := range codeSpan.FindAllStringSubmatch(cells[1], -1) {
			metrics[match[1]] = m
		}
	}
	if len(metrics) < 30 {
		t.Fatalf("%s has %d metrics", metricsPage, len(metrics))
	}
	return metrics
}

// problems says what in an expression asks for something that is not exported.
func problems(expr parser.Expr, metrics map[string]metric) []string {
	var found []string
	has := map[string]bool{}
	for _, name := range targetLabels {
		has[name] = true
	}
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		name := selector.Name
		m, ok := metrics[name]
		if base, isPart := partOf(name, metrics); !ok && isPart {
			m, ok = metric{kind: "counter", labels: append([]string{"le"}, metrics[base].labels...)}, true
		}
		if !ok {
			found = append(found, "no program exports "+name)
			return nil
		}
		for _, label := range m.labels {
			has[label] = true
		}
		for _, matcher := range selector.LabelMatchers {
			if matcher.Name != labels.MetricName && !slices.Contains(m.labels, matcher.Name) && !slices.Contains(targetLabels, matcher.Name) {
				found = append(found, fmt.Sprintf("%s has no label %s", name, matcher.Name))
			}
		}
		for _, outer := range path {
			call, ok := outer.(*parser.Call)
			if !ok {
				continue
			}
			counts := slices.Contains([]string{"rate", "irate", "increase"}, call.Func.Name)
			if counts != (m.kind == "counter") && (counts || slices.Contains([]string{"delta", "deriv", "changes", "max_over_time"}, call.Func.Name)) {
				found = append(found, fmt.Sprintf("%s of %s, which is a %s", call.Func.Name, name, m.kind))
			}
		}
		return nil
	})
	// What is grouped by may come from any metric of the expression.
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		aggregate, ok := node.(*parser.AggregateExpr)
		if !ok {
			return nil
		}
		for _, label := range aggregate.Grouping {
			if !has[label] {
				found = append(found, "no metric here has the label "+label)
			}
		}
		return nil
	})
	return found
}

// partOf says of which histogram a series is a part.
func partOf(name string, metrics map[string]metric) (string, bool) {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && metrics[base].kind == "histogram" {
			return base, true
		}
	}
	return "", false
}

func TestProblemsAreFound(t *testing.T) {
	t.Parallel()
	metrics := documented(t)
	for expr, want := range map[string]string{
		`berth_pool_redy == 0`:                            "no program exports berth_pool_redy",
		`berth_pool_ready{pol="x"} == 0`:                  "berth_pool_ready has no label pol",
		`rate(berth_pool_free_bytes[5m])`:                 "rate of berth_pool_free_bytes, which is a gauge",
		`sum by (disk) (berth_disk_healthy)`:              "no metric here has the label disk",
		`rate(berth_pool_ready_bucket[5m])`:               "no program exports berth_pool_ready_bucket",
		`changes(berth_disk_wipes_total[5m])`:             "changes of berth_disk_wipes_total, which is a counter",
		`rate(berth_csi_call_duration_seconds[5m])`:       "rate of berth_csi_call_duration_seconds, which is a histogram",
		`min by (node, pool) (berth_pool_ready) == 0`:     "",
		`rate(berth_csi_call_duration_seconds_sum[5m])`:   "",
		`sum by (le) (rate(workqueue_depth_bucket[1m]))`:  "no program exports workqueue_depth_bucket",
		`sum by (node) (up{job="berth-node-agent"}) == 0`: "",
	} {
		parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		got := problems(parsed, metrics)
		if want == "" && len(got) > 0 || want != "" && !slices.Contains(got, want) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
