// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/onsi/ginkgo/v2/types"
)

// ginkgo counts the specs of a report that a suite wrote with
// --ginkgo.json-report.
func ginkgo(dir, name, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s left no report: %w", name, err)
	}
	var reports []types.Report
	if err := json.Unmarshal(content, &reports); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	r := countSpecs(reports)
	if err := r.store(dir, name); err != nil {
		return err
	}
	return r.verdict(name)
}

// countSpecs counts the specs that ran; those that a filter or a label kept out
// of the run are not part of it. A failure outside of the specs (BeforeSuite,
// AfterSuite, a time-out) counts as one.
func countSpecs(reports []types.Report) result {
	var r result
	for _, report := range reports {
		failed := r.Failed
		r.Seconds += report.RunTime.Seconds()
		for _, spec := range report.SpecReports {
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != types.NodeTypeIt {
				if spec.State.Is(types.SpecStateFailureStates) {
					r.fail(spec.LeafNodeType.String()+" "+name, words(spec))
				}
				continue
			}
			switch {
			case spec.State.Is(types.SpecStatePassed):
				r.Passed++
			case spec.State.Is(types.SpecStateFailureStates):
				r.fail(name, words(spec))
			case spec.Failure.Message != "" || spec.State.Is(types.SpecStatePending):
				r.Skipped++
				r.Skips = append(r.Skips, skip{Test: name, Reason: spec.Failure.Message})
			}
		}
		if !report.SuiteSucceeded && r.Failed == failed {
			r.fail(report.SuiteDescription+": "+strings.Join(report.SpecialSuiteFailureReasons, "; "), nil)
		}
	}
	return r
}

// words are what a spec said when it failed, and where: first what it reported of
// the state it saw then, shortened; last the failure and those that followed from it.
// A time-out says "A spec timeout occurred", and only what follows tells what the
// spec was waiting for.
func words(spec types.SpecReport) []string {
	var said []string
	for _, entry := range spec.ReportEntries {
		if entry.Visibility == types.ReportEntryVisibilityNever {
			continue
		}
		said = append(said, entry.Name+":\n", firstLines(entry.StringRepresentation(), maxEntryLines), "\n")
	}
	said = append(said, failureWords(spec.Failure)...)
	for _, also := range spec.AdditionalFailures {
		said = append(said, "after that, "+also.State.String()+":\n")
		said = append(said, failureWords(also.Failure)...)
	}
	return said
}

// maxEntryLines is how much of one entry of a report is repeated.
const maxEntryLines = 40

func failureWords(failure types.Failure) []string {
	said := []string{failure.Location.String(), "\n", failure.Message, "\n"}
	if at := failure.ProgressReport; at.CurrentStepText != "" {
		said = append(said, fmt.Sprintf("it was at step %q, %s\n", at.CurrentStepText, at.CurrentStepLocation))
	}
	return said
}

// firstLines are the first lines of a text, and how many were left out.
func firstLines(text string, most int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) <= most {
		return strings.Join(lines, "\n")
	}
	return fmt.Sprintf("%s\n(%d more lines)", strings.Join(lines[:most], "\n"), len(lines)-most)
}
