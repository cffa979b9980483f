// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package localpath pins local-path-provisioner. It is a module of its own, apart
// from the other peers, so that it is built with the dependencies that its
// release has. v0.0.30 is the newest release that Go's checksum database vouched
// for when this was written.
package localpath

import _ "github.com/rancher/local-path-provisioner"
