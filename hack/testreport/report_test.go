// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2/types"
)

func TestCount(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		events []string
		want   result
		shows  []string
		hides  []string
	}{{
		name: "leaves count and groups do not",
		events: []string{
			`{"Action":"pass","Package":"p","Test":"TestA/one"}`,
			`{"Action":"pass","Package":"p","Test":"TestA/two"}`,
			`{"Action":"pass","Package":"p","Test":"TestA"}`,
			`{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}`,
			`{"Action":"pass","Package":"p","Test":"TestB"}`,
			`{"Action":"output","Package":"p","Output":"PASS\n"}`,
			`{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}`,
			`{"Action":"pass","Package":"p"}`,
		},
		want:  result{Passed: 3},
		shows: []string{"ok  \tp"},
		hides: []string{"RUN", "PASS"},
	}, {
		name: "a failed subtest is one failure",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA/one","Output":"    a_test.go:1: wrong\n"}`,
			`{"Action":"fail","Package":"p","Test":"TestA/one"}`,
			`{"Action":"fail","Package":"p","Test":"TestA"}`,
			`{"Action":"fail","Package":"p"}`,
		},
		want:  result{Failed: 1, Failures: []string{"p.TestA/one"}, Words: map[string][]string{"p.TestA/one": {"    a_test.go:1: wrong"}}},
		shows: []string{"wrong"},
	}, {
		name: "a group that fails after its subtests passed",
		events: []string{
			`{"Action":"pass","Package":"p","Test":"TestA/one"}`,
			`{"Action":"fail","Package":"p","Test":"TestA"}`,
			`{"Action":"fail","Package":"p"}`,
		},
		want: result{Passed: 1, Failed: 1, Failures: []string{"p.TestA"}},
	}, {
		name: "a package that does not compile",
		events: []string{
			`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p/a.go:3: undefined: x\n"}`,
			`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
			`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}`,
			`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
		},
		want:  result{Failed: 1, Failures: []string{"p"}, Words: map[string][]string{"p": {"p/a.go:3: undefined: x"}}},
		shows: []string{"undefined: x", "FAIL\tp"},
	}, {
		name: "a process that dies in a test",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}`,
			`{"Action":"fail","Package":"p"}`,
		},
		want:  result{Failed: 1, Failures: []string{"p"}, Words: map[string][]string{"p": {"panic: boom"}}},
		shows: []string{"boom"},
	}, {
		name: "a skip tells its reason",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}`,
			`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: needs root\n"}`,
			`{"Action":"skip","Package":"p","Test":"TestA"}`,
			`{"Action":"pass","Package":"p"}`,
		},
		want: result{Skipped: 1, Skips: []skip{{"p.TestA", "needs root"}}},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var shown strings.Builder
			got, err := count(strings.NewReader(strings.Join(test.events, "\n")), &shown)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			for _, text := range test.shows {
				if !strings.Contains(shown.String(), text) {
					t.Errorf("%q is not shown in:\n%s", text, shown.String())
				}
			}
			for _, text := range test.hides {
				if strings.Contains(shown.String(), text) {
					t.Errorf("%q is shown in:\n%s", text, shown.String())
				}
			}
		})
	}
}

