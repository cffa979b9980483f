// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestConformanceOnLoopDevices(t *testing.T) {
	t.Parallel()
	// More than both edges that are examined and wiped, so that there is a middle.
	const diskBytes = 2*block.EdgeBytes + 1<<20
	runConformance(t, devicetest.NewLoopHost, diskBytes, unix.O_EXCL, func(*os.File) error { return nil })
}

func TestConformanceOnFiles(t *testing.T) {
	t.Parallel()
	runConformance(t, devicetest.NewFileHost, 1<<20, 0, func(f *os.File) error {
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
}

func runConformance(t *testing.T, newHost func(testing.TB, ...int64) *devicetest.Host, diskBytes int64, holdFlags int, hold func(*os.File) error) {
	volumetest.Run(t, volumetest.Harness{
		Access:     []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
		WholeDisks: true,
		New: func(t *testing.T) *volumetest.Place {
			host := newHost(t, diskBytes, diskBytes, diskBytes)
			node := newNode(t, host)
			return &volumetest.Place{
				Backend:     node.backend,
				VolumeBytes: diskBytes,
				Volumes:     3,
				Reboot: func(t *testing.T) volume.Backend {
					node.reboot(t)
					return node.backend
				},
				Settle: node.settle,
				Tamper: func(t *testing.T, _ string, rec volume.Record) {
					host.Add(t, rec.Device.IdentityValue, diskBytes) // a second disk of this serial
				},
				Vanish: func(t *testing.T, _ string, rec volume.Record) {
					host.Pull(t, rec.Device.IdentityValue)
				},
				Blind: func(*testing.T) func() {
					node.registry.Blind(errors.New("the API server does not answer"))
					return func() { node.registry.Blind(nil) }
				},
				Hold: func(t *testing.T, loc volume.Location) func() {
					f, err := os.OpenFile(loc.Device, os.O_RDWR|holdFlags, 0)
					if err != nil {
						t.Fatal(err)
					}
					if err := hold(f); err != nil {
						t.Fatal(err)
					}
					return func() { _ = f.Close() }
				},
				CrashAt: func(_ *testing.T, n int) func() bool { return node.registry.CrashAt(n) },
			}
		},
	})
}

// node is a host with the processes on it.
type node struct {
	host     *devicetest.Host
	registry *devicetest.Registry
	backend  *device.Backend
	cleaner  *device.Cleaner
	stop     func()
}

func newNode(t *testing.T, host *devicetest.Host) *node {
	t.Helper()
	n := &node{host: host, registry: devicetest.NewRegistry(host)}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) start() {
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	n.cleaner = device.NewCleaner(device.CleanerOptions{
		Registry: n.registry, Disks: n.registry.Opener(),
		RetryMin: 5 * time.Millisecond, RetryMax: 20 * time.Millisecond, Log: log,
	})
	n.registry.OnWipeDue(n.cleaner.Kick)
	n.backend = device.New(device.Options{Registry: n.registry, Disks: n.registry.Opener(), Log: log})
	go func() {
		defer close(stopped)
		_ = n.cleaner.Run(ctx)
	}()
	n.stop = func() {
		cancel()
		<-stopped
	}
}

func (n *node) reboot(t *testing.T) {
	t.Helper()
	n.stop()
	n.host.Shuffle(t)
	n.registry.Revive()
	n.start()
}

func (n *node) settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.registry.WaitClean(ctx); err != nil {
		t.Fatalf("the released disks do not come clean: %v", err)
	}
}
