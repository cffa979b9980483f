// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"slices"
	"strings"

	"github.com/berth-dev/berth/tests/testbed/kube"
	"github.com/berth-dev/berth/tests/testbed/process"
)

// Status is how a testbed is.
type Status struct {
	Components []ComponentStatus
	Nodes      []MachineStatus
}

// ComponentStatus is how a part of the control plane is.
type ComponentStatus struct {
	Name string
	// PID is 0 if it has ended.
	PID           int
	ResidentBytes int64
}

// MachineStatus is how a node is.
type MachineStatus struct {
	Name, Address string
	// PID is 0 if it is powered off.
	PID           int
	ResidentBytes int64
	NetworkCut    bool
	// Kubelet is "Ready" or why it is not.
	Kubelet string
}

// Status tells how the testbed is.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	var status Status
	for _, name := range c.componentNames() {
		running, err := process.Find(c.pidPath(name))
		if err != nil {
			return status, err
		}
		component := ComponentStatus{Name: name}
		if running != nil {
			component.PID, component.ResidentBytes = running.PID, running.ResidentBytes()
		}
		status.Components = append(status.Components, component)
	}
	reported, apiErr := c.NodeStatuses(ctx)
	for _, node := range c.state.Nodes {
		running, err := c.running(node.Name)
		if err != nil {
			return status, err
		}
		s, err := c.loadNode(node.Name)
		if err != nil {
			return status, err
		}
		machine := MachineStatus{Name: node.Name, Address: kube.NodeAddress(node.Number), NetworkCut: s.NetworkCut, Kubelet: "not registered"}
		if running != nil {
			machine.PID, machine.ResidentBytes = running.PID, running.ResidentBytes()
		}
		at := slices.IndexFunc(reported, func(s NodeStatus) bool { return s.Name == node.Name })
		switch {
		case apiErr != nil:
			machine.Kubelet = "unknown: the API server does not answer"
		case at >= 0 && reported[at].Ready:
			machine.Kubelet = "Ready"
		case at >= 0:
			machine.Kubelet = "not Ready: " + strings.TrimSuffix(reported[at].Message, ".")
		}
		status.Nodes = append(status.Nodes, machine)
	}
	return status, nil
}
