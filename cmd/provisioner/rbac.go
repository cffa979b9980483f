// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

// What the provisioner may do, and nothing else. deploy/base/rbac/provisioner.yaml
// is generated from these lines. TestProvisioner of tests/integration fails where it
// asks for more or less.
//
// sig-storage-lib watches every claim, volume and class; writes claims back when
// it reschedules; creates and deletes volumes and patches their finalizers. A
// volume is read past the cache before one of the same name is replaced.
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;update
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
//
// The limits of a claim that names one.
// +kubebuilder:rbac:groups=storage.k8s.io,resources=volumeattributesclasses,verbs=get
//
// The library records events in the old group, the advisor in the new one.
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
//
// LocalVolumes are created, grown (patch) and deleted. The finalizer of one whose
// node is gone and that was never ready is removed by a patch too.
// +kubebuilder:rbac:groups=berth.dev,resources=localvolumes,verbs=get;list;watch;create;patch;delete
//
// LocalSnapshots are created and deleted for csi-snapshotter.
// +kubebuilder:rbac:groups=berth.dev,resources=localsnapshots,verbs=get;list;watch;create;delete
//
// What a claim is to begin as a copy of.
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshots;volumesnapshotcontents,verbs=get
//
// The advisor looks for the PoolSet of a class; GetCapacity sums up what there is,
// and a growth looks at the free space of its pool.
// +kubebuilder:rbac:groups=berth.dev,resources=poolsets,verbs=list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=pools;blockdevices,verbs=list
// +kubebuilder:rbac:groups=storage.k8s.io,namespace=berth-system,resources=csistoragecapacities,verbs=list;watch
//
// Whether a node that does not answer is still there.
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get
//
// One of the replicas leads. A name cannot restrict create.
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=berth-system,resources=leases,verbs=create
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=berth-system,resources=leases,resourceNames=berth-provisioner,verbs=get;update
