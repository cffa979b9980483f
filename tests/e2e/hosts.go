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
type DockerHosts struct{}

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
type NoHosts struct{}

// Exec implements Hosts.
func (NoHosts) Exec(context.Context, string, string) (string, error) { return "", errCannot }

// PowerOff implements Hosts.
func (NoHosts) PowerOff(context.Context, string) error { return errCannot }

// PowerOn implements Hosts.
func (NoHosts) PowerOn(context.Context, string, bool) error { return errCannot }

// ForeignDigests implements Hosts.
func (NoHosts) ForeignDigests(context.Context) (map[string]string, error) { return nil, errCannot }
