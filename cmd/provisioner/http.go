// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/berth-dev/berth/internal/command"
)

// newHTTPServer serves /healthz, /readyz and /metrics on every replica. The manager
// starts this type first and stops it last, so it answers while the caches fill.
func newHTTPServer(ctx context.Context, address string, ready func() error, gatherer prometheus.Gatherer) (*manager.Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on --http-address: %w", err)
	}
	grace := time.Second
	return &manager.Server{
		Name:            "http",
		Server:          &http.Server{Handler: command.HTTPHandler(ready, gatherer), ReadHeaderTimeout: 5 * time.Second},
		Listener:        listener,
		ShutdownTimeout: &grace,
	}, nil
}
