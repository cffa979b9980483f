// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package sidecars pins the CSI sidecars that a peer needs and the testbed does
// not have. The csi-resizer is the testbed's own.
package sidecars

import _ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
