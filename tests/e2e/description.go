// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"slices"

	"sigs.k8s.io/yaml"
)

// Description says what the cluster under test is and can do.
type Description struct {
	// Image that is present on every node and has a shell, dd, sync and sha256sum.
	Image string `json:"image"`
	// Namespace Berth runs in.
	Namespace string `json:"namespace"`
	// Classes are the StorageClasses under test.
	Classes Classes `json:"classes"`
	// LVMPool and HostpathPool are the PoolSets behind the classes.
	LVMPool      string `json:"lvmPool"`
	HostpathPool string `json:"hostpathPool"`
	// Hosts says how to reach the nodes from outside Kubernetes: testbed, docker
	// (kind) or none.
	Hosts string `json:"hosts"`
	// Can lists what may be done to the nodes.
	Can []Capability `json:"can"`
}

// Classes are the names of the StorageClasses under test; an empty one means that
// the cluster cannot serve it.
type Classes struct {
	LVM       string `json:"lvm"`
	LVMXFS    string `json:"lvmXFS"`
	LVMBtrfs  string `json:"lvmBtrfs"`
	LVMRetain string `json:"lvmRetain"`
	Device    string `json:"device"`
	Hostpath  string `json:"hostpath"`
}

// Capability is something that may be done to the cluster's nodes.
type Capability string

// What a description may list.
const (
	// CanExec runs commands as root on a node.
	CanExec Capability = "exec"
	// CanPowerOff cuts a node's power and starts it again.
	CanPowerOff Capability = "power"
	// CanRestartKubelet restarts the kubelet by systemd.
	CanRestartKubelet Capability = "kubelet"
	// CanSeeForeignDisks digests the nodes' foreign disks from outside.
	CanSeeForeignDisks Capability = "foreign-disks"
	// CanPlugDisks adds and removes disks while a node runs.
	CanPlugDisks Capability = "hotplug"
	// CanControl stops and starts the control plane, and puts its state back to an older one.
	CanControl Capability = "control-plane"
)

var capabilities = []Capability{CanExec, CanPowerOff, CanRestartKubelet, CanSeeForeignDisks, CanPlugDisks, CanControl}

// ReadDescription reads and checks a description.
func ReadDescription(path string) (*Description, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read description of the cluster: %w", err)
	}
	description := &Description{}
	if err := yaml.UnmarshalStrict(raw, description); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if description.Image == "" || description.Namespace == "" {
		return nil, fmt.Errorf("read %s: image and namespace are needed", path)
	}
	if !slices.Contains([]string{"testbed", "docker", "none"}, description.Hosts) {
		return nil, fmt.Errorf("read %s: hosts: %q is not one of testbed, docker, none", path, description.Hosts)
	}
	for _, can := range description.Can {
		if !slices.Contains(capabilities, can) {
			return nil, fmt.Errorf("read %s: can: %q is not one of %v", path, can, capabilities)
		}
	}
	return description, nil
}

// Has reports whether the cluster can do something.
func (d *Description) Has(capability Capability) bool {
	return slices.Contains(d.Can, capability)
}
