// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"context"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"go.yaml.in/yaml/v3"
)

// unitTests is the part of the format of `promtool test rules` that deploy/monitoring/tests
// uses. promtool itself reads the same file; here the rules are evaluated by Prometheus'
// engine alone, for promtool is linked with the clients of every cloud and takes minutes to
// build.
type unitTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []struct {
		Name        string         `yaml:"name"`
		Interval    model.Duration `yaml:"interval"`
		InputSeries []struct {
			Series string `yaml:"series"`
			Values string `yaml:"values"`
		} `yaml:"input_series"`
		AlertRuleTests []struct {
			EvalTime  model.Duration `yaml:"eval_time"`
			AlertName string         `yaml:"alertname"`
			ExpAlerts []firing       `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	} `yaml:"tests"`
}

// firing is an alert that fires.
type firing struct {
	ExpLabels      map[string]string `yaml:"exp_labels"`
	ExpAnnotations map[string]string `yaml:"exp_annotations"`
}

func readUnitTests(t *testing.T, file string) unitTests {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tests unitTests
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&tests); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return tests
}

// evaluator evaluates alerts over series.
type evaluator struct {
	engine *promql.Engine
	series series
	parser parser.Parser
}

func newEvaluator() *evaluator {
	p := parser.NewParser(parser.Options{})
	return &evaluator{parser: p, engine: promql.NewEngine(promql.EngineOpts{
		Logger: slog.New(slog.DiscardHandler), MaxSamples: 1e6, Timeout: time.Minute, Parser: p,
		EnableAtModifier: true, EnableNegativeOffset: true,
	})}
}

func at(d model.Duration) time.Time { return time.Unix(0, 0).Add(time.Duration(d)) }

func (e *evaluator) query(t *testing.T, expr string, when time.Time) promql.Vector {
	t.Helper()
	query, err := e.engine.NewInstantQuery(t.Context(), e.series, promql.NewPrometheusQueryOpts(false, 0), expr, when)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer query.Close()
	result := query.Exec(t.Context())
	vector, err := result.Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(vector)
}

// firing returns the alerts of a rule that fire at an instant, with those evaluations before
// it that an alert's `for` counts.
func (e *evaluator) firing(t *testing.T, rule rulefmt.Rule, interval, until model.Duration) []firing {
	t.Helper()
	active := map[uint64]time.Time{}
	var last promql.Vector
	end := at(until)
	for when := at(0); !when.After(end); when = when.Add(time.Duration(interval)) {
		last = e.query(t, rule.Expr, when)
		now := map[uint64]time.Time{}
		for _, sample := range last {
			key := sample.Metric.Hash()
			now[key] = when
			if since, ok := active[key]; ok {
				now[key] = since
			}
		}
		active = now
	}
	var fire []firing
	for _, sample := range last {
		if end.Sub(active[sample.Metric.Hash()]) < time.Duration(rule.For) {
			continue
		}
		f := firing{ExpLabels: map[string]string{}, ExpAnnotations: map[string]string{}}
		sample.Metric.Range(func(l labels.Label) {
			if l.Name != labels.MetricName {
				f.ExpLabels[l.Name] = l.Value
			}
		})
		plain := maps.Clone(f.ExpLabels)
		maps.Copy(f.ExpLabels, rule.Labels)
		for name, text := range rule.Annotations {
			f.ExpAnnotations[name] = expand(t, text, plain, sample.F)
		}
		fire = append(fire, f)
	}
	return fire
}

// expand fills in a template as Prometheus does.
func expand(t *testing.T, text string, of map[string]string, value float64) string {
	t.Helper()
	definitions := "{{$labels := .Labels}}{{$value := .Value}}"
	data := template.AlertTemplateData(of, nil, "", promql.Sample{F: value})
	expander := template.NewTemplateExpander(t.Context(), definitions+text, "alert", data, 0, nil, &url.URL{}, nil)
	expanded, err := expander.Expand()
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return expanded
}

// series are kept in memory, and are a storage.Queryable.
type series []storage.Series

// load reads series in the notation of promtool: `metric{label="value"}`, `0+1x10`.
func load(t *testing.T, notation, values string, interval model.Duration) storage.Series {
	t.Helper()
	set, sequence, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(notation + " " + values)
	if err != nil {
		t.Fatalf("%s %s: %v", notation, values, err)
	}
	var samples []chunks.Sample
	for i, value := range sequence {
		if !value.Omitted {
			samples = append(samples, sample{int64(i) * time.Duration(interval).Milliseconds(), value.Value})
		}
	}
	return storage.NewListSeries(set, samples)
}

// Querier implements storage.Queryable.
func (s series) Querier(_, _ int64) (storage.Querier, error) { return querier{s}, nil }

type querier struct{ series }

// Select implements storage.Querier.
func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found seriesSet
	for _, one := range q.series {
		if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(one.Labels().Get(m.Name)) }) {
			found.series = append(found.series, one)
		}
	}
	return &found
}

// LabelValues implements storage.Querier.
func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// LabelNames implements storage.Querier.
func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// Close implements storage.Querier.
func (querier) Close() error { return nil }

type seriesSet struct {
	series []storage.Series
	next   int
}

func (s *seriesSet) Next() bool                        { s.next++; return s.next <= len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.next-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// sample is a value at a time in milliseconds.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }
