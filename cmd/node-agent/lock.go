// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a second agent asks whether the first is gone.
const lockPoll = 500 * time.Millisecond

// lockNode makes this process the one agent of the node. A second one, which a
// rolling update or a mistake may start, waits until the first is gone. The kernel
// gives the lock back when the process ends, however it ends.
func lockNode(ctx context.Context, stateDir string, log *slog.Logger) (release func() error, err error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil { //nolint:gosec // G703: the path is the operator's own option
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	path := filepath.Join(stateDir, "agent.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600) //nolint:gosec // G703: as above
	if err != nil {
		return nil, fmt.Errorf("lock the node: %w", err)
	}
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for waiting := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if !waiting {
			log.Warn("another agent runs on this node; waiting until it is gone", "lock", path)
			waiting = true
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-ticker.C:
		}
	}
}
