// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodeagent ties together what one node's agent is made of: discovery, pools,
// volumes, capacity and the CSI Node service. cmd/node-agent runs one of them on a host;
// tests/scale runs many in one process, over hosts that are trees of files.
package nodeagent
