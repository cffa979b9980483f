// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	inPod := func(name string) string {
		if name == "POD_NAMESPACE" {
			return "berth-system"
		}
		return ""
	}
	nowhere := func(string) string { return "" }
	tests := map[string]struct {
		args   []string
		getenv func(string) string
		wrong  []string // parts of the message; nil means accepted
	}{
		"defaults":        {getenv: inPod},
		"explicit":        {args: []string{"--namespace=other", "--log-format=text", "--log-level=debug", "--workers=8"}, getenv: nowhere},
		"no namespace":    {getenv: nowhere, wrong: []string{"--namespace is missing"}},
		"unknown flag":    {args: []string{"--worker=8"}, getenv: inPod, wrong: []string{"--worker"}},
		"argument":        {args: []string{"run"}, getenv: inPod, wrong: []string{`"run"`}},
		"relative socket": {args: []string{"--csi-socket=csi.sock"}, getenv: inPod, wrong: []string{"--csi-socket"}},
		"everything": {
			args:   []string{"--workers=0", "--provision-timeout=1s", "--log-level=loud", "--log-format=xml", "--http-address=9809"},
			getenv: inPod,
			wrong:  []string{"--workers 0", "--provision-timeout 1s", `--log-level "loud"`, `--log-format "xml"`, "--http-address"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := parseOptions(test.args, test.getenv)
			if test.wrong == nil {
				if err != nil {
					t.Fatal(err)
				}
				if o.namespace == "" || o.workers == 0 || o.provisionTimeout == 0 {
					t.Errorf("incomplete: %+v", o)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range test.wrong {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

func TestVersionNeedsNothingElse(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"--version"}, func(string) string { return "" })
	if err != nil || !o.ShowVersion {
		t.Errorf("%+v, %v", o, err)
	}
}