func TestCountSpecs(t *testing.T) {
	t.Parallel()
	it := func(state types.SpecState, message string) types.SpecReport {
		return types.SpecReport{LeafNodeType: types.NodeTypeIt, LeafNodeText: "works", State: state, Failure: types.Failure{Message: message}}
	}
	tests := []struct {
		name   string
		report types.Report
		want   result
	}{{
		name: "specs that a filter left out are not counted",
		report: types.Report{SuiteSucceeded: true, SpecReports: types.SpecReports{
			it(types.SpecStatePassed, ""), it(types.SpecStateSkipped, ""), it(types.SpecStateSkipped, "no LVM here"),
		}},
		want: result{Passed: 1, Skipped: 1, Skips: []skip{{"works", "no LVM here"}}},
	}, {
		name: "a failed AfterSuite is a failure",
		report: types.Report{SpecReports: types.SpecReports{
			it(types.SpecStatePassed, ""), {LeafNodeType: types.NodeTypeAfterSuite, State: types.SpecStateFailed, Failure: types.Failure{
				Message: "still mounted", FailureNodeLocation: types.CodeLocation{FileName: "a.go", LineNumber: 3}, Location: types.CodeLocation{FileName: "a.go", LineNumber: 7},
			}},
		}},
		want: result{Passed: 1, Failed: 1, Failures: []string{"AfterSuite "}, Words: map[string][]string{"AfterSuite ": {"a.go:7", "still mounted"}}},
	}, {
		name: "a time-out tells what it waited for, and what it saw",
		report: types.Report{SpecReports: types.SpecReports{{
			LeafNodeType: types.NodeTypeIt, LeafNodeText: "works", State: types.SpecStateTimedout,
			Failure: types.Failure{
				Message: "A spec timeout occurred", Location: types.CodeLocation{FileName: "a.go", LineNumber: 3},
				ProgressReport: types.ProgressReport{LeafNodeText: "works", CurrentStepText: "having one disk", CurrentStepLocation: types.CodeLocation{FileName: "a.go", LineNumber: 5}},
			},
			AdditionalFailures: []types.AdditionalFailure{{State: types.SpecStateFailed, Failure: types.Failure{
				Message: "the claim to be given back", Location: types.CodeLocation{FileName: "a.go", LineNumber: 9},
			}}},
			ReportEntries: types.ReportEntries{
				{Name: "state at failure", Value: types.WrapEntryValue(strings.Repeat("claim\n", 42))},
				{Name: "hidden", Visibility: types.ReportEntryVisibilityNever, Value: types.WrapEntryValue("x")},
			},
		}}},
		want: result{Failed: 1, Failures: []string{"works"}, Words: map[string][]string{"works": append(append(
			[]string{"state at failure:"}, slices.Repeat([]string{"claim"}, 40)...),
			"(2 more lines)", "a.go:3", "A spec timeout occurred", `it was at step "having one disk", a.go:5`, "after that, failed:", "a.go:9", "the claim to be given back")}},
	}, {
		name:   "a suite that failed without a failed spec",
		report: types.Report{SuiteDescription: "e2e", SpecialSuiteFailureReasons: []string{"timed out"}},
		want:   result{Failed: 1, Failures: []string{"e2e: timed out"}},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := countSpecs([]types.Report{test.report}); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestSum(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, r := range map[string]result{
		"unit":  {Passed: 3, Skipped: 3, Seconds: 1, Skips: []skip{{"a", "no LVM"}, {"b", "no disk"}, {"c", "no disk"}}},
		"e2e":   {Passed: 2},
		"bad":   {Passed: 1, Failed: 2, Failures: []string{"a", "b"}, Words: map[string][]string{"a": {"wrong"}}},
		"empty": {},
	} {
		if err := r.store(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lost.log"), []byte("==> up\nno such disk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		stages  []string
		closing string
		fails   bool
	}{
		{"all passed", []string{"unit", "e2e"}, "5 passed, 0 failed, 3 skipped\n", false},
		{"reasons of skips are counted", []string{"unit"}, "1 s\n             2 skipped: no disk\n             1 skipped: no LVM\n3 passed, 0 failed, 3 skipped\n", false},
		{"one failed", []string{"unit", "bad"}, "bad: 2 failed:\n  a\n    | wrong\n  b\n4 passed, 2 failed, 3 skipped\n", true},
		{"one did not run", []string{"unit", "lost"}, "lost did not run to its end:\n    | ==> up\n    | no such disk\n3 passed, 1 failed, 3 skipped\n", true},
		{"one did not run and left no log", []string{"gone"}, "gone did not run to its end\n0 passed, 1 failed, 0 skipped\n", true},
		{"one ran nothing", []string{"unit", "empty"}, "3 passed, 1 failed, 3 skipped\n", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			err := sum(&out, dir, test.stages)
			if (err != nil) != test.fails {
				t.Errorf("error %v, want one: %v", err, test.fails)
			}
			if !strings.HasSuffix(out.String(), test.closing) {
				t.Errorf("ends not with %q:\n%s", test.closing, out.String())
			}
		})
	}
}
