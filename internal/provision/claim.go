// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// Kinds of a claim's data source that Berth would have to serve itself.
const (
	snapshotGroup = "snapshot.storage.k8s.io"
	snapshotKind  = "VolumeSnapshot"
	claimKind     = "PersistentVolumeClaim"
)

// CheckClaim says what of a claim cannot be served under these parameters, as a
// Refusal. Claims that a volume populator fills are none of ours; see SourceOf.
func CheckClaim(claim *corev1.PersistentVolumeClaim, params Parameters) error {
	if err := CheckSize(claim); err != nil {
		return err
	}
	if len(claim.Spec.AccessModes) == 0 {
		return refuse("the claim names no access mode; set accessModes to ReadWriteOnce or ReadWriteOncePod")
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return refuse("access mode %s is not possible: a local volume is on one node; use ReadWriteOnce or ReadWriteOncePod", mode)
		}
	}
	if claim.Spec.Selector != nil {
		return refuse("the claim has a selector, which picks among existing PersistentVolumes; remove spec.selector to get a new volume")
	}
	if params.Mode == berth.ModeHostpath && VolumeModeOf(claim) == berth.VolumeBlock {
		return refuse("mode hostpath has no block volumes; use a class of mode lvm or device, or volumeMode: Filesystem")
	}
	return nil
}

// CheckSize refuses requests of nothing and of more than can be counted.
func CheckSize(claim *corev1.PersistentVolumeClaim) error {
	request, ok := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case !ok:
		return refuse("the claim asks for no storage; set spec.resources.requests.storage")
	case request.Sign() <= 0:
		return refuse("the claim asks for %s of storage; ask for more than 0", request.String())
	case request.Cmp(*resource.NewQuantity(math.MaxInt64, resource.BinarySI)) >= 0:
		return refuse("the claim asks for %s, more than any disk holds", request.String())
	}
	return nil
}

// SizeBytes is the request of a claim that CheckSize passed, rounded up to bytes.
func SizeBytes(claim *corev1.PersistentVolumeClaim) int64 {
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return request.Value()
}

// VolumeModeOf is the claim's volume mode; Kubernetes' default is Filesystem.
func VolumeModeOf(claim *corev1.PersistentVolumeClaim) berth.VolumeMode {
	if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		return berth.VolumeBlock
	}
	return berth.VolumeFilesystem
}

// Source says what a claim wants to be filled with.
type Source int

const (
	// SourceNone is an empty volume.
	SourceNone Source = iota
	// SourceSnapshot is a VolumeSnapshot.
	SourceSnapshot
	// SourceClone is another claim.
	SourceClone
	// SourceOther is any other kind: a volume populator fills the claim, and the
	// provisioner must leave it alone (KEP-1495).
	SourceOther
)

// SourceOf reads a claim's data source. The apiserver keeps dataSource and
// dataSourceRef alike, except across namespaces, where only the latter is set.
func SourceOf(claim *corev1.PersistentVolumeClaim) (Source, string) {
	var group, kind, name string
	switch {
	case claim.Spec.DataSourceRef != nil:
		kind, name = claim.Spec.DataSourceRef.Kind, claim.Spec.DataSourceRef.Name
		if claim.Spec.DataSourceRef.APIGroup != nil {
			group = *claim.Spec.DataSourceRef.APIGroup
		}
	case claim.Spec.DataSource != nil:
		kind, name = claim.Spec.DataSource.Kind, claim.Spec.DataSource.Name
		if claim.Spec.DataSource.APIGroup != nil {
			group = *claim.Spec.DataSource.APIGroup
		}
	default:
		return SourceNone, ""
	}
	switch {
	case group == snapshotGroup && kind == snapshotKind:
		return SourceSnapshot, name
	case group == "" && kind == claimKind:
		return SourceClone, name
	default:
		return SourceOther, kind + " " + name
	}
}
