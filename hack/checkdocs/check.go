// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

var (
	makePattern = regexp.MustCompile(`\bmake ([a-z0-9][a-z0-9-]*)`)
	// A path of the repository: begins with one of its folders.
	pathPattern   = regexp.MustCompile(`^(\.?/)?((?:api|cmd|deploy|docs|hack|internal|pkg|tests|\.ci)/[\w./*-]*)$`)
	flagPattern   = regexp.MustCompile(`(?:^|\s)--([a-z][a-z0-9-]*)`)
	metricInDocs  = regexp.MustCompile(`\b(berth_[a-z0-9_]+)`)
	referencePage = filepath.Join("docs", "reference", "commands.md")
	metricsPage   = filepath.Join("docs", "reference", "metrics.md")
)

func check(pages []page, f facts) []problem {
	c := checker{facts: f, pages: map[string]page{}}
	for _, p := range pages {
		c.pages[filepath.Clean(p.path)] = p
	}
	for _, p := range pages {
		c.checkLinks(p)
		c.checkCode(p)
		c.checkFences(p)
	}
	c.checkComplete()
	return c.problems
}

type checker struct {
	facts    facts
	pages    map[string]page
	problems []problem
}

func (c *checker) add(p page, line int, format string, args ...any) {
	c.problems = append(c.problems, problem{p.path, line, fmt.Sprintf(format, args...)})
}

func (c *checker) checkLinks(p page) {
	for _, link := range p.links {
		if strings.Contains(link.text, "://") || strings.HasPrefix(link.text, "mailto:") {
			continue
		}
		target, anchor, _ := strings.Cut(link.text, "#")
		path := filepath.Clean(p.path)
		if target != "" {
			path = filepath.Join(filepath.Dir(p.path), target)
		}
		if _, err := os.Stat(filepath.Join(c.facts.root, path)); err != nil {
			c.add(p, link.line, "link to %s, which is not there", path)
			continue
		}
		if other, ok := c.pages[path]; ok && anchor != "" && !other.anchors[anchor] {
			c.add(p, link.line, "link to #%s, and %s has no such heading", anchor, path)
		}
	}
}

// checkCode checks inline code: make targets, files, flags and metrics.
func (c *checker) checkCode(p page) {
	for _, code := range p.code {
		c.checkText(p, code.line, code.text)
		if match := pathPattern.FindStringSubmatch(code.text); match != nil {
			c.checkPath(p, code.line, match[2])
		}
	}
}

func (c *checker) checkText(p page, line int, text string) {
	for _, match := range makePattern.FindAllStringSubmatch(text, -1) {
		if !c.facts.targets[match[1]] {
			c.add(p, line, "make %s: the Makefile has no such target", match[1])
		}
	}
	for _, match := range metricInDocs.FindAllStringSubmatch(text, -1) {
		if !c.facts.metrics[match[1]] && !c.facts.metrics[trimHistogram(match[1])] {
			c.add(p, line, "metric %s: the product exports no such metric", match[1])
		}
	}
	if p.path == referencePage {
		for _, match := range flagPattern.FindAllStringSubmatch(text, -1) {
			if !slices.ContainsFunc(commandNames, func(name string) bool { return c.facts.flags[name][match[1]] }) {
				c.add(p, line, "flag --%s: no command has it", match[1])
			}
		}
	}
}

func trimHistogram(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name
}

func (c *checker) checkPath(p page, line int, path string) {
	matches, err := filepath.Glob(filepath.Join(c.facts.root, path))
	if err != nil || len(matches) == 0 {
		c.add(p, line, "%s is not there", path)
	}
}

func (c *checker) checkFences(p page) {
	for _, f := range p.fences {
		if script, ok := f.commands(); ok {
			c.checkScript(p, f, script)
		}
		if f.language == "yaml" {
			c.checkManifests(p, f)
		}
		if f.language == "" {
			c.add(p, f.line-1, "a code block names no language: console, sh, yaml, go or text")
		}
	}
}

func (c *checker) checkScript(p page, f fence, script string) {
	parse := exec.Command("bash", "-n")
	parse.Stdin = strings.NewReader(script)
	if out, err := parse.CombinedOutput(); err != nil {
		c.add(p, f.line, "shell snippet does not parse: %s", bytes.TrimSpace(out))
	}
	for line := range strings.SplitSeq(script, "\n") {
		c.checkText(p, f.line, line)
		for word := range strings.FieldsSeq(line) {
			if match := pathPattern.FindStringSubmatch(word); match != nil {
				c.checkPath(p, f.line, match[2])
			}
		}
	}
}

// checkManifests decodes YAML strictly: Berth's own kinds by their Go types,
// everything else as YAML.
func (c *checker) checkManifests(p page, f fence) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		c.add(p, f.line, "build the scheme: %v", err)
		return
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for document := range strings.SplitSeq(strings.Join(f.lines, "\n"), "\n---\n") {
		var meta struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(document), &meta); err != nil {
			c.add(p, f.line, "YAML does not parse: %v", err)
			continue
		}
		if meta.APIVersion == v1alpha1.GroupVersion.String() {
			if _, _, err := decoder.Decode([]byte(document), nil, nil); err != nil {
				c.add(p, f.line, "%s is not one: %v", meta.Kind, err)
			}
		}
	}
}

// checkComplete finds what the reference pages leave out.
func (c *checker) checkComplete() {
	if p, ok := c.pages[referencePage]; ok {
		for _, name := range commandNames {
			for flag := range c.facts.flags[name] {
				if flag != "help" && !p.mentions("--"+flag) {
					c.add(p, 1, "flag --%s of %s is not described", flag, name)
				}
			}
		}
	}
	if p, ok := c.pages[metricsPage]; ok {
		for metric := range c.facts.metrics {
			if !p.mentions(metric) {
				c.add(p, 1, "metric %s is not described", metric)
			}
		}
	}
	slices.SortStableFunc(c.problems, func(a, b problem) int {
		return strings.Compare(a.file+a.text, b.file+b.text)
	})
}

// mentions says whether an inline code span is the word or begins with it.
func (p page) mentions(word string) bool {
	return slices.ContainsFunc(p.code, func(code span) bool {
		rest, ok := strings.CutPrefix(code.text, word)
		return ok && (rest == "" || strings.ContainsAny(rest[:1], "={ "))
	})
}
