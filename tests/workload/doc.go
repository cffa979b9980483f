// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package workload makes the claims and pods that the end-to-end suite and the
// benchmarks put on a cluster, and waits for them by watching. It knows nothing
// of Berth: any provisioner can be driven through it by the name of its
// StorageClass.
package workload
