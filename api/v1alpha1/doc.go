// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is Berth's contract with its users: the cluster-scoped
// objects that the provisioner and the node agents write and read, and the only
// channel between the two.
//
// Single writer: a node's agent alone writes BlockDevice, Pool and the status of
// the LocalVolumes of its node; the provisioner alone writes a LocalVolume's
// spec. The one exception is spec.reserved of a BlockDevice, which belongs to
// the operator.
//
// +kubebuilder:object:generate=true
// +groupName=berth.dev
package v1alpha1
