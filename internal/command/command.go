// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package command holds what Berth's long-running commands have in common: the flags
// for logging and version, exit codes, and what every one of them answers over HTTP.
package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
)

// Exit codes of a command.
const (
	ExitOK      = 0
	ExitFailed  = 1
	ExitOptions = 2
)

// Run runs a command whose options were parsed, with parseErr, and returns its exit
// code. The first SIGTERM or SIGINT ends the context, the second the process. Run may be
// called once in a process.
func Run(name string, c Common, parseErr error, run func(ctx context.Context, log *slog.Logger) error) int {
	switch {
	case errors.Is(parseErr, pflag.ErrHelp):
		return ExitOK
	case parseErr != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, parseErr)
		return ExitOptions
	case c.ShowVersion:
		fmt.Fprintln(os.Stdout, Version())
		return ExitOK
	}
	log := c.NewLogger(os.Stderr)
	if err := run(signals.SetupSignalHandler(), log); err != nil {
		log.Error("the command failed", "command", name, "error", err)
		return ExitFailed
	}
	return ExitOK
}
