// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// result is what one stage ran.
type result struct {
	Passed   int      `json:"passed"`
	Failed   int      `json:"failed"`
	Skipped  int      `json:"skipped"`
	Seconds  float64  `json:"seconds"`
	Failures []string `json:"failures,omitempty"`
	Skips    []skip   `json:"skips,omitempty"`
	// Words are the last lines that each of the first failures said, by its name.
	Words map[string][]string `json:"words,omitempty"`
}

// skip is a test that did not run, and why.
type skip struct {
	Test   string `json:"test"`
	Reason string `json:"reason"`
}

// How much of what failed the end repeats: enough to know it from the last page
// of a long log, which is often all that is kept of one.
const (
	maxFailuresTold = 5
	maxLinesTold    = 60
)

// fail adds a failure and the end of what it said.
func (r *result) fail(name string, output []string) {
	r.Failed++
	r.Failures = append(r.Failures, name)
	if len(output) == 0 || len(r.Words) >= maxFailuresTold {
		return
	}
	if r.Words == nil {
		r.Words = map[string][]string{}
	}
	r.Words[name] = lastLines(strings.Join(output, ""))
}

func lastLines(text string) []string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return lines[max(0, len(lines)-maxLinesTold):]
}

// reasons are lines that say how many tests were skipped for which reason, the
// most frequent first.
func reasons(skips []skip) []string {
	count := map[string]int{}
	for _, s := range skips {
		count[s.Reason]++
	}
	var lines []string
	for _, reason := range slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		return cmp.Or(count[b]-count[a], strings.Compare(a, b))
	}) {
		lines = append(lines, fmt.Sprintf("%d skipped: %s", count[reason], reason))
	}
	return lines
}

// verdict is nil when the stage ran something and nothing failed.
func (r result) verdict(stage string) error {
	switch {
	case r.Failed > 0:
		var text strings.Builder
		for _, name := range r.Failures {
			fmt.Fprintf(&text, "\n  %s", name)
			for _, line := range r.Words[name] {
				fmt.Fprintf(&text, "\n    | %s", line)
			}
		}
		return fmt.Errorf("%s: %d failed:%s", stage, r.Failed, &text)
	case r.Passed == 0:
		return fmt.Errorf("%s: no test ran", stage)
	}
	return nil
}

func (r result) store(dir, name string) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".json"), append(content, '\n'), 0o644)
}

// sum prints a line for each stage and the closing line. It fails when a stage
// left no result, ran nothing, or failed; what failed comes last, with the end of
// what it said. Of a stage without a result that is the end of STAGE.log.
func sum(out io.Writer, dir string, stages []string) error {
	if len(stages) == 0 {
		return errors.New(usage)
	}
	var total result
	var problems []error
	for _, stage := range stages {
		var r result
		content, err := os.ReadFile(filepath.Join(dir, stage+".json"))
		if err == nil {
			err = json.Unmarshal(content, &r)
		}
		if err != nil {
			fmt.Fprintf(out, "%-12s did not run\n", stage)
			total.Failed++
			problems = append(problems, fmt.Errorf("%s did not run to its end%s", stage, logEnd(dir, stage)))
			continue
		}
		fmt.Fprintf(out, "%-12s %4d passed, %d failed, %d skipped in %.0f s\n", stage, r.Passed, r.Failed, r.Skipped, r.Seconds)
		for _, line := range reasons(r.Skips) {
			fmt.Fprintf(out, "%-12s %s\n", "", line)
		}
		if err := r.verdict(stage); err != nil {
			problems = append(problems, err)
			total.Failed += max(r.Failed, 1)
		}
		total.Passed += r.Passed
		total.Skipped += r.Skipped
	}
	if err := errors.Join(problems...); err != nil {
		fmt.Fprintln(out, err)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", total.Passed, total.Failed, total.Skipped)
	if total.Failed > 0 {
		return errors.New("the tests failed")
	}
	return nil
}

// logEnd is the end of the log that hack/test.sh keeps of a stage where nobody
// watches it, or nothing.
func logEnd(dir, stage string) string {
	content, err := os.ReadFile(filepath.Join(dir, stage+".log"))
	if err != nil {
		return ""
	}
	return ":\n    | " + strings.Join(lastLines(string(content)), "\n    | ")
}
