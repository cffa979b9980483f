// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// Origin is what a volume begins as a copy of.
type Origin struct {
	berth.VolumeSource

	// Node that holds it; the copy is made there.
	Node string
	// what it is called where the user looks.
	what, pool string
	storage    berth.Mode
	mode       berth.VolumeMode
	fsType     string
	encryption berth.Encryption
	sizeBytes  int64
}

// originOf finds what a claim wants to begin as a copy of; nil for an empty volume.
//
// A copy is made where its source is, whatever node the scheduler chose: the scheduler sees
// the affinity of the PersistentVolume then, and lets the pod follow (checkBindings in
// its plugin volumebinding).
//
// It is asked for once: while a node makes the copy, its source may be deleted, or grow, and
// what was begun is made all the same.
func (p *Provisioner) originOf(ctx context.Context, pvName string, claim *corev1.PersistentVolumeClaim) (*Origin, error) {
	if ref := claim.Spec.DataSourceRef; ref != nil && ref.Namespace != nil && *ref.Namespace != claim.Namespace {
		return nil, refuse("spec.dataSourceRef names %s %q of namespace %q: copies across namespaces are not supported", ref.Kind, ref.Name, *ref.Namespace)
	}
	source, name := SourceOf(claim)
	if source != SourceSnapshot && source != SourceClone {
		return nil, nil
	}
	if begun := p.volumes.Tracker().Get(pvName); begun != nil && begun.DeletionTimestamp == nil && begun.Spec.Source != nil &&
		begun.Spec.ClaimRef != nil && begun.Spec.ClaimRef.UID == claim.UID {
		return originOfCopy(begun), nil
	}
	if source == SourceSnapshot {
		return p.originSnapshot(ctx, claim.Namespace, name)
	}
	return p.originClaim(ctx, claim.Namespace, name)
}

// originOfCopy is what a volume that was asked for is a copy of. How large that is, is for its
// node to say.
func originOfCopy(lv *berth.LocalVolume) *Origin {
	return &Origin{
		VolumeSource: *lv.Spec.Source, what: fmt.Sprintf("LocalVolume %q, which was begun as a copy,", lv.Name),
		Node: lv.Spec.NodeName, pool: lv.Spec.Pool, storage: lv.Spec.Mode, mode: lv.Spec.VolumeMode, fsType: lv.Spec.FSType, encryption: lv.Spec.Encryption,
	}
}

func (p *Provisioner) originSnapshot(ctx context.Context, namespace, name string) (*Origin, error) {
	snapshot := snapshotObject(snapshotKind)
	if err := p.getSource(ctx, snapshotKind, types.NamespacedName{Namespace: namespace, Name: name}, snapshot); err != nil {
		return nil, err
	}
	contentName, _, _ := unstructured.NestedString(snapshot.Object, "status", "boundVolumeSnapshotContentName")
	ready, _, _ := unstructured.NestedBool(snapshot.Object, "status", "readyToUse")
	if contentName == "" || !ready {
		return nil, fmt.Errorf("VolumeSnapshot %q is not ready to use yet: %w", name, volume.ErrBusy)
	}
	content := snapshotObject(snapshotKind + "Content")
	if err := p.getSource(ctx, snapshotKind+"Content", types.NamespacedName{Name: contentName}, content); err != nil {
		return nil, err
	}
	driver, _, _ := unstructured.NestedString(content.Object, "spec", "driver")
	handle, _, _ := unstructured.NestedString(content.Object, "status", "snapshotHandle")
	boundTo, _, _ := unstructured.NestedString(content.Object, "spec", "volumeSnapshotRef", "uid")
	switch {
	case driver != berth.DriverName:
		return nil, refuse("VolumeSnapshot %q was taken by driver %q, and the StorageClass is of %s", name, driver, berth.DriverName)
	case boundTo != string(snapshot.GetUID()):
		return nil, refuse("VolumeSnapshotContent %q is not bound to VolumeSnapshot %q", contentName, name)
	case handle == "":
		return nil, fmt.Errorf("VolumeSnapshotContent %q has no handle yet: %w", contentName, volume.ErrBusy)
	}
	local := &berth.LocalSnapshot{}
	err := p.live.Get(ctx, types.NamespacedName{Name: handle}, local)
	switch {
	case apierrors.IsNotFound(err):
		return nil, refuse("LocalSnapshot %q of VolumeSnapshot %q is gone", handle, name)
	case err != nil:
		return nil, fmt.Errorf("read LocalSnapshot %q: %w", handle, err)
	}
	return OriginOfSnapshot(local, fmt.Sprintf("VolumeSnapshot %q", name))
}

// OriginOfSnapshot is a snapshot as something to copy. what is how the user calls it.
// volume.ErrBusy: it does not stand yet, or is being deleted.
func OriginOfSnapshot(s *berth.LocalSnapshot, what string) (*Origin, error) {
	if !Taken(s) || s.Status.RestoreSize == nil {
		return nil, fmt.Errorf("LocalSnapshot %q is not ready: %w", s.Name, volume.ErrBusy)
	}
	if c := meta.FindStatusCondition(s.Status.Conditions, berth.LocalSnapshotValid); c != nil && c.Reason == berth.ReasonMissing {
		return nil, refuse("%s is gone from the pool of its node, and nothing can be restored from it; delete it", what)
	}
	if Lost(s) {
		return nil, refuse("%s has overflowed, and nothing can be restored from it: more was written to its volume than it had room to keep; delete it", what)
	}
	var encryption berth.Encryption
	if s.Status.Encryption != nil {
		encryption = s.Status.Encryption.Format
	}
	storage := berth.ModeLVM
	if s.Status.Hostpath != nil {
		storage = berth.ModeHostpath
	}
	return &Origin{
		storage:      storage,
		VolumeSource: berth.VolumeSource{Kind: berth.SourceSnapshot, Name: s.Name, UID: s.UID}, what: what,
		Node: s.Spec.NodeName, pool: s.Spec.Pool, mode: s.Status.VolumeMode, fsType: s.Status.FSType, sizeBytes: s.Status.RestoreSize.Value(),
		encryption: encryption,
	}, nil
}

