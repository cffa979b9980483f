// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec_test

import (
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
)

func TestExitErrorSaysWhy(t *testing.T) {
	t.Parallel()
	for stderr, want := range map[string]string{
		"  /dev/berth-fast: already exists in filesystem\n  Run `vgcreate --help' for more information.\n": "vgcreate exited with 3: /dev/berth-fast: already exists in filesystem",
		"wipefs: invalid option -- 'Q'\nTry 'wipefs --help' for more information.\n":                       "vgcreate exited with 3: wipefs: invalid option -- 'Q'",
		"first\nlast\n\n": "vgcreate exited with 3: last",
		"":                "vgcreate exited with 3: ",
	} {
		err := &hostexec.ExitError{Command: "vgcreate berth-fast", ExitCode: 3, Stderr: stderr}
		if err.Error() != want {
			t.Errorf("%q: %q, want %q", stderr, err.Error(), want)
		}
	}
}
