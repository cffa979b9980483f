// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package kubernetes pins the commands of Kubernetes and etcd that the testbed
// builds. It is a module of its own, so that none of their dependencies
// reaches Berth's. The staging modules are replaced by their published
// versions, because Kubernetes' go.mod points at folders that exist only in
// its repository.
package kubernetes

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
