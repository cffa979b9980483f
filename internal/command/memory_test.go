// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package command

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestRespectMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	for name, test := range map[string]struct {
		text, env string
		want      int64
	}{
		"a limit":                {text: "1000000000\n", want: 850000000},
		"none":                   {text: "max\n"},
		"cgroup v1":              {},
		"damaged":                {text: "12 MB"},
		"negative":               {text: "-1"},
		"somebody has set one":   {text: "1000000000", env: "100MiB"},
		"more than an int64 has": {text: "99999999999999999999"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", test.env)
			debug.SetMemoryLimit(math.MaxInt64)
			dir := t.TempDir()
			if test.text != "" {
				if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte(test.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := RespectMemoryLimit(dir); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
			want := test.want
			if want == 0 {
				want = math.MaxInt64
			}
			if got := debug.SetMemoryLimit(-1); got != want {
				t.Errorf("the limit is %d, want %d", got, want)
			}
		})
	}
}
