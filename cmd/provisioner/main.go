// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command provisioner is the cluster side of Berth: it turns claims into
// LocalVolumes and PersistentVolumes and serves the CSI Controller service for the
// standard sidecars.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/berth-dev/berth/internal/command"
)

func main() {
	os.Exit(realMain(os.Args[1:]))
}

func realMain(args []string) int {
	o, err := parseOptions(args, os.Getenv)
	return command.Run("provisioner", o.Common, err, func(ctx context.Context, log *slog.Logger) error {
		return run(ctx, o, log)
	})
}
