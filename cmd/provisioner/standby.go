// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// sleepingCache follows nothing until it is woken. A replica that does not lead
// decides nothing, and following every claim and volume of the cluster would cost
// it, and the API server, as much as it costs the leader.
type sleepingCache struct {
	cache.Cache

	once  sync.Once
	awake chan struct{}
}

// newSleepingCache is a manager's NewCache.
func newSleepingCache(cfg *rest.Config, o cache.Options) (cache.Cache, error) {
	inner, err := cache.New(cfg, o)
	if err != nil {
		return nil, err
	}
	return &sleepingCache{Cache: inner, awake: make(chan struct{})}, nil
}

// Start follows from the first call of wake until the context ends.
func (c *sleepingCache) Start(ctx context.Context) error {
	select {
	case <-c.awake:
		return c.Cache.Start(ctx)
	case <-ctx.Done():
		return nil
	}
}

// WaitForCacheSync is the manager's question whether it may go on to the election:
// it may while the cache sleeps. Who reads the cache calls wake.
func (c *sleepingCache) WaitForCacheSync(ctx context.Context) bool {
	if !c.isAwake() {
		return true
	}
	return c.Cache.WaitForCacheSync(ctx)
}

func (c *sleepingCache) isAwake() bool {
	select {
	case <-c.awake:
		return true
	default:
		return false
	}
}

// wake begins to follow, if that was not done before, and waits until everything was
// seen once.
func (c *sleepingCache) wake(ctx context.Context) error {
	c.once.Do(func() { close(c.awake) })
	if !c.Cache.WaitForCacheSync(ctx) {
		return fmt.Errorf("fill the cache: %w", context.Cause(ctx)) // it is false for no other reason
	}
	return nil
}

// leading are the parts that run only in the replica that leads, with a cache that
// is awake and full.
type leading struct {
	wake  func(context.Context) error
	parts []manager.Runnable
}

// Start runs the parts until the context ends and all have stopped, or until one
// fails.
func (l *leading) Start(ctx context.Context) error {
	if err := l.wake(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopped while it filled, which is the normal end
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range l.parts {
		group.Go(func() error { return part.Start(ctx) })
	}
	return group.Wait()
}

// NeedLeaderElection says that the manager is to start them with the lease.
func (l *leading) NeedLeaderElection() bool { return true }

// gatherer is the manager for controllers that add themselves to it: they become
// parts of what leads.
type gatherer struct {
	manager.Manager
	into *leading
}

// Add takes a part, where the manager would run it by itself.
func (g gatherer) Add(part manager.Runnable) error {
	g.into.parts = append(g.into.parts, part)
	return nil
}
