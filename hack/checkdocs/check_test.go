// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, folder := range []string{"docs/reference", "hack"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"hack/demo.sh", "docs/design.md"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f := facts{
		root:    root,
		targets: map[string]bool{"demo": true},
		flags:   map[string]map[string]bool{"node-agent": {"node-name": true}, "provisioner": {"leader-elect": true}},
		metrics: map[string]bool{"berth_pool_free_bytes": true},
	}
	fenced := func(language string, lines ...string) string {
		return "```" + language + "\n" + strings.Join(lines, "\n") + "\n```\n"
	}
	design := parsePage("docs/design.md", "# Design\n## The story of a claim\n")
	tests := []struct {
		name, path, content string
		want                string // "" for no problem
	}{
		{"target", "README.md", "`make demo`", ""},
		{"no target", "README.md", "`make dmo`", "make dmo"},
		{"no target in a session", "README.md", fenced("console", "$ make dmo", "some output of make nothing"), "make dmo"},
		{"file", "README.md", "`hack/demo.sh` and `hack/*.sh`", ""},
		{"no file", "README.md", "`hack/demo.py`", "hack/demo.py is not there"},
		{"link", "README.md", "[design](docs/design.md#the-story-of-a-claim)", ""},
		{"no link", "README.md", "[design](docs/desing.md)", "link to docs/desing.md"},
		{"no heading", "README.md", "[design](docs/design.md#the-end)", "no such heading"},
		{"script", "README.md", fenced("sh", "if true; then", "echo"), "does not parse"},
		{"manifest", "README.md", fenced("yaml", "apiVersion: berth.dev/v1alpha1", "kind: PoolSet", "metadata: {name: a}", "spec: {kind: lvm, deviceSelector: {}}"), ""},
		{"misspelt field", "README.md", fenced("yaml", "apiVersion: berth.dev/v1alpha1", "kind: PoolSet", "metadata: {name: a}", "spec: {kind: lvm, deviceSelectr: {}}"), "deviceSelectr"},
		{"bad YAML", "README.md", fenced("yaml", "a: [", "b"), "does not parse"},
		{"no language", "README.md", fenced("", "x"), "names no language"},
		{"metric", "README.md", "`berth_pool_free_bytes`", ""},
		{"no metric", "README.md", "`berth_pool_size`", "berth_pool_size"},
		{"flags", "docs/reference/commands.md", "`--node-name` `--leader-elect`", ""},
		{"no flag", "docs/reference/commands.md", "`--node-name` `--leader-elect` `--nodename`", "--nodename"},
		{"flag left out", "docs/reference/commands.md", "`--node-name`", "--leader-elect of provisioner is not described"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			problems := check([]page{parsePage(test.path, test.content), design}, f)
			if test.want == "" {
				if len(problems) > 0 {
					t.Errorf("got %v, want no problem", problems)
				}
				return
			}
			if len(problems) != 1 || !strings.Contains(problems[0].text, test.want) {
				t.Errorf("got %v, want one problem with %q", problems, test.want)
			}
		})
	}
}
