// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Hosts reaches the nodes from outside Kubernetes.
type Hosts interface {
	// Exec runs a shell script as root on a node and returns what it printed.
	// A script that exits with another code than 0 is an error with its stderr.
	Exec(ctx context.Context, node, script string) (string, error)
	// PowerOff cuts the power: nothing is flushed, nothing is said.
	PowerOff(ctx context.Context, node string) error
	// PowerOn starts the node and returns when the machine is up. With shuffle its
	// data disks are plugged in another order, so that kernel names change.
	PowerOn(ctx context.Context, node string, shuffle bool) error
	// ForeignDigests returns a digest of every foreign disk of every node, by node
	// and serial, read from outside.
	ForeignDigests(ctx context.Context) (map[string]string, error)
	// PlugDisk adds a disk to a node that runs; one of a serial that was unplugged comes
	// back with its content.
	PlugDisk(ctx context.Context, node string, disk Disk) error
	// UnplugDisk takes a disk away, whoever uses it.
	UnplugDisk(ctx context.Context, node, serial string) error
	// MoveDisk takes a disk away from one node and gives it to another.
	MoveDisk(ctx context.Context, from, serial, to string) error
	// WarnDisk has an NVMe disk say that it is failing; bits 0 takes it back.
	WarnDisk(ctx context.Context, node, serial string, bits uint8) error
	// StopControlPlane ends the API server and all that runs beside it; the nodes go on.
	StopControlPlane(ctx context.Context) error
	// StartControlPlane starts what does not run of it, and returns when it is healthy.
	StartControlPlane(ctx context.Context) error
	// SaveControlPlane keeps the state of the cluster under a name, RestoreControlPlane puts
	// it back. The control plane is away meanwhile, and the nodes are not told.
	SaveControlPlane(ctx context.Context, name string) error
	RestoreControlPlane(ctx context.Context, name string) error
}

// Disk is one to be plugged in.
type Disk struct {
	// Serial names it, for whoever plugs it; Reports is what the node reads, where that
	// is something else.
	Serial, Reports string
	SizeBytes       int64
	// NVMe or virtio.
	NVMe bool
	// ReadOnly refuses writes; FailReads and FailWrites answer with an I/O error.
	ReadOnly, FailReads, FailWrites bool
}

var errCannot = errors.New("the cluster's description does not allow it")

// command runs a program of the machine the suite runs on.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// DockerHosts are the nodes of a kind cluster: containers named like the nodes.
type DockerHosts struct {
	noPlugs
	noControlPlane
}

// Exec implements Hosts.
func (DockerHosts) Exec(ctx context.Context, node, script string) (string, error) {
	return command(ctx, "docker", "exec", node, "sh", "-c", script)
}

// PowerOff implements Hosts; a container has no power to cut.
func (DockerHosts) PowerOff(context.Context, string) error { return errCannot }

// PowerOn implements Hosts.
func (DockerHosts) PowerOn(context.Context, string, bool) error { return errCannot }

// ForeignDigests implements Hosts; kind nodes have no foreign disks.
func (DockerHosts) ForeignDigests(context.Context) (map[string]string, error) {
	return nil, errCannot
}

// NoHosts is a cluster whose nodes cannot be reached.
type NoHosts struct {
	noPlugs
	noControlPlane
}

// Exec implements Hosts.
func (NoHosts) Exec(context.Context, string, string) (string, error) { return "", errCannot }

// PowerOff implements Hosts.
func (NoHosts) PowerOff(context.Context, string) error { return errCannot }

// PowerOn implements Hosts.
func (NoHosts) PowerOn(context.Context, string, bool) error { return errCannot }

// ForeignDigests implements Hosts.
func (NoHosts) ForeignDigests(context.Context) (map[string]string, error) { return nil, errCannot }

// noPlugs are hosts whose disks stay where they are.
type noPlugs struct{}

// PlugDisk implements Hosts.
func (noPlugs) PlugDisk(context.Context, string, Disk) error { return errCannot }

// UnplugDisk implements Hosts.
func (noPlugs) UnplugDisk(context.Context, string, string) error { return errCannot }

// MoveDisk implements Hosts.
func (noPlugs) MoveDisk(context.Context, string, string, string) error { return errCannot }

// WarnDisk implements Hosts.
func (noPlugs) WarnDisk(context.Context, string, string, uint8) error { return errCannot }

// noControlPlane are hosts of a cluster whose control plane stays as it is.
type noControlPlane struct{}

// StopControlPlane implements Hosts.
func (noControlPlane) StopControlPlane(context.Context) error { return errCannot }

// StartControlPlane implements Hosts.
func (noControlPlane) StartControlPlane(context.Context) error { return errCannot }

// SaveControlPlane implements Hosts.
func (noControlPlane) SaveControlPlane(context.Context, string) error { return errCannot }

// RestoreControlPlane implements Hosts.
func (noControlPlane) RestoreControlPlane(context.Context, string) error { return errCannot }
