// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package contents_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/tests/contents"
)

// TestSamplesAreWhatTheySay has libblkid judge each sample: one that it knows it must
// take for what it is called.
func TestSamplesAreWhatTheySay(t *testing.T) {
	t.Parallel()
	samples := contents.All()
	if len(samples) < 30 {
		t.Errorf("%d samples are too few", len(samples))
	}
	names := map[string]bool{}
	for _, sample := range samples {
		if names[sample.Name] {
			t.Errorf("%s stands twice", sample.Name)
		}
		names[sample.Name] = true
		t.Run(sample.Name, func(t *testing.T) {
			t.Parallel()
			path := disk(t)
			if err := sample.Write(path); err != nil {
				t.Fatal(err)
			}
			if got := recognised(t, path); got != sample.Type {
				t.Errorf("libblkid takes it for %q, want %q", got, sample.Type)
			}
		})
	}
}

func disk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, contents.SizeBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

func recognised(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("blkid", "--probe", "--output", "export", path).Output()
	if err != nil {
		// 2 is "nothing was found".
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Fatalf("blkid: %v", err)
		}
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "TYPE" || key == "PTTYPE" {
			return value
		}
	}
	return ""
}
