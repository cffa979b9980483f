// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// GroupVersion is the API group and version of every object of this package.
	GroupVersion = schema.GroupVersion{Group: "berth.dev", Version: "v1alpha1"}

	// SchemeBuilder collects the functions that add this package to a scheme.
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

	// AddToScheme adds the types of this package to a scheme. Adding twice is harmless.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&BlockDevice{}, &BlockDeviceList{},
		&LocalVolume{}, &LocalVolumeList{},
		&LocalSnapshot{}, &LocalSnapshotList{},
		&Pool{}, &PoolList{},
		&PoolSet{}, &PoolSetList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
