// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/command"
)

func TestFiltersCommand(t *testing.T) {
	t.Parallel()
	const manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: berth-config}\ndata:\n  filters.yaml: |\n    rules:\n    - {name: a, action: %s, match: {models: x}}\n"
	cases := []struct {
		name, stdin string
		args        []string
		code        int
		says        string
	}{
		{"the shipped filters", "", nil, command.ExitOK, "the filters are valid"},
		{"help", "", []string{"--help"}, command.ExitOK, "--explain"},
		{"from standard input", "filterconfigs: []", []string{"--config", "-"}, command.ExitOK, "the filters are valid"},
		{"a ConfigMap", strings.Replace(manifest, "%s", "include", 1), []string{"--config", "-"}, command.ExitOK, "the filters are valid"},
		{"a ConfigMap with a wrong rule", strings.Replace(manifest, "%s", "drop", 1), []string{"--config", "-"}, command.ExitOptions, `filters.yaml: line 2: action "drop"`},
		{"a ConfigMap without the key", "kind: ConfigMap", []string{"--config", "-"}, command.ExitOptions, "the key filters.yaml is missing"},
		{"a ConfigMap with a wrong field", "kind: ConfigMap\ndate: {}", []string{"--config", "-"}, command.ExitOptions, "date"},
		{"sections without effect", "filterconfigs: []\nprobeconfigs: []", []string{"--config", "-"}, command.ExitOK, "note: line 2: probeconfigs has no effect"},
		{"no such file", "", []string{"--config", "/nowhere/at/all"}, command.ExitOptions, "/nowhere/at/all"},
		{"wrong labels", "", []string{"--node-labels", "a"}, command.ExitOptions, "--node-labels"},
		{"a wrong root", "", []string{"--host-root", "/host"}, command.ExitOptions, "--host-root"},
		{"a stray argument", "", []string{"list"}, command.ExitOptions, `"list"`},
		{"a root that is not there", "", []string{"--explain", "--host-root", "/proc/4194305/root"}, command.ExitFailed, "4194305"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			code := explainFilters(c.args, strings.NewReader(c.stdin), &stdout, &stderr)
			if said := stdout.String() + stderr.String(); code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("code %d, want %d; it says %q, want %q in it", code, c.code, said, c.says)
			}
		})
	}
}

// TestFiltersExplainThisMachine reads the real disks, of which there is at least the
// one that the test runs from.
func TestFiltersExplainThisMachine(t *testing.T) {
	t.Parallel()
	disks, err := filepath.Glob("/sys/block/[!lrz]*")
	if err != nil || len(disks) == 0 || os.Geteuid() != 0 {
		t.Skip("needs root and a machine that shows its disks")
	}
	var stdout, stderr bytes.Buffer
	if code := explainFilters([]string{"--explain", "--host-root", "/"}, strings.NewReader(""), &stdout, &stderr); code != command.ExitOK {
		t.Fatalf("code %d: %s", code, &stderr)
	}
	for _, disk := range disks {
		if size, err := os.ReadFile(disk + "/size"); err != nil || strings.TrimSpace(string(size)) == "0" {
			continue
		}
		if path := "/dev/" + filepath.Base(disk); !strings.Contains(stdout.String(), path+" ") && !strings.HasPrefix(filepath.Base(disk), "dm-") {
			t.Errorf("%s is not explained in\n%s", path, &stdout)
		}
	}
}
