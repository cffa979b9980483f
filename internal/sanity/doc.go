// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sanity runs csi-sanity, the conformance suite of the Container Storage
// Interface, against everything of Berth that stands between a CSI call and the
// disk, once for each mode. It has nothing but tests.
//
// Real are the gRPC services, the LocalVolumes' life in the provisioner and the
// agent, the ledger, the backends, mkfs, the filesystems and the mounts. In memory
// are the API server, the registry of disks, and lvm itself, whose volumes are
// loop devices over files.
package sanity
