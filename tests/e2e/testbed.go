// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/cluster"
	"github.com/berth-dev/berth/tests/testbed/guest"
)

// TestbedHosts are the nodes of the project's own testbed.
type TestbedHosts struct{ testbed *cluster.Cluster }

// OpenTestbed opens the testbed that runs in this repository.
func OpenTestbed() (Hosts, error) {
	testbed, err := cluster.Open("")
	if err != nil {
		return nil, fmt.Errorf("open the testbed: %w", err)
	}
	return TestbedHosts{testbed: testbed}, nil
}

// Exec implements Hosts.
func (h TestbedHosts) Exec(ctx context.Context, node, script string) (string, error) {
	result, err := h.testbed.Exec(ctx, node, "sh", "-c", script)
	if err != nil {
		return "", fmt.Errorf("run a script on %s: %w", node, err)
	}
	if result.ExitCode != 0 {
		return string(result.Stdout), fmt.Errorf("script on %s exited with %d: %s", node, result.ExitCode, strings.TrimSpace(string(result.Stderr)))
	}
	return string(result.Stdout), nil
}

// PowerOff implements Hosts.
func (h TestbedHosts) PowerOff(ctx context.Context, node string) error {
	return h.testbed.Kill(ctx, node)
}

// PowerOn implements Hosts.
func (h TestbedHosts) PowerOn(ctx context.Context, node string, shuffle bool) error {
	options := cluster.StartOptions{}
	if shuffle {
		// Reversed, not shuffled: a shuffle may leave the order as it was.
		options.DiskOrder = cluster.OrderReverse
	}
	if err := h.testbed.Start(ctx, node, options); err != nil {
		return err
	}
	return h.testbed.WaitReady(ctx, node)
}

// ForeignDigests implements Hosts. A disk that is not as it was when the testbed
// started is an error at once.
func (h TestbedHosts) ForeignDigests(ctx context.Context) (map[string]string, error) {
	digests, err := h.testbed.ForeignDigests(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, digest := range digests {
		if !digest.Unchanged {
			return nil, fmt.Errorf("the foreign disk %s of %s is not as it was when the testbed started", digest.Serial, digest.Node)
		}
		found[digest.Node+"/"+digest.Serial] = digest.SHA256
	}
	return found, nil
}

// PlugDisk implements Hosts.
func (h TestbedHosts) PlugDisk(ctx context.Context, node string, disk Disk) error {
	bus := guest.BusVirtio
	if disk.NVMe {
		bus = guest.BusNVMe
	}
	return h.testbed.AddDisk(ctx, node, guest.Disk{
		Serial: disk.Serial, Reports: disk.Reports, Bus: bus, SizeBytes: disk.SizeBytes,
		ReadOnly: disk.ReadOnly, FailReads: disk.FailReads, FailWrites: disk.FailWrites,
	})
}

// UnplugDisk implements Hosts.
func (h TestbedHosts) UnplugDisk(ctx context.Context, node, serial string) error {
	return h.testbed.RemoveDisk(ctx, node, serial)
}

// MoveDisk implements Hosts.
func (h TestbedHosts) MoveDisk(ctx context.Context, from, serial, to string) error {
	return h.testbed.MoveDisk(ctx, from, serial, to)
}

// WarnDisk implements Hosts.
func (h TestbedHosts) WarnDisk(ctx context.Context, node, serial string, bits uint8) error {
	return h.testbed.WarnDisk(ctx, node, serial, bits)
}

// StopControlPlane implements Hosts.
func (h TestbedHosts) StopControlPlane(ctx context.Context) error {
	return h.testbed.StopControlPlane(ctx)
}

// StartControlPlane implements Hosts.
func (h TestbedHosts) StartControlPlane(ctx context.Context) error {
	return h.testbed.StartControlPlane(ctx)
}

// SaveControlPlane implements Hosts.
func (h TestbedHosts) SaveControlPlane(ctx context.Context, name string) error {
	return h.testbed.SaveEtcd(ctx, name)
}

// RestoreControlPlane implements Hosts.
func (h TestbedHosts) RestoreControlPlane(ctx context.Context, name string) error {
	return h.testbed.RestoreEtcd(ctx, name)
}
