// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent is the policy of one node: it turns LocalVolumes and PoolSets into
// storage through the backends, and tells the API server what became of them.
//
// The Carver does the work on one volume: ledger, backend, filesystem, in an order
// that survives being killed at any point. It makes no API call. The reconcilers
// around it translate objects into wishes and results into status; they take no
// lock. Volumes answers the CSI node service from the informers' cache and, while
// the API server is away, from the ledger.
package agent
