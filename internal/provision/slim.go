// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// Annotations of claims and volumes that the library and this package read.
const (
	annotationProvisioner     = "volume.kubernetes.io/storage-provisioner"
	annotationProvisionerBeta = "volume.beta.kubernetes.io/storage-provisioner"
	annotationProvisionedBy   = "pv.kubernetes.io/provisioned-by"
	annotationMigratedTo      = "pv.kubernetes.io/migrated-to"
	annotationSelectedNode    = "volume.kubernetes.io/selected-node"
	// annotationAllowDelete is a person's word that a volume is not needed any more.
	annotationAllowDelete = berth.AnnotationAllowDelete
)

// SlimClaims keeps of the claims that are bound, or that another provisioner
// serves, only what the library looks at to leave them alone. The library watches
// every claim of the cluster; most of them are none of Berth's business.
//
// Claims that may still be provisioned are kept whole, because the library writes
// them back when it reschedules (only managedFields go, which the API server
// keeps when an update leaves them out).
func SlimClaims(obj any) (any, error) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return obj, nil
	}
	provisioner, found := claim.Annotations[annotationProvisioner]
	if !found {
		provisioner, found = claim.Annotations[annotationProvisionerBeta]
	}
	if claim.Spec.VolumeName == "" && (!found || provisioner == berth.DriverName) {
		claim.ManagedFields = nil
		return claim, nil
	}
	return &corev1.PersistentVolumeClaim{
		TypeMeta:   claim.TypeMeta,
		ObjectMeta: slimMeta(claim.ObjectMeta, annotationProvisioner, annotationProvisionerBeta),
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: claim.Spec.VolumeName, StorageClassName: claim.Spec.StorageClassName},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: claim.Status.Phase},
	}, nil
}

// SlimPersistentVolumes does the same for the volumes of other drivers.
func SlimPersistentVolumes(obj any) (any, error) {
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok {
		return obj, nil
	}
	csi := pv.Spec.CSI
	if pv.Annotations[annotationProvisionedBy] == berth.DriverName || csi != nil && csi.Driver == berth.DriverName {
		pv.ManagedFields = nil
		return pv, nil
	}
	slim := &corev1.PersistentVolume{
		TypeMeta:   pv.TypeMeta,
		ObjectMeta: slimMeta(pv.ObjectMeta, annotationProvisionedBy, annotationMigratedTo),
		Status:     corev1.PersistentVolumeStatus{Phase: pv.Status.Phase},
	}
	if csi != nil {
		slim.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: csi.Driver}
	}
	return slim, nil
}

func slimMeta(meta metav1.ObjectMeta, annotations ...string) metav1.ObjectMeta {
	slim := metav1.ObjectMeta{
		Name:              meta.Name,
		Namespace:         meta.Namespace,
		UID:               meta.UID,
		ResourceVersion:   meta.ResourceVersion,
		CreationTimestamp: meta.CreationTimestamp,
		DeletionTimestamp: meta.DeletionTimestamp,
	}
	for _, key := range annotations {
		if value, ok := meta.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim, key, value)
		}
	}
	return slim
}

// handleIndex finds PersistentVolumes by their CSI volume handle.
const handleIndex = "berth.dev/volume-handle"

// pvView is what an informer sees of the PersistentVolumes.
type pvView struct{ indexer toolscache.Indexer }

// ViewPersistentVolumes adds an index by volume handle to the informer and
// returns the view through it. Call it before the informer runs.
func ViewPersistentVolumes(informer toolscache.SharedIndexInformer) (PersistentVolumes, error) {
	err := informer.AddIndexers(toolscache.Indexers{handleIndex: func(obj any) ([]string, error) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok && pv.Spec.CSI != nil && pv.Spec.CSI.Driver == berth.DriverName {
			return []string{pv.Spec.CSI.VolumeHandle}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return nil, err
	}
	return pvView{indexer: informer.GetIndexer()}, nil
}

func (v pvView) Exists(name string) bool {
	_, exists, err := v.indexer.GetByKey(name)
	return err == nil && exists
}

func (v pvView) WithHandle(handle string) []string {
	names, err := v.indexer.IndexKeys(handleIndex, handle)
	if err != nil {
		return nil // the index was added when the view was made
	}
	return names
}
