// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package capacity

import (
	"crypto/sha256"
	"encoding/hex"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// LabelDriver and LabelManagedBy are the labels that external-provisioner sets on
	// such objects, so that people find ours the same way.
	LabelDriver    = "csi.storage.k8s.io/drivername"
	LabelManagedBy = "csi.storage.k8s.io/managed-by"
	// ManagedBy is the value of LabelManagedBy.
	ManagedBy = "berth-node-agent"
)

// Room is what is published: what volumes of one class may use on the node, and how
// large the largest can be.
type Room struct {
	FreeBytes      int64
	MaxVolumeBytes int64
}

// None reports whether no volume fits at all. Such a node has no object: the
// scheduler takes a missing one for no room, and has one less to look through.
func (r Room) None() bool { return r.FreeBytes <= 0 || r.MaxVolumeBytes <= 0 }

// name of the object for a class on a node. The node's name is part of it, and what
// else cannot change in such an object.
func name(class, node string) string {
	sum := sha256.Sum256([]byte(v1alpha1.DriverName + "\x00" + class + "\x00" + node))
	return "csisc-" + hex.EncodeToString(sum[:])[:20]
}

// labels select the objects of one node.
func labels(node string) map[string]string {
	return map[string]string{
		LabelDriver:              v1alpha1.DriverName,
		LabelManagedBy:           ManagedBy,
		v1alpha1.TopologyKeyNode: node,
	}
}

// object is what the API server should hold.
//
// Both capacity and maximumVolumeSize are always set: the scheduler's filter looks at
// the second, but its scoring, on by default since Kubernetes 1.37, dereferences the
// first without asking (pkg/scheduler/framework/plugins/volumebinding).
func object(namespace, class, node string, owner metav1.OwnerReference, r Room) *storagev1.CSIStorageCapacity {
	return &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{
			Name:            name(class, node),
			Namespace:       namespace,
			Labels:          labels(node),
			OwnerReferences: []metav1.OwnerReference{owner},
		},
		NodeTopology:      &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.TopologyKeyNode: node}},
		StorageClassName:  class,
		Capacity:          resource.NewQuantity(r.FreeBytes, resource.BinarySI),
		MaximumVolumeSize: resource.NewQuantity(r.MaxVolumeBytes, resource.BinarySI),
	}
}

// roomOf reads what an object says; a field that is missing is no room.
func roomOf(o *storagev1.CSIStorageCapacity) Room {
	var r Room
	if o.Capacity != nil {
		r.FreeBytes = o.Capacity.Value()
	}
	if o.MaximumVolumeSize != nil {
		r.MaxVolumeBytes = o.MaximumVolumeSize.Value()
	}
	return r
}
