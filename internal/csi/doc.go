// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package csi serves the Container Storage Interface, version 1.13, and registers
// the node service with kubelet.
//
// The handlers translate and validate; what they do is done by pkg/mount and by
// the interfaces they ask for. They return errors of the domain, and one table,
// in status.go, turns them into gRPC codes.
package csi
