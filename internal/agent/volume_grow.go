// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// grow makes the volume as large as the spec asks, if it is smaller. The volume
// stays Ready whatever comes of it.
func (r *VolumeReconciler) grow(ctx context.Context, lv *v1alpha1.LocalVolume, w Wish, e ledger.Entry) error {
	if e.Record.SizeBytes >= w.SizeBytes {
		meta.RemoveStatusCondition(&lv.Status.Conditions, v1alpha1.LocalVolumeResized)
		return nil
	}
	grown, err := r.Carver.Grow(ctx, w)
	if err != nil {
		reason := classify(err).reason
		switch {
		case errors.Is(err, volume.ErrNoSpace):
			reason = v1alpha1.ReasonNoSpace
		case errors.Is(err, volume.ErrInvalid):
			reason = v1alpha1.ReasonInvalid
		case errors.Is(err, volume.ErrInUse):
			reason = v1alpha1.ReasonHasSnapshots
		}
		setCondition(lv, v1alpha1.LocalVolumeResized, metav1.ConditionFalse, reason, err.Error())
		return err
	}
	setMade(lv, grown)
	meta.RemoveStatusCondition(&lv.Status.Conditions, v1alpha1.LocalVolumeResized)
	return nil
}
