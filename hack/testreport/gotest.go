// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	FailedBuild string
}

// testKey names a test of a package.
type testKey struct{ pkg, test string }

// counter follows the events of one go test.
type counter struct {
	show    io.Writer
	outcome map[testKey]string
	order   []testKey
	output  map[testKey][]string
	builds  map[string][]string
	broken  []broken
}

// broken is a package that failed outside of its tests.
type broken struct {
	pkg    string
	output []string
}

// count reads the events of go test -json, shows the line of every package and
// the output of every test that failed, and counts the tests that have no
// subtests of their own.
func count(events io.Reader, show io.Writer) (result, error) {
	c := &counter{show: show, outcome: map[testKey]string{}, output: map[testKey][]string{}, builds: map[string][]string{}}
	reader := bufio.NewReader(events)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil {
				c.handle(e)
			} else {
				fmt.Fprint(show, line)
			}
		}
		if err == io.EOF {
			return c.result(), nil
		}
		if err != nil {
			return c.result(), err
		}
	}
}

func (c *counter) handle(e event) {
	key := testKey{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], e.Output)
	case "output":
		switch {
		case e.Test == "" && noise(e.Output):
		case e.Test == "" && packageLine(e.Output):
			fmt.Fprint(c.show, e.Output)
		default:
			c.output[key] = append(c.output[key], e.Output)
		}
	case "pass", "skip", "fail":
		if e.Test == "" {
			c.endPackage(e)
			return
		}
		c.outcome[key] = e.Action
		c.order = append(c.order, key)
		if e.Action == "fail" {
			fmt.Fprint(c.show, strings.Join(c.output[key], ""))
		}
		if e.Action == "pass" { // why a test was skipped or failed is shown at the end
			delete(c.output, key)
		}
	}
}

// endPackage shows what a package said outside of its tests when it failed:
// the words of the compiler, of a panic, of TestMain.
func (c *counter) endPackage(e event) {
	key := testKey{pkg: e.Package}
	if e.Action == "fail" {
		words := slices.Concat(c.builds[e.FailedBuild], c.output[key])
		// A test that was running when its process died has no outcome.
		for unfinished, lines := range c.output {
			if unfinished.pkg == e.Package && unfinished.test != "" && c.outcome[unfinished] == "" {
				words = append(words, lines...)
			}
		}
		fmt.Fprint(c.show, strings.Join(words, ""))
		if !c.failedIn(e.Package) {
			c.broken = append(c.broken, broken{e.Package, words})
		}
	}
	delete(c.output, key)
}

func (c *counter) failedIn(pkg string) bool {
	for key, outcome := range c.outcome {
		if key.pkg == pkg && outcome == "fail" {
			return true
		}
	}
	return false
}

func (c *counter) result() result {
	var r result
	group := map[testKey]bool{}
	for key := range c.outcome {
		for i, char := range key.test {
			if char == '/' {
				group[testKey{key.pkg, key.test[:i]}] = true
			}
		}
	}
	failedLeaf := func(parent testKey) bool {
		for key, outcome := range c.outcome {
			if outcome == "fail" && !group[key] && key.pkg == parent.pkg && strings.HasPrefix(key.test, parent.test+"/") {
				return true
			}
		}
		return false
	}
	for _, key := range c.order {
		outcome := c.outcome[key]
		// A group counts only when it failed by itself and not by a subtest.
		if group[key] && (outcome != "fail" || failedLeaf(key)) {
			continue
		}
		switch outcome {
		case "pass":
			r.Passed++
		case "skip":
			r.Skipped++
			r.Skips = append(r.Skips, skip{Test: key.pkg + "." + key.test, Reason: reason(c.output[key])})
		case "fail":
			r.fail(key.pkg+"."+key.test, c.output[key])
		}
	}
	for _, b := range c.broken {
		r.fail(b.pkg, b.output)
	}
	return r
}

// noise is output of a package that says nothing: go test prints it only with -v.
func noise(line string) bool {
	return line == "PASS\n" || line == "FAIL\n" || strings.Contains(line, "[no test files]")
}

// packageLine is the line by which go test closes a package.
func packageLine(line string) bool {
	return strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "FAIL\t") || strings.HasPrefix(line, "?   \t")
}

// place is the file and line that testing puts before a test's words.
var place = regexp.MustCompile(`^[\w.-]+\.go:\d+: `)

// reason is the text of t.Skip in a skipped test's output.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return place.ReplaceAllString(line, "")
		}
	}
	return "no reason given"
}
