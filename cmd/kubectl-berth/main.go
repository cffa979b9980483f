// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Command kubectl-berth is a plugin of kubectl: in a folder of $PATH, `kubectl berth` runs it.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/berth-dev/berth/internal/kubectl"
)

func main() {
	// What its client says is in its errors. Without a logger it would, after half a minute, print a stack to the user.
	log.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := kubectl.Run(ctx, os.Args[1:], kubectl.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, kubectl.Connect)
	stop()
	os.Exit(code)
}
