// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command node-agent is the node side of Berth, one process per node: it finds the
// disks, owns the pools and volumes on them, serves the CSI Node service to kubelet
// and publishes the node's capacity.
//
// "node-agent filters --explain" says for every disk of the node what a configuration of
// the filters makes of it, and needs no cluster. "node-agent keep-still" is what the agent
// runs itself while volumes stand still for a group snapshot; it is not for people.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime"

	"github.com/berth-dev/berth/internal/command"
)

// init keeps the main goroutine on the process's first thread. Other threads enter
// the host's namespaces for a moment; /proc/self is the first thread's, and must go
// on showing our own.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(realMain(os.Args[1:]))
}

func realMain(args []string) int {
	if len(args) > 0 && args[0] == "filters" {
		return explainFilters(args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	if len(args) == 1 && args[0] == keepStillCommand {
		return runKeepStill()
	}
	o, err := parseOptions(args, os.Getenv)
	return command.Run("node-agent", o.Common, err, func(ctx context.Context, log *slog.Logger) error {
		return run(ctx, o, log)
	})
}
