// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// result is what one stage ran.
type result struct {
	Passed   int      `json:"passed"`
	Failed   int      `json:"failed"`
	Skipped  int      `json:"skipped"`
	Seconds  float64  `json:"seconds"`
	Failures []string `json:"failures,omitempty"`
	Skips    []string `json:"skips,omitempty"`
}

// verdict is nil when the stage ran something and nothing failed.
func (r result) verdict(stage string) error {
	switch {
	case r.Failed > 0:
		return fmt.Errorf("%s: %d failed:\n  %s", stage, r.Failed, strings.Join(r.Failures, "\n  "))
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
// left no result, ran nothing, or failed.
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
			problems = append(problems, fmt.Errorf("%s did not run to its end", stage))
			continue
		}
		fmt.Fprintf(out, "%-12s %4d passed, %d failed, %d skipped in %.0f s\n", stage, r.Passed, r.Failed, r.Skipped, r.Seconds)
		for _, skip := range r.Skips {
			fmt.Fprintf(out, "%-12s skipped %s\n", "", skip)
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
