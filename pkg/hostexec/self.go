// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// ownProgram is what this process runs.
const ownProgram = "/proc/self/exe"

// RunSelf runs this program once more, in its own namespaces and not the host's, and returns
// what it printed. It serves for what must come to its end when this process is killed: the
// new one is in a process group of its own, and its standard input, which begins with the
// given one, ends when this process does, or when it has ended itself.
//
// An error is an *ExitError when the program did not exit with 0; when the context ended it
// wraps the context's error, and the program was killed.
func RunSelf(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, ownProgram, args...) //nolint:gosec // it is this program
	command.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	command.WaitDelay = drainDelay
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	pipe, err := command.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("run this program's %s: %w", strings.Join(args, " "), err)
	}
	if err := command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("run this program's %s: %w", strings.Join(args, " "), err), pipe.Close())
	}
	_, writeErr := pipe.Write(input)
	err = command.Wait() // it closes the pipe
	switch {
	case err != nil:
		e := &ExitError{Command: strings.Join(args, " "), ExitCode: command.ProcessState.ExitCode(), Stderr: said.String(), cause: ctx.Err()}
		e.TimedOut = errors.Is(e.cause, context.DeadlineExceeded)
		return nil, e
	case writeErr != nil:
		return nil, fmt.Errorf("run this program's %s: write its input: %w", strings.Join(args, " "), writeErr)
	}
	return out.Bytes(), nil
}
