// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/tests/samples"
)

func TestSumOfMetric(t *testing.T) {
	t.Parallel()
	text := "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\n# TYPE b gauge\nb 7\n"
	for name, want := range map[string]float64{"a_total": 5, "b": 7, "c": 0} {
		if got, err := sumOf([]byte(text), name); err != nil || got != want {
			t.Errorf("%s is %v, %v, want %v", name, got, err, want)
		}
	}
	if _, err := sumOf([]byte("a{"), "a"); err == nil {
		t.Error("nonsense was parsed")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nodes=1"}, {"-nodes=10,x"}, {"-nodes=5001"}, {"-rounds=0"}, {"more"}, {"-nodes=10", "-assets=/no/such/place"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	if p, err := parse([]string{"-nodes="}); err != nil || len(p.sizes) != 0 || p.claims != 1000 || p.volumes != 20 {
		t.Errorf("only to print: %+v, %v", p, err)
	}
}

func someResults() results {
	var r results
	for _, nodes := range []int{1000, 10, 100} {
		r = r.with(row{
			Nodes: nodes, IdleRequests: samples.Of{0, 0}, IdleRenewals: samples.Of{1}, IdleWatch: samples.Of{2000, 2100},
			ProvisionerKiB: 40 << 10, AgentKiB: 30 << 10, APIServerKiB: nodes << 10, BindSeconds: samples.Of{20}, BindMedian: samples.Of{10},
			HerdReady: samples.Of{9}, HerdSynced: samples.Of{11}, HerdPeak: samples.Of{float64(nodes)}, HerdMinute: samples.Of{float64(nodes * 16)},
		})
	}
	return r
}

func TestResultsAreKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "results.json")
	if r, err := readResults(path); err != nil || len(r) != 0 {
		t.Fatalf("of no file: %v, %v", r, err)
	}
	if err := someResults().write(path); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(path)
	if err != nil {
		t.Fatal(err)
	}
	r = r.with(row{Nodes: 100, Volumes: 7})
	if len(r) != 3 || r[0].Nodes != 10 || r[1].Volumes != 7 || r[2].HerdPeak.Median() != 1000 {
		t.Errorf("kept %+v", r)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	someResults().print(&out)
	lines := strings.Split(out.String(), "\n")
	if lines[0] != "|  | 10 nodes | 100 nodes | 1000 nodes |" {
		t.Errorf("begins with %q", lines[0])
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|") != 5 {
			t.Errorf("not as many cells as numbers of nodes: %q", line)
		}
	}
}

func TestPlotIsXML(t *testing.T) {
	t.Parallel()
	drawn := someResults().plot()
	lines := 0
	for decoder := xml.NewDecoder(bytes.NewReader(drawn)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "polyline" {
			lines++
			for _, attribute := range start.Attr {
				if attribute.Name.Local == "points" && len(strings.Fields(attribute.Value)) != 3 {
					t.Errorf("a line has the points %q, want three", attribute.Value)
				}
			}
		}
	}
	want := 0
	for _, p := range panels {
		want += len(p.curves)
		if len(p.curves) > len(colours) {
			t.Errorf("%q has more lines than colours", p.title)
		}
	}
	if lines != want {
		t.Errorf("%d lines, want %d", lines, want)
	}
}

// Nothing is left running whatever happens to the benchmark.
func TestProcesses(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	p := &process{name: "one that is told to end", log: log, argv: []string{"sleep", "60"}}
	p.stop(time.Second) // was never started
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	if err := p.err(); err != nil {
		t.Errorf("it runs: %v", err)
	}
	if _, err := p.cpuSeconds(); err != nil {
		t.Error(err)
	}
	p.stop(time.Minute)
	p.stop(0)
	if err := p.err(); err == nil {
		t.Error("it has ended, and nobody says so")
	}
	stubborn := &process{name: "one that is killed", log: log, argv: []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"}}
	if err := stubborn.start(); err != nil {
		t.Fatal(err)
	}
	err := until(t.Context(), "it does not listen", time.Minute, []*process{stubborn}, func() (bool, error) {
		content, err := os.ReadFile(log)
		return strings.Contains(string(content), "deaf"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	stubborn.stop(10 * time.Millisecond)
	if err := until(t.Context(), "never", time.Minute, []*process{stubborn}, func() (bool, error) { return false, nil }); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("waiting for one that has ended: %v", err)
	}
	if err := (&process{name: "none", log: log, argv: []string{"/no/such/program"}}).start(); err == nil {
		t.Error("a program that is not there was started")
	}
}
