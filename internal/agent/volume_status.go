// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/volume"
)

// failure is an error as the condition Ready tells it.
type failure struct {
	status metav1.ConditionStatus
	reason string
	// settled failures are looked at again when something changes, or rarely; the
	// others are tried again soon.
	settled bool
}

// classify is the one table from errors to reasons. The final reasons NoSpace,
// PoolNotFound, ToolMissing and Invalid are only given when it was proven that
// nothing was made: the provisioner answers them by going to another node.
func classify(err error) failure {
	if errors.Is(err, errRefused) {
		for _, f := range []struct {
			sentinel error
			reason   string
		}{
			{volume.ErrNoSpace, v1alpha1.ReasonNoSpace},
			{ErrPoolNotFound, v1alpha1.ReasonPoolNotFound},
			{volume.ErrToolMissing, v1alpha1.ReasonToolMissing},
			{volume.ErrInvalid, v1alpha1.ReasonInvalid},
			{cgroup.ErrNotEnforceable, v1alpha1.ReasonNotEnforceable},
		} {
			if errors.Is(err, f.sentinel) {
				return failure{metav1.ConditionFalse, f.reason, true}
			}
		}
	}
	switch {
	case errors.Is(err, cgroup.ErrNotEnforceable):
		return failure{metav1.ConditionFalse, v1alpha1.ReasonNotEnforceable, true}
	case errors.Is(err, volume.ErrNotAdoptable):
		return failure{metav1.ConditionFalse, v1alpha1.ReasonNotAdoptable, true}
	case errors.Is(err, volume.ErrIdentity), errors.Is(err, volume.ErrNotBlank), errors.Is(err, volume.ErrExists):
		return failure{metav1.ConditionFalse, v1alpha1.ReasonIdentityMismatch, true}
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, errDeletionBegan):
		return failure{metav1.ConditionFalse, v1alpha1.ReasonMissing, true}
	case errors.Is(err, ledger.ErrCorrupt):
		return failure{metav1.ConditionFalse, v1alpha1.ReasonFailed, true}
	case errors.Is(err, volume.ErrPoolUnavailable), errors.Is(err, ErrPoolNotFound):
		// PoolNotFound without errRefused: the volume exists and its pool does not.
		return failure{metav1.ConditionUnknown, v1alpha1.ReasonPoolNotReady, true}
	case errors.Is(err, volume.ErrInUse), errors.Is(err, volume.ErrBusy):
		return failure{metav1.ConditionUnknown, v1alpha1.ReasonInProgress, true}
	case errors.Is(err, volume.ErrNoSpace), errors.Is(err, volume.ErrToolMissing), errors.Is(err, volume.ErrInvalid):
		// Without errRefused: something of the volume exists and cannot be finished.
		return failure{metav1.ConditionUnknown, v1alpha1.ReasonFailed, true}
	}
	return failure{metav1.ConditionUnknown, v1alpha1.ReasonFailed, false}
}

// isFinal reports whether the status already holds a final answer to this spec.
func isFinal(lv *v1alpha1.LocalVolume) bool {
	c := meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeReady)
	if c == nil || c.Status != metav1.ConditionFalse || c.ObservedGeneration != lv.Generation {
		return false
	}
	switch c.Reason {
	case v1alpha1.ReasonNoSpace, v1alpha1.ReasonPoolNotFound, v1alpha1.ReasonToolMissing, v1alpha1.ReasonInvalid, v1alpha1.ReasonNotEnforceable:
		return true
	}
	return false
}

// setMade writes a volume that stands into its status.
func setMade(lv *v1alpha1.LocalVolume, e ledger.Entry) {
	s := &lv.Status
	usable := e.Record.SizeBytes - e.OverheadBytes()
	if s.Capacity == nil || s.Capacity.Value() != usable {
		s.Capacity = resource.NewQuantity(usable, resource.BinarySI)
	}
	s.Formatted = e.Formatted()
	s.FilesystemUUID = e.FSUUID
	s.MachineID = e.MachineID
	s.Encryption = encryptionStatusOf(e)
	setRecord(s, *e.Record)
	setCondition(lv, v1alpha1.LocalVolumeReady, metav1.ConditionTrue, v1alpha1.ReasonCarved, "the volume stands")
}

// setCondition changes a condition only when it says something else: a newer
// generation alone is not worth a write.
func setCondition(lv *v1alpha1.LocalVolume, kind string, status metav1.ConditionStatus, reason, message string) {
	message = forStatus(message)
	old := meta.FindStatusCondition(lv.Status.Conditions, kind)
	if old != nil && old.Status == status && old.Reason == reason && old.Message == message &&
		(status == metav1.ConditionTrue || old.ObservedGeneration == lv.Generation) {
		return
	}
	meta.SetStatusCondition(&lv.Status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: lv.Generation,
	})
}

// isReady reports whether the status says that the volume stands.
func isReady(lv *v1alpha1.LocalVolume) bool {
	return meta.IsStatusConditionTrue(lv.Status.Conditions, v1alpha1.LocalVolumeReady)
}
