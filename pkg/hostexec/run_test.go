// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

func local(t *testing.T) *Host {
	t.Helper()
	h, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	h.termGrace, h.killGrace = 200*time.Millisecond, 2*time.Second
	return h
}

func sh(script string) Command { return Command{Name: "sh", Args: []string{"-c", script}} }

func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                   string
		command                Command
		stdout, stderr, report string
		exit                   int
		message                string
	}{
		{name: "output", command: sh("echo out; echo err >&2"), stdout: "out\n", stderr: "err\n"},
		{name: "arguments are not a shell's", command: Command{Name: "echo", Args: []string{"$HOME;", "a b"}}, stdout: "$HOME; a b\n"},
		{name: "exit code and last line", command: sh("echo first >&2; echo second >&2; exit 5"), stderr: "first\nsecond\n", exit: 5, message: "sh exited with 5: second"},
		{name: "signal", command: sh("kill -9 $$"), exit: -1, message: "sh was killed: "},
		{name: "report", command: Command{Name: "sh", Args: []string{"-c", "echo data >&3; echo out"}, ReportFD: true}, stdout: "out\n", report: "data\n"},
		{name: "no report asked, no descriptor", command: sh("echo x >&3"), exit: 2, stderr: "sh: 1: 3: Bad file descriptor\n", message: "sh exited with 2: sh: 1: 3: Bad file descriptor"},
		{name: "standard input", command: Command{Name: "cat", Stdin: []byte("in")}, stdout: "in"},
		{name: "no standard input", command: Command{Name: "cat"}},
		{name: "fixed environment", command: Command{Name: "env", Env: []string{"A=b"}}, stdout: "LC_ALL=C\nPATH=" + searchPath + "\nA=b\n"},
		{name: "working directory", command: sh("pwd"), stdout: "/\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			res, err := local(t).Run(t.Context(), tt.command)
			if string(res.Stdout) != tt.stdout || string(res.Stderr) != tt.stderr || string(res.Report) != tt.report || res.ExitCode != tt.exit {
				t.Errorf("got stdout %q, stderr %q, report %q, exit %d", res.Stdout, res.Stderr, res.Report, res.ExitCode)
			}
			var exit *ExitError
			switch {
			case tt.exit == 0 && err != nil:
				t.Errorf("error %v", err)
			case tt.exit != 0 && !errors.As(err, &exit):
				t.Errorf("error %v is no ExitError", err)
			case tt.exit != 0 && (exit.ExitCode != tt.exit || exit.Error() != tt.message || exit.TimedOut):
				t.Errorf("got %+v: %q", exit, exit.Error())
			}
		})
	}
}

func TestRunToolMissing(t *testing.T) {
	t.Parallel()
	_, err := local(t).Run(t.Context(), Command{Name: "no-such-program"})
	if !errors.Is(err, volume.ErrToolMissing) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("got %v", err)
	}
	if _, err := local(t).Run(t.Context(), Command{Name: "/bin/sh"}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a path instead of a name: got %v", err)
	}
}

// The script's child ignores SIGTERM and is in the background: only a kill of the
// whole group ends it.
func TestRunDeadlineKillsGrandchildren(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, script string }{
		{"leader ends on SIGTERM", "(trap '' TERM; exec sleep 1000) & echo $!; wait"},
		{"nobody ends on SIGTERM", "trap '' TERM; sleep 1000 & echo $!; wait; wait; sleep 1000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := sh(tt.script)
			c.Timeout = 500 * time.Millisecond
			began := time.Now()
			res, err := local(t).Run(t.Context(), c)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			var exit *ExitError
			if !errors.As(err, &exit) || !exit.TimedOut || exit.Stuck || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
			pid, perr := strconv.Atoi(strings.TrimSpace(string(res.Stdout)))
			if perr != nil {
				t.Fatalf("grandchild's pid: %v", perr)
			}
			eventually(t, "the grandchild is gone", func() bool { return dead(pid) })
		})
	}
}

func TestRunCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err := local(t).Run(ctx, sh("sleep 1000"))
	var exit *ExitError
	if !errors.As(err, &exit) || exit.TimedOut || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := local(t).Run(ctx, sh("touch /nonexistent/x")); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that is done: got %v", err)
	}
}

// A daemon that keeps the output open must not hold the caller, and what was read
// cannot be trusted to be whole.
func TestRunDaemonHoldsOutput(t *testing.T) {
	t.Parallel()
	c := sh("echo out; setsid sleep 1000 & echo $!")
	began := time.Now()
	res, err := local(t).Run(t.Context(), c)
	lines := Lines(res.Stdout)
	if len(lines) == 2 {
		if pid, perr := strconv.Atoi(lines[1]); perr == nil {
			t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
		}
	} else {
		t.Errorf("stdout %q", res.Stdout)
	}
	if err == nil {
		t.Error("no error though the output was not read to its end")
	}
	if took := time.Since(began); took > drainDelay+5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRunCutOutputIsAnError(t *testing.T) {
	t.Parallel()
	res, err := local(t).Run(t.Context(), Command{Name: "head", Args: []string{"-c", strconv.Itoa(outputLimitBytes + 1), "/dev/zero"}})
	if err == nil || len(res.Stdout) != outputLimitBytes {
		t.Errorf("got %d bytes, error %v", len(res.Stdout), err)
	}
	res, err = local(t).Run(t.Context(), Command{Name: "head", Args: []string{"-c", strconv.Itoa(outputLimitBytes), "/dev/zero"}})
	if err != nil || !bytes.Equal(res.Stdout, make([]byte, outputLimitBytes)) {
		t.Errorf("exactly the limit: got %d bytes, error %v", len(res.Stdout), err)
	}
}

type observed struct {
	mu   sync.Mutex
	seen []string
}

func (o *observed) CommandDone(binary string, d time.Duration, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d > 0 {
		o.seen = append(o.seen, binary+" "+strconv.FormatBool(ok))
	}
}

func TestObserver(t *testing.T) {
	t.Parallel()
	o := &observed{}
	h, err := New(Options{Observer: o})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = h.Run(t.Context(), Command{Name: "true"})
	_, _ = h.Run(t.Context(), Command{Name: "false"})
	_, _ = h.Run(t.Context(), Command{Name: "no-such-program"})
	if got := strings.Join(o.seen, ", "); got != "true true, false false" {
		t.Errorf("observed %q", got)
	}
}

// eventually polls until ok, and fails after ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited too long until %s", what)
		case <-tick.C:
		}
	}
}
