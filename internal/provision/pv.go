// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// Keys of PersistentVolume.spec.csi.volumeAttributes, which kubelet hands to the
// node service. They are for people and for sanity checks: the LocalVolume is the
// truth.
const (
	AttributeMode = "mode"
	AttributePool = "pool"
	// AttributeEncryption is there for encrypted volumes only.
	AttributeEncryption = "encryption"
)

// Labels and annotations of a LocalVolume. The claim's name can be longer than a
// label's value and is in spec.claimRef.
const (
	labelManagedBy  = "app.kubernetes.io/managed-by"
	labelMode       = "berth.dev/mode"
	labelPool       = "berth.dev/pool"
	annotationClass = "berth.dev/storage-class"

	managedBy = "berth-provisioner"
)

// VolumeAttributes of a LocalVolume, for its PersistentVolume and for CSI.
func VolumeAttributes(lv *berth.LocalVolume) map[string]string {
	attributes := map[string]string{AttributeMode: string(lv.Spec.Mode)}
	if lv.Spec.Pool != "" {
		attributes[AttributePool] = lv.Spec.Pool
	}
	if lv.Spec.Encryption != "" {
		attributes[AttributeEncryption] = string(lv.Spec.Encryption)
	}
	return attributes
}

// Labels of a LocalVolume with this spec.
func Labels(spec berth.LocalVolumeSpec) map[string]string {
	labels := map[string]string{labelManagedBy: managedBy, labelMode: string(spec.Mode)}
	if spec.Pool != "" {
		labels[labelPool] = spec.Pool
	}
	return labels
}

// persistentVolume is what stands for a LocalVolume in Kubernetes. The library
// adds claimRef, storageClassName, its annotation and its finalizer; everything
// else must be set here, also the reclaim policy, for the API's default is Retain.
func persistentVolume(name string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, lv *berth.LocalVolume, secrets Secrets) *corev1.PersistentVolume {
	reclaim := corev1.PersistentVolumeReclaimDelete // the API's default for classes
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	if lv.Spec.VolumeMode == berth.VolumeBlock {
		mode = corev1.PersistentVolumeBlock
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *lv.Status.Capacity},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              class.Name,
			MountOptions:                  class.MountOptions,
			VolumeMode:                    &mode,
			VolumeAttributesClassName:     attributesClass(claim),
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{
					Driver:           berth.DriverName,
					VolumeHandle:     lv.Name,
					FSType:           lv.Spec.FSType,
					VolumeAttributes: VolumeAttributes(lv),
					// kubelet reads them and hands them to the node service.
					NodeStageSecretRef:  secrets.Stage,
					NodeExpandSecretRef: secrets.Expand,
				},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{
				Required: &corev1.NodeSelector{
					NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchExpressions: []corev1.NodeSelectorRequirement{{
							Key:      berth.TopologyKeyNode,
							Operator: corev1.NodeSelectorOpIn,
							Values:   []string{lv.Spec.NodeName},
						}},
					}},
				},
			},
		},
	}
}

// attributesClass is the one whose limits the volume was made with: the claim's name is
// immutable until it is bound, and does not bind to a PersistentVolume of another.
func attributesClass(claim *corev1.PersistentVolumeClaim) *string {
	if name := claim.Spec.VolumeAttributesClassName; name != nil && *name != "" {
		return name
	}
	return nil
}
