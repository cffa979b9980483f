// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Claim is a PersistentVolumeClaim to make.
type Claim struct {
	Name  string
	Class string
	// AttributesClass is the VolumeAttributesClass, "" for none.
	AttributesClass string
	Size            string
	Block           bool
	AccessMode      corev1.PersistentVolumeAccessMode
	Selector        *metav1.LabelSelector
	Annotations     map[string]string
	// Source is what the claim begins as a copy of.
	Source *corev1.TypedLocalObjectReference
}

// Object is the claim as Kubernetes takes it.
func (c Claim) Object(namespace string) *corev1.PersistentVolumeClaim {
	mode := corev1.PersistentVolumeFilesystem
	if c.Block {
		mode = corev1.PersistentVolumeBlock
	}
	access := c.AccessMode
	if access == "" {
		access = corev1.ReadWriteOnce
	}
	var attributes *string
	if c.AttributesClass != "" {
		attributes = &c.AttributesClass
	}
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: c.Name, Namespace: namespace, Annotations: c.Annotations},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &c.Class,
			VolumeMode:       &mode,
			AccessModes:      []corev1.PersistentVolumeAccessMode{access},
			Selector:         c.Selector,
			DataSource:       c.Source,

			VolumeAttributesClassName: attributes,
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(c.Size)},
			},
		},
	}
}

// CreateClaim makes a claim and returns it as the API server stored it.
func (s *Space) CreateClaim(ctx context.Context, claim Claim) (*corev1.PersistentVolumeClaim, error) {
	object := claim.Object(s.Namespace)
	if err := s.Client.Create(ctx, object); err != nil {
		return nil, fmt.Errorf("create claim %s/%s: %w", s.Namespace, claim.Name, err)
	}
	return object, nil
}

// AwaitBound waits until a claim is Bound and returns its PersistentVolume.
func (s *Space) AwaitBound(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace}}
	err := s.Await(ctx, claim, func(object client.Object, gone bool) (bool, error) {
		if gone {
			return false, fmt.Errorf("claim %s/%s is gone", s.Namespace, name)
		}
		return object.(*corev1.PersistentVolumeClaim).Status.Phase == corev1.ClaimBound, nil
	})
	if err != nil {
		return nil, err
	}
	volume := &corev1.PersistentVolume{}
	if err := s.Client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, volume); err != nil {
		return nil, fmt.Errorf("get volume %s of claim %s/%s: %w", claim.Spec.VolumeName, s.Namespace, name, err)
	}
	return volume, nil
}

// DeleteClaim deletes a claim and waits until it is gone.
func (s *Space) DeleteClaim(ctx context.Context, name string) error {
	return s.Delete(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.Namespace}})
}

// AwaitVolumeGone waits until a PersistentVolume does not exist.
func (s *Space) AwaitVolumeGone(ctx context.Context, name string) error {
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return s.Await(ctx, volume, func(_ client.Object, gone bool) (bool, error) { return gone, nil })
}
