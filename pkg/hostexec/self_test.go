// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// selfTest is how this test's program is called by RunSelf.
const selfTest = "self-test"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == selfTest {
		os.Exit(selfMain(os.Args[2]))
	}
	os.Exit(m.Run())
}

func selfMain(what string) int {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadString('\n')
	if err != nil {
		return 3
	}
	switch what {
	case "answer":
		if _, err := fmt.Fprint(os.Stdout, "heard ", line); err != nil {
			return 5
		}
		return 0
	case "fail":
		fmt.Fprint(os.Stderr, "no ", line)
		return 4
	}
	// Until the input ends.
	_, _ = io.Copy(io.Discard, in)
	return 0
}

func TestRunSelf(t *testing.T) {
	t.Parallel()
	out, err := RunSelf(t.Context(), []byte("word\n"), selfTest, "answer")
	if err != nil || string(out) != "heard word\n" {
		t.Errorf("RunSelf = %q, %v", out, err)
	}
	var exit *ExitError
	if _, err := RunSelf(t.Context(), []byte("word\n"), selfTest, "fail"); !errors.As(err, &exit) || exit.ExitCode != 4 || !strings.Contains(err.Error(), "no word") {
		t.Errorf("RunSelf of what fails = %v", err)
	}
	// As long as this process lives, the input does not end.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := RunSelf(ctx, []byte("word\n"), selfTest, "wait"); !errors.As(err, &exit) || !exit.TimedOut || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RunSelf of what waits = %v", err)
	}
}
