// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

func parse(t *testing.T, args ...string) (Common, error) {
	t.Helper()
	var c Common
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	return c, c.Validate()
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--log-level=debug"}, {"--log-format=text", "--log-level=WARN"}} {
		if _, err := parse(t, args...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	_, err := parse(t, "--log-level=loud", "--log-format=xml")
	if err == nil || !strings.Contains(err.Error(), `--log-level "loud"`) || !strings.Contains(err.Error(), `--log-format "xml"`) {
		t.Errorf("two wrong options: %v", err)
	}
}

func TestLogger(t *testing.T) { // sets the libraries' loggers, so it is not parallel
	for format, part := range map[string]string{"json": `"level":"WARN"`, "text": "level=WARN"} {
		c, err := parse(t, "--log-level=warn", "--log-format="+format)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		log := c.NewLogger(&out)
		log.Info("unheard")
		log.Warn("heard")
		if got := out.String(); !strings.Contains(got, part) || strings.Contains(got, "unheard") {
			t.Errorf("%s: %q", format, got)
		}
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	never := func(context.Context, *slog.Logger) error {
		t.Error("it ran")
		return nil
	}
	if code := Run("test", Common{}, pflag.ErrHelp, never); code != ExitOK {
		t.Errorf("help ends with %d", code)
	}
	if code := Run("test", Common{}, errors.New("--nonsense"), never); code != ExitOptions {
		t.Errorf("wrong options end with %d", code)
	}
	if code := Run("test", Common{ShowVersion: true}, nil, never); code != ExitOK {
		t.Errorf("version ends with %d", code)
	}
	failing := func(context.Context, *slog.Logger) error { return errors.New("it broke") }
	if code := Run("test", Common{logFormat: "json"}, nil, failing); code != ExitFailed {
		t.Errorf("a failure ends with %d", code)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if Version() == "" {
		t.Error("no version")
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	var notReady error
	handler := (&Common{}).HTTPHandler(func() error { return notReady }, prometheus.NewRegistry())
	ask := func(path string) (int, string) {
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		return recorder.Code, recorder.Body.String()
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, _ := ask(path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
	}
	notReady = errors.New("waits for the disks")
	if code, body := ask("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "waits for the disks") {
		t.Errorf("/readyz while not ready: %d %q", code, body)
	}
	if code, _ := ask("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz while not ready: %d", code)
	}
	if code, _ := ask("/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/ without --profiling: %d", code)
	}
	handler = (&Common{profiling: true}).HTTPHandler(func() error { return nil }, prometheus.NewRegistry())
	if code, body := ask("/debug/pprof/"); code != http.StatusOK || !strings.Contains(body, "goroutine") {
		t.Errorf("/debug/pprof/ with --profiling: %d %q", code, body)
	}
}
