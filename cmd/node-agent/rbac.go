// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

// What a node's agent may do, and nothing else. deploy/base/rbac/node-agent.yaml is
// generated from these lines. Which objects it may write, those of its own node, is
// for the admission policy berth-agent-own-node to say. TestAgent of tests/integration
// fails where it asks for more or less.
//
// What it follows is listed and watched and not got one by one: reads are of the cache.
//
// The status of LocalVolumes, and the finalizer of those that are gone.
// +kubebuilder:rbac:groups=berth.dev,resources=localvolumes,verbs=list;watch;patch
// +kubebuilder:rbac:groups=berth.dev,resources=localvolumes/status,verbs=patch
//
// The same of LocalSnapshots.
// +kubebuilder:rbac:groups=berth.dev,resources=localsnapshots,verbs=list;watch;patch
// +kubebuilder:rbac:groups=berth.dev,resources=localsnapshots/status,verbs=patch
//
// Pools are made from PoolSets; their finalizer goes when they are empty.
// +kubebuilder:rbac:groups=berth.dev,resources=poolsets,verbs=list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=pools,verbs=list;watch;create;patch
// +kubebuilder:rbac:groups=berth.dev,resources=pools/status,verbs=patch
//
// BlockDevices have no status subresource: one write keeps claim and state together.
// +kubebuilder:rbac:groups=berth.dev,resources=blockdevices,verbs=get;list;watch;create;patch
//
// What may lead to a left-over that somebody has asked to purge: read when that is asked, and
// never followed.
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=list
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshotcontents,verbs=list
//
// The labels of the node, for PoolSets, and its UID, for owner references.
// +kubebuilder:rbac:groups="",resources=nodes,verbs=list;watch
//
// The disk filters.
// +kubebuilder:rbac:groups="",namespace=berth-system,resources=configmaps,verbs=get;list;watch
//
// Copies of the metadata of the node's volume groups. Of the ConfigMaps it may write no
// others, for which the admission policy berth-agent-metadata sees to.
// +kubebuilder:rbac:groups="",namespace=berth-system,resources=configmaps,verbs=create;patch;delete
//
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
//
// Capacity is told per class.
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,namespace=berth-system,resources=csistoragecapacities,verbs=list;create;patch;delete
