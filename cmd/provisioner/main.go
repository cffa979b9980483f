// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command provisioner is the cluster side of Berth: it turns claims into
// LocalVolumes and PersistentVolumes and serves the CSI Controller service for the
// standard sidecars.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
)

func main() {
	os.Exit(realMain(os.Args[1:]))
}

// realMain returns the exit code: 2 when the options are wrong, 1 when the command
// failed.
func realMain(args []string) int {
	o, err := parseOptions(args, os.Getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "provisioner: %v\n", err)
		return 2
	case o.version:
		fmt.Println(version())
		return 0
	}
	log := newLogger(o, os.Stderr)
	// The first SIGTERM or SIGINT ends the context, the second the process.
	if err := run(signals.SetupSignalHandler(), o, log); err != nil {
		log.Error("the provisioner failed", "error", err)
		return 1
	}
	return 0
}
