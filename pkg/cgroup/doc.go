// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroup finds the control groups of pods in the host's cgroup v2 and limits
// there what a pod reads from and writes to a block device.
//
// Sources of facts: Documentation/admin-guide/cgroup-v2.rst of the kernel ("IO
// Interface Files", "Enabling and Disabling") for the files, and kubelet's
// pkg/kubelet/cm (cgroup_manager_linux.go, pod_container_manager_linux.go,
// qos_container_manager_linux.go) for the names of the groups.
package cgroup
