// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// readiness answers /readyz. It says no until the agent has set what to ask.
type readiness struct {
	check atomic.Pointer[func() error]
}

func (r *readiness) set(check func() error) { r.check.Store(&check) }

func (r *readiness) err() error {
	check := r.check.Load()
	if check == nil {
		return errors.New("the agent is starting, or waits for another agent on this node to end")
	}
	return (*check)()
}

// serveHTTP serves the handler until the context ends.
func serveHTTP(ctx context.Context, address string, handler http.Handler) (done <-chan error, err error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on --http-address: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	go func() {
		err := server.Serve(listener)
		if ctx.Err() != nil {
			err = nil
		}
		ended <- err
	}()
	return ended, nil
}
