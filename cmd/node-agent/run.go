// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	clientconfig "sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/berth-dev/berth/internal/command"
	"github.com/berth-dev/berth/internal/ledger"
	bmetrics "github.com/berth-dev/berth/internal/metrics"
	"github.com/berth-dev/berth/internal/nodeagent"
	"github.com/berth-dev/berth/pkg/hostexec"
)

// run serves the node until the context ends.
func run(ctx context.Context, o options, log *slog.Logger) error {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimitBytes)
	cfg, err := clientconfig.GetConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	cfg.UserAgent = "berth-node-agent/" + command.Version()
	return runWith(ctx, cfg, o, log)
}

// runWith runs against the API server of the configuration.
//
// The order is: the node's lock, the ledger, the backends, the CSI service, and only
// then the API server, which may be away.
func runWith(parent context.Context, cfg *rest.Config, o options, log *slog.Logger) error {
	log.Info("starting", "version", command.Version(), "node", o.nodeName, "namespace", o.namespace, "stateDir", o.stateDir)
	group, ctx := errgroup.WithContext(parent)
	ready := &readiness{}
	httpDone, err := serveHTTP(ctx, o.httpAddress, o.HTTPHandler(ready.err, metrics.Registry))
	if err != nil {
		return err
	}
	group.Go(func() error { return <-httpDone })
	group.Go(func() error { return serveNode(ctx, cfg, o, log, ready) })
	if err := group.Wait(); err != nil && (parent.Err() == nil || !errors.Is(err, context.Canceled)) {
		return err
	}
	return nil
}

// serveNode runs all that needs the node's lock, and holds the lock until all of it
// has ended.
func serveNode(ctx context.Context, cfg *rest.Config, o options, log *slog.Logger, ready *readiness) (err error) {
	stateDir := o.onHost(o.stateDir)
	release, err := lockNode(ctx, stateDir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()

	machineID, err := readMachineID(o.onHost("/etc/machine-id"))
	if err != nil {
		return err
	}
	commands, err := bmetrics.NewCommands(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	hostRoot := o.hostRoot
	if hostRoot == "/" {
		hostRoot = "" // nothing is entered
	}
	host, err := hostexec.New(hostexec.Options{HostRoot: hostRoot, Observer: commands})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()

	book, err := ledger.Open(filepath.Join(stateDir, "ledger"))
	if err != nil {
		return err
	}
	for _, damage := range book.Damaged() {
		log.Error("A volume cannot be served until its record is repaired", "error", damage)
	}
	if err := bmetrics.RegisterDamagedEntries(metrics.Registry, func() int { return len(book.Damaged()) }); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	n, err := nodeagent.New(ctx, nodeagent.Options{
		Config: cfg, NodeName: o.nodeName, Namespace: o.namespace, MachineID: machineID,
		Host: host, HostRoot: o.hostRoot, StateDir: stateDir, HostStateDir: o.stateDir, Ledger: book,
		CSISocket: o.csiSocket, Endpoint: o.endpoint(), RegistrationDir: o.registrationDir,
		HealthInterval: o.healthInterval, WipeParallelism: o.wipeParallelism, WipeRateBytesPerSecond: o.wipeRate.Value(),
		TrashEntriesPerSecond: o.trashRate, Instants: stillness{root: o.hostRoot}, Registerer: metrics.Registry, Log: log,
		Settled: func() {
			if err := trimMemory(); err != nil {
				log.Warn("memory that is not needed any more was kept", "error", err)
			}
		},
	})
	if err != nil {
		return err
	}
	ready.set(n.Ready)
	return n.Serve(ctx)
}
