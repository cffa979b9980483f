// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// stallMark is what the kernel prints on its console when a processor's timer does not
// ring: an emulated machine of several processors may lose one while it boots, and then
// waits for ever.
const stallMark = "timer wakeup didn't happen"

// mostRestarts bounds how often a node that stalled is started again.
const mostRestarts = 3

func stalled(console []byte) bool { return bytes.Contains(console, []byte(stallMark)) }

// restartStalled takes the power from a node that stalled while it booted, and starts it
// again. It reports whether it did. A node whose agent answers is left alone.
func (c *Cluster) restartStalled(ctx context.Context, node string) (bool, error) {
	console, err := os.ReadFile(c.consoleLog(node))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !stalled(console) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	const patience = 10 * time.Second
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if c.agent(node).Ping(asking) == nil || ctx.Err() != nil {
		return false, nil
	}
	if err := c.Kill(ctx, node); err != nil {
		return false, fmt.Errorf("%s stalled while it booted: %w", node, err)
	}
	if err := c.Start(ctx, node, StartOptions{}); err != nil {
		return false, fmt.Errorf("start %s again, which stalled while it booted: %w", node, err)
	}
	return true, nil
}
