// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metricstest holds collectors against the tables of docs/reference/metrics.md,
// which the alert rules and the dashboard are checked against in their turn
// (hack/monitoring).
package metricstest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Series is one row's promise of a metric.
type Series struct {
	// Type is counter, gauge or histogram.
	Type string
	// Labels, in the order of the alphabet.
	Labels []string
}

var name = regexp.MustCompile("`([a-z_]+)`")

// Documented returns the metrics of docs/reference/metrics.md by name.
func Documented(t testing.TB) map[string]Series {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "reference", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]Series{}
	for line := range strings.SplitSeq(string(page), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.Contains(cells[1], "`") {
			continue
		}
		var labels []string
		for _, match := range name.FindAllStringSubmatch(cells[3], -1) {
			labels = append(labels, match[1])
		}
		slices.Sort(labels)
		for _, match := range name.FindAllStringSubmatch(cells[1], -1) {
			series[match[1]] = Series{strings.TrimSpace(cells[2]), labels}
		}
	}
	if len(series) == 0 {
		t.Fatal("docs/reference/metrics.md has no table of metrics")
	}
	return series
}

// root is the repository's; a test runs in the folder of its package.
func root(t testing.TB) string {
	t.Helper()
	from, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for folder := from; ; folder = filepath.Dir(folder) {
		if _, err := os.Stat(filepath.Join(folder, "docs", "reference", "metrics.md")); err == nil {
			return folder
		}
		if folder == filepath.Dir(folder) {
			t.Fatalf("no docs/reference/metrics.md above %s", from)
		}
	}
}

// Recorder is a Registerer and a Gatherer that remembers what was registered. Put in the
// place of a program's registry, it has every metric of that program, also those that have
// no series yet.
type Recorder struct {
	*prometheus.Registry

	mu         sync.Mutex
	collectors []prometheus.Collector
}

// NewRecorder returns a Recorder of a registry of its own.
func NewRecorder() *Recorder { return &Recorder{Registry: prometheus.NewPedanticRegistry()} }

// Register implements prometheus.Registerer.
func (r *Recorder) Register(c prometheus.Collector) error {
	err := r.Registry.Register(c)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.collectors = append(r.collectors, c)
	}
	return err
}

// MustRegister implements prometheus.Registerer.
func (r *Recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

var description = regexp.MustCompile(`^Desc\{fqName: "([^"]+)".* variableLabels: \{([^}]*)\}\}$`)

// Check fails the test where a metric that was registered is not in the tables of the docs
// as it is, and where the names lack one that was not registered.
func (r *Recorder) Check(t testing.TB, names ...string) {
	t.Helper()
	documented := Documented(t)
	seen := map[string]bool{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, collector := range r.collectors {
		descriptions := make(chan *prometheus.Desc, 64)
		collector.Describe(descriptions)
		close(descriptions)
		for desc := range descriptions {
			match := description.FindStringSubmatch(desc.String())
			if match == nil {
				t.Fatalf("client_golang describes a metric in another way: %s", desc)
			}
			seen[match[1]] = true
			var labels []string
			if match[2] != "" {
				labels = strings.Split(match[2], ",")
			}
			compare(t, documented, match[1], Series{kindOf(collector), labels})
		}
	}
	for _, name := range names {
		if !seen[name] {
			t.Errorf("%s was not registered", name)
		}
	}
}

// kindOf tells the type of a collector that has only one; "" of others, whose series tell it.
func kindOf(collector prometheus.Collector) string {
	switch c := collector.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	case prometheus.Metric:
		var m dto.Metric
		switch err := c.Write(&m); {
		case err != nil:
			return ""
		case m.GetCounter() != nil:
			return "counter"
		case m.GetHistogram() != nil:
			return "histogram"
		}
		return "gauge"
	default:
		return ""
	}
}

// CheckSeries fails the test where what is gathered is not as the docs say, or where a name
// has no series.
func CheckSeries(t testing.TB, gatherer prometheus.Gatherer, names ...string) {
	t.Helper()
	families, err := gatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	documented := Documented(t)
	seen := map[string]bool{}
	for _, family := range families {
		if !slices.Contains(names, family.GetName()) {
			continue
		}
		seen[family.GetName()] = true
		for _, m := range family.GetMetric() {
			var labels []string
			for _, pair := range m.GetLabel() {
				labels = append(labels, pair.GetName())
			}
			compare(t, documented, family.GetName(), Series{strings.ToLower(family.GetType().String()), labels})
		}
	}
	for _, name := range names {
		if !seen[name] {
			t.Errorf("%s has no series", name)
		}
	}
}

func compare(t testing.TB, documented map[string]Series, name string, is Series) {
	t.Helper()
	said, ok := documented[name]
	slices.Sort(is.Labels)
	switch {
	case !ok:
		t.Errorf("docs/reference/metrics.md does not have %s", name)
	case is.Type != "" && is.Type != said.Type:
		t.Errorf("docs/reference/metrics.md calls %s a %s, and it is a %s", name, said.Type, is.Type)
	case !slices.Equal(is.Labels, said.Labels):
		t.Errorf("docs/reference/metrics.md gives %s the labels %s, and it has %s", name, said.Labels, is.Labels)
	}
}
