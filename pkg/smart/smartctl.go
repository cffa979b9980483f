// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package smart

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/pkg/hostexec"
)

// timeout of one call: a disk in error recovery takes its time for each command.
const timeout = 30 * time.Second

// Runner runs a program on the host; hostexec.Host is one.
type Runner interface {
	Run(ctx context.Context, command hostexec.Command) (hostexec.Result, error)
}

// Ask reads the report of the disk at a path on the host.
//
// Errors: volume.ErrToolMissing where the host has no smartctl; ErrUnsupported;
// ErrAsleep.
func Ask(ctx context.Context, runner Runner, path string) (Report, error) {
	result, err := runner.Run(ctx, hostexec.Command{
		Name: "smartctl", Timeout: timeout,
		// A sleeping disk is left asleep: smartctl then ends as if it could not open it.
		Args: []string{"--json=c", "--info", "--health", "--attributes", "--nocheck=standby", "--", path},
	})
	// The exit status is a sum of findings, of which most are about the disk and not
	// about the call, and stands in the output as well.
	var exit *hostexec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.TimedOut || len(result.Stdout) == 0) {
		return Report{}, fmt.Errorf("ask %s for its health: %w", path, err)
	}
	report, err := Parse(result.Stdout)
	if err != nil {
		return Report{}, fmt.Errorf("ask %s for its health: %w", path, err)
	}
	return report, nil
}
