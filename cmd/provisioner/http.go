// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// newHTTPServer serves the handler on every replica. The manager starts this type
// first and stops it last, so it answers while the caches fill.
func newHTTPServer(ctx context.Context, address string, handler http.Handler) (*manager.Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on --http-address: %w", err)
	}
	grace := time.Second
	return &manager.Server{
		Name:            "http",
		Server:          &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second},
		Listener:        listener,
		ShutdownTimeout: &grace,
	}, nil
}
