// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/index/db.json" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"modified":"2026-11-01T10:00:00Z"}`))
	}))
	t.Cleanup(there.Close)
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("<html>log in first</html>"))
	}))
	t.Cleanup(portal.Close)
	broken := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(broken.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	local := t.TempDir()
	if err := os.Mkdir(filepath.Join(local, "index"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(local, "index", "db.json"), []byte(`{"modified":"2026-10-31T10:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}

	vulnerable := errors.New("exit status 3")
	for _, c := range []struct {
		name, database string
		finds          error
		ran            bool
		says           string
	}{
		{"there, nothing is found", there.URL, nil, true, "is of 2026-11-01"},
		{"there, something is found", there.URL + "/", vulnerable, true, "is of 2026-11-01"},
		{"a copy on this machine", "file://" + local, vulnerable, true, "is of 2026-10-31"},
		{"gone", gone.URL, vulnerable, false, "NOT CHECKED"},
		{"no such page", broken.URL, vulnerable, false, "404"},
		{"something else answers", portal.URL, vulnerable, false, "NOT CHECKED"},
		{"no copy on this machine", "file:///nowhere/at/all", vulnerable, false, "NOT CHECKED"},
		{"no URL", "http://[", vulnerable, false, "NOT CHECKED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			ran := false
			err := check(t.Context(), c.database, func(context.Context, string) error { ran = true; return c.finds }, &out)
			if ran != c.ran || !strings.Contains(out.String(), c.says) {
				t.Errorf("ran %t, want %t; it says %q, want %q in it", ran, c.ran, &out, c.says)
			}
			if c.ran && !errors.Is(err, c.finds) || !c.ran && err != nil {
				t.Errorf("error %v", err)
			}
		})
	}
}