func (p *Provisioner) originClaim(ctx context.Context, namespace, name string) (*Origin, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := p.getSource(ctx, claimKind, types.NamespacedName{Namespace: namespace, Name: name}, claim); err != nil {
		return nil, err
	}
	if claim.Spec.VolumeName == "" || claim.Status.Phase != corev1.ClaimBound {
		return nil, fmt.Errorf("PersistentVolumeClaim %q, which is to be cloned, is not bound yet: %w", name, volume.ErrBusy)
	}
	pv := &corev1.PersistentVolume{}
	if err := p.getSource(ctx, "PersistentVolume", types.NamespacedName{Name: claim.Spec.VolumeName}, pv); err != nil {
		return nil, err
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != berth.DriverName {
		return nil, refuse("PersistentVolumeClaim %q, which is to be cloned, has a volume of another driver than %s", name, berth.DriverName)
	}
	lv, err := p.volumes.Find(ctx, pv.Spec.CSI.VolumeHandle)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, refuse("LocalVolume %q of PersistentVolumeClaim %q, which is to be cloned, is gone", pv.Spec.CSI.VolumeHandle, name)
	}
	if err != nil {
		return nil, err
	}
	return OriginOfVolume(lv, fmt.Sprintf("PersistentVolumeClaim %q", name))
}

// OriginOfVolume is a volume as something to copy. volume.ErrBusy: it does not stand yet.
// volume.ErrInvalid: its mode has no copies.
func OriginOfVolume(lv *berth.LocalVolume, what string) (*Origin, error) {
	if !meta.IsStatusConditionTrue(lv.Status.Conditions, berth.LocalVolumeReady) || lv.Status.Capacity == nil {
		return nil, fmt.Errorf("LocalVolume %q is not ready: %w", lv.Name, volume.ErrBusy)
	}
	if lv.Spec.Mode == berth.ModeDevice {
		return nil, refuse("%s is a volume of mode %s, which has no copies", what, lv.Spec.Mode)
	}
	if lv.Spec.Encryption != "" && (lv.Status.Encryption == nil || lv.Status.Encryption.State != berth.EncryptionSealed) {
		return nil, fmt.Errorf("%s is encrypted when a pod uses it first, and holds nothing yet: %w", what, volume.ErrBusy)
	}
	return &Origin{
		storage:      lv.Spec.Mode,
		VolumeSource: berth.VolumeSource{Kind: berth.SourceVolume, Name: lv.Name, UID: lv.UID}, what: what,
		Node: lv.Spec.NodeName, pool: lv.Spec.Pool, mode: lv.Spec.VolumeMode, fsType: lv.Spec.FSType, sizeBytes: lv.Status.Capacity.Value(),
		encryption: lv.Spec.Encryption,
	}, nil
}

// getSource reads an object that a claim names. One that is not there is waited for: it
// may come.
func (p *Provisioner) getSource(ctx context.Context, kind string, key types.NamespacedName, object client.Object) error {
	err := p.live.Get(ctx, key, object)
	if err == nil {
		return nil
	}
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %q, which the claim is to be a copy of, is not there: %w", kind, key.Name, volume.ErrNotFound)
	}
	return fmt.Errorf("read %s %q: %w", kind, key.Name, err)
}

func snapshotObject(kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: snapshotGroup, Version: "v1", Kind: kind})
	return u
}

// Fill makes the request of a new volume one for a copy. volume.ErrInvalid says why it cannot
// be one.
func (o *Origin) Fill(request *Request) error {
	spec := &request.Spec
	switch {
	case spec.Mode != o.storage || !slices.Contains(request.Pools, o.pool):
		return refuse("%s is in pool %q, and the StorageClass makes volumes of mode %s in pool %q: a copy is made in the pool of its source", o.what, o.pool, spec.Mode, strings.Join(request.Pools, ","))
	case spec.VolumeMode != o.mode:
		return refuse("%s is of volumeMode %s, and the claim of %s", o.what, o.mode, spec.VolumeMode)
	case spec.Encryption != o.encryption:
		return refuse("%s has the encryption %q, and the StorageClass asks for %q (parameter %s): a copy is encrypted as its source", o.what, o.encryption, spec.Encryption, ParameterEncryption)
	case spec.SizeBytes < o.sizeBytes:
		return refuse("%s has %s, and the claim asks for %s: ask for as much at least",
			o.what, resource.NewQuantity(o.sizeBytes, resource.BinarySI), resource.NewQuantity(spec.SizeBytes, resource.BinarySI))
	}
	source := o.VolumeSource
	// The filesystem comes along, whatever the class would make.
	spec.NodeName, spec.Pool, spec.FSType, spec.MkfsOptions, spec.Source = o.Node, o.pool, o.fsType, nil, &source
	request.Labels = Labels(*spec)
	return nil
}
