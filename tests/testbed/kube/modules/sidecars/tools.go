// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package sidecars pins the standard CSI sidecars that the testbed builds: the
// resizer and the snapshotter that run beside Berth's provisioner, and the
// cluster's snapshot-controller. It is a module of its own, apart from
// Kubernetes', so that neither raises the other's dependencies. What it shares with
// the product's module is kept at the same versions, so that it is compiled once.
package sidecars

import (
	_ "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"
	_ "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	_ "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"
	_ "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"
)
