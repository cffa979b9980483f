// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command node-agent is the node side of Berth, one process per node: it finds the
// disks, owns the pools and volumes on them, serves the CSI Node service to kubelet
// and publishes the node's capacity.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/manager/signals"
)

// init keeps the main goroutine on the process's first thread. Other threads enter
// the host's namespaces for a moment; /proc/self is the first thread's, and must go
// on showing our own.
func init() { runtime.LockOSThread() }

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
		fmt.Fprintf(os.Stderr, "node-agent: %v\n", err)
		return 2
	case o.version:
		fmt.Println(version())
		return 0
	}
	log := newLogger(o, os.Stderr)
	// The first SIGTERM or SIGINT ends the context, the second the process.
	if err := run(signals.SetupSignalHandler(), o, log); err != nil {
		log.Error("the node agent failed", "error", err)
		return 1
	}
	return 0
}
