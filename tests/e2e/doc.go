// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e is the end-to-end suite. It takes a kubeconfig and a description of
// what the cluster can do, so that the same suite runs on the testbed and on a
// user's kind cluster; a spec that needs what the cluster cannot do is skipped
// and says so.
//
//	go test ./tests/e2e -args -cluster tests/e2e/testbed.yaml
package e2e
