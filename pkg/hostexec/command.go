// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// Command is one program to run. There is no shell: arguments are a slice.
type Command struct {
	// Name of the program without a directory ("lvm", "mkfs.ext4"). It is looked for
	// on the host, in the usual directories of system programs.
	Name string
	// Args without the program's name.
	Args []string
	// Stdin is given to the program; empty means /dev/null.
	Stdin []byte
	// Env is added to the fixed environment (LC_ALL=C and a PATH).
	Env []string
	// Timeout is the longest the program may run, besides the context's own
	// deadline. When it passes, the whole process group is killed. Zero means
	// DefaultTimeout.
	Timeout time.Duration
	// Stdout, if it is not nil, gets the program's standard output as it comes, however
	// much that is, and Result.Stdout stays empty. When it returns an error the program
	// has nobody to write to any more. It is not called after Run has returned.
	Stdout io.Writer
	// ReportFD opens one more pipe to the program as file descriptor 3 and returns
	// what it writes there in Result.Report (lvm: LVM_REPORT_FD).
	ReportFD bool
}

// DefaultTimeout bounds a command that names no timeout of its own.
const DefaultTimeout = 2 * time.Minute

// String is the command as a person would type it, for logs and messages.
func (c Command) String() string {
	return strings.TrimSpace(c.Name + " " + strings.Join(c.Args, " "))
}

// Result is what a program left behind. It is filled as far as it is known also
// when Run returns an error.
type Result struct {
	Stdout   []byte
	Stderr   []byte
	Report   []byte
	ExitCode int
	Duration time.Duration
}

// ExitError is returned when the program ran and exited with another code than 0
// or was killed. What it did before that is unknown: observe.
type ExitError struct {
	// Command as typed.
	Command string
	// ExitCode, or -1 when a signal ended it.
	ExitCode int
	// TimedOut is true when the deadline passed and the process group was killed.
	TimedOut bool
	// Stuck is true when the program did not go even after SIGKILL: it waits in the
	// kernel, most often for a device that does not answer, and may still act later.
	Stuck bool
	// Stderr as printed.
	Stderr string

	// cause is the context's error when that ended the program.
	cause error
}

// Unwrap is the context's error when the deadline or a cancellation ended the
// program, nil otherwise.
func (e *ExitError) Unwrap() error { return e.cause }

// help is how lvm and the tools of GNU end what they say of a command that they do not
// take.
var help = regexp.MustCompile("^(Run|Try) [`'].*--help'")

// Error is short: the last line of stderr that says something stands for the rest, which
// is for logs.
func (e *ExitError) Error() string {
	last := ""
	for line := range strings.Lines(e.Stderr) {
		if line = strings.TrimSpace(line); line != "" && !help.MatchString(line) {
			last = line
		}
	}
	name, _, _ := strings.Cut(e.Command, " ")
	switch {
	case e.Stuck:
		return fmt.Sprintf("%s hangs in the kernel and could not be killed after its deadline: %s", name, last)
	case e.TimedOut:
		return fmt.Sprintf("%s was killed after its deadline: %s", name, last)
	case e.ExitCode < 0:
		return fmt.Sprintf("%s was killed: %s", name, last)
	}
	return fmt.Sprintf("%s exited with %d: %s", name, e.ExitCode, last)
}

// Lines splits an output into its non-empty lines.
func Lines(out []byte) []string {
	var lines []string
	for line := range bytes.Lines(out) {
		if s := strings.TrimSpace(string(line)); s != "" {
			lines = append(lines, s)
		}
	}
	return lines
}
