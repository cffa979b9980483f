// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-dev/berth/tests/testbed/cluster"
)

func runControlPlaneStop(ctx context.Context, arguments []string) error {
	return controlPlane(ctx, arguments, 0, "The control plane has ended", func(c *cluster.Cluster) error { return c.StopControlPlane(ctx) })
}

func runControlPlaneStart(ctx context.Context, arguments []string) error {
	return controlPlane(ctx, arguments, 0, "The control plane runs", func(c *cluster.Cluster) error { return c.StartControlPlane(ctx) })
}

func runEtcdSave(ctx context.Context, arguments []string) error {
	return controlPlane(ctx, arguments, 1, "etcd's state is saved, and the control plane runs", func(c *cluster.Cluster) error { return c.SaveEtcd(ctx, arguments[0]) })
}

func runEtcdRestore(ctx context.Context, arguments []string) error {
	return controlPlane(ctx, arguments, 1, "etcd has its old state, and the control plane runs", func(c *cluster.Cluster) error { return c.RestoreEtcd(ctx, arguments[0]) })
}

// controlPlane does something to the control plane and tells how long it took.
func controlPlane(ctx context.Context, arguments []string, want int, done string, do func(*cluster.Cluster) error) error {
	if err := parse(newFlags("control-plane"), arguments, want, want); err != nil {
		return err
	}
	c, err := cluster.Open("")
	if err != nil {
		return err
	}
	started := time.Now()
	if err := do(c); err != nil {
		return err
	}
	fmt.Printf("%s after %.1fs.\n", done, time.Since(started).Seconds())
	return nil
}
