// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
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
	if err != nil || !o.version {
		t.Errorf("%+v, %v", o, err)
	}
	if version() == "" {
		t.Error("no version")
	}
}

func TestReadyzSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	var missing error
	handler := httpHandler(func() error { return missing }, prometheus.NewRegistry())
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w
	}
	if w := get("/readyz"); w.Code != http.StatusOK {
		t.Errorf("ready: %d", w.Code)
	}
	missing = errors.New("no claims yet")
	if w := get("/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no claims yet") {
		t.Errorf("not ready: %d %s", w.Code, w.Body)
	}
	// A replica that is not ready is alive, and is watched.
	for _, path := range []string{"/healthz", "/metrics"} {
		if w := get(path); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
