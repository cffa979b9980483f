// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// facts are what the repository has.
type facts struct {
	root string
	// targets of the Makefile.
	targets map[string]bool
	// flags of each command, by its name.
	flags map[string]map[string]bool
	// metrics that the product exports.
	metrics map[string]bool
}

// commandNames are the product's commands, under cmd/, and what they are called with
// that has flags of its own.
var commandNames = []string{"node-agent", "node-agent filters", "provisioner", "kubectl-berth"}

var (
	targetPattern = regexp.MustCompile(`(?m)^([a-z0-9][a-z0-9-]*):`)
	helpPattern   = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z][a-z0-9-]*)`)
	metricPattern = regexp.MustCompile(`"(berth_[a-z0-9_]+)"`)
)

func readFacts(root string) (facts, error) {
	f := facts{root: root, targets: map[string]bool{}, flags: map[string]map[string]bool{}, metrics: map[string]bool{}}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return f, err
	}
	for _, match := range targetPattern.FindAllSubmatch(makefile, -1) {
		f.targets[string(match[1])] = true
	}
	for _, name := range commandNames {
		help := exec.Command("go", append(append([]string{"run"}, strings.Fields("./cmd/"+name)...), "--help")...)
		help.Dir = root
		out, err := help.CombinedOutput()
		f.flags[name] = map[string]bool{}
		for _, match := range helpPattern.FindAllSubmatch(out, -1) {
			f.flags[name][string(match[1])] = true
		}
		// Some flag libraries end --help with an error.
		if len(f.flags[name]) == 0 {
			return f, fmt.Errorf("read the flags of cmd/%s: %w: %s", name, err, out)
		}
	}
	for _, folder := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, match := range metricPattern.FindAllSubmatch(content, -1) {
				f.metrics[string(match[1])] = true
			}
			return nil
		})
		if err != nil {
			return f, err
		}
	}
	return f, nil
}
