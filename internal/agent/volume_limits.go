// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/volume"
)

// limit puts the limits of the spec in force and writes into the status which are. The
// volume stays Ready whatever comes of it.
func (r *VolumeReconciler) limit(ctx context.Context, lv *v1alpha1.LocalVolume, e ledger.Entry) error {
	if lv.Spec.Limits == nil && !hasLimits(lv, e) {
		return nil
	}
	err := r.Limiter.Set(ctx, lv.Name, limitsOf(lv))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, cgroup.ErrNotEnforceable):
		setCondition(lv, v1alpha1.LocalVolumeLimited, metav1.ConditionFalse, v1alpha1.ReasonNotEnforceable, err.Error())
	case err != nil:
		setCondition(lv, v1alpha1.LocalVolumeLimited, metav1.ConditionUnknown, v1alpha1.ReasonFailed, err.Error())
	case lv.Spec.Limits == nil:
		lv.Status.Limits = nil
		meta.RemoveStatusCondition(&lv.Status.Conditions, v1alpha1.LocalVolumeLimited)
	default:
		lv.Status.Limits = lv.Spec.Limits.DeepCopy()
		setCondition(lv, v1alpha1.LocalVolumeLimited, metav1.ConditionTrue, v1alpha1.ReasonInForce, "each pod that has the volume is held to status.limits")
	}
	if err != nil {
		return fmt.Errorf("limit volume %s: %w", lv.Name, err)
	}
	return nil
}

// hasLimits reports whether anything is left of limits.
func hasLimits(lv *v1alpha1.LocalVolume, e ledger.Entry) bool {
	return lv.Status.Limits != nil || e.Limits != nil || meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeLimited) != nil
}

// isLimited reports whether the limits of the spec are in force, as far as status, ledger
// and this process know.
func (r *VolumeReconciler) isLimited(lv *v1alpha1.LocalVolume, e ledger.Entry) bool {
	if lv.Spec.Limits == nil {
		return !hasLimits(lv, e)
	}
	return lv.Status.Limits != nil && *lv.Status.Limits == *lv.Spec.Limits && e.LimitsOrNone() == limitsOf(lv) &&
		meta.IsStatusConditionTrue(lv.Status.Conditions, v1alpha1.LocalVolumeLimited) && r.Limiter.IsHeld(lv.Name)
}

// limitsOf translates the limits of the spec.
func limitsOf(lv *v1alpha1.LocalVolume) volume.Limits {
	s := lv.Spec.Limits
	if s == nil {
		return volume.Limits{}
	}
	return volume.Limits{
		ReadIOPS: s.ReadIOPS, WriteIOPS: s.WriteIOPS,
		ReadBytesPerSecond: s.ReadBytesPerSecond, WriteBytesPerSecond: s.WriteBytesPerSecond,
	}
}

// requireLimits refuses a new volume with limits that the node could not hold pods to.
func (r *VolumeReconciler) requireLimits(lv *v1alpha1.LocalVolume) error {
	if lv.Spec.Limits == nil || !r.isUnknown(lv) {
		return nil
	}
	err := r.Limiter.Check()
	if errors.Is(err, cgroup.ErrNotEnforceable) {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

// isUnknown reports whether neither the ledger nor the status knows of the volume.
func (r *VolumeReconciler) isUnknown(lv *v1alpha1.LocalVolume) bool {
	_, err := r.Ledger.Get(string(lv.UID))
	return errors.Is(err, ledger.ErrNotFound) && recordOf(lv) == nil
}
