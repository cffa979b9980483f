// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// whyChange says what a bound claim was asked to become and is not: larger, or of another
// VolumeAttributesClass. Both are csi-resizer's to carry out.
func (p *plugin) whyChange(ctx context.Context, a *answer, claim *corev1.PersistentVolumeClaim) error {
	asked, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	if !has.IsZero() && asked.Cmp(has) > 0 {
		a.sayGrowth(claim, asked.String(), has.String())
	}
	modify := claim.Status.ModifyVolumeStatus
	if modify == nil {
		return nil
	}
	class := modify.TargetVolumeAttributesClassName
	why, failed := claimCondition(claim, corev1.PersistentVolumeClaimVolumeModifyVolumeError)
	switch {
	case modify.Status == corev1.PersistentVolumeClaimModifyVolumePending:
		return p.whyClassPending(ctx, a, claim)
	case modify.Status == corev1.PersistentVolumeClaimModifyVolumeInfeasible:
		a.blame("It cannot have VolumeAttributesClass %q: %s", class, why)
	case failed:
		a.blame("VolumeAttributesClass %q is not in force yet, and is tried again: %s", class, why)
	default:
		a.blame("VolumeAttributesClass %q is being brought into force.", class)
	}
	return nil
}

// whyClassPending says why csi-resizer left a claim's VolumeAttributesClass Pending: it did not
// find the class. It looks again only when the claim asks for another one (updatePVC in
// pkg/modifycontroller/controller.go of csi-resizer v2.3.0), also after the class was made.
func (p *plugin) whyClassPending(ctx context.Context, a *answer, claim *corev1.PersistentVolumeClaim) error {
	name := ""
	if claim.Spec.VolumeAttributesClassName != nil {
		name = *claim.Spec.VolumeAttributesClassName
	}
	err := p.client.Get(ctx, client.ObjectKey{Name: name}, &storagev1.VolumeAttributesClass{})
	switch {
	case apierrors.IsNotFound(err):
		a.blame("Its VolumeAttributesClass %q does not exist. Make it, let the claim ask for another one, and then for this one again: csi-resizer does not look a second time.", name)
	case err != nil:
		return fmt.Errorf("read VolumeAttributesClass %s: %w", name, err)
	default:
		a.blame("csi-resizer did not find VolumeAttributesClass %q when the claim asked for it, and does not look again. It exists now: let the claim ask for another one, and then for this one again.", name)
	}
	return nil
}

func (a *answer) sayGrowth(claim *corev1.PersistentVolumeClaim, asked, has string) {
	for _, kind := range []corev1.PersistentVolumeClaimConditionType{corev1.PersistentVolumeClaimControllerResizeError, corev1.PersistentVolumeClaimNodeResizeError} {
		if why, failed := claimCondition(claim, kind); failed {
			a.blame("It asks for %s and has %s, and does not grow: %s", asked, has, why)
			return
		}
	}
	if _, waits := claimCondition(claim, corev1.PersistentVolumeClaimFileSystemResizePending); waits {
		a.blame("It asks for %s and has %s: its filesystem grows when a pod has it.", asked, has)
		return
	}
	a.blame("It asks for %s and has %s: it is being made larger.", asked, has)
}

// claimCondition returns whether a condition of a claim is True, and its message.
func claimCondition(claim *corev1.PersistentVolumeClaim, kind corev1.PersistentVolumeClaimConditionType) (string, bool) {
	for _, c := range claim.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return c.Message, true
		}
	}
	return "", false
}

// sayUnwell says what is wrong with a volume that can be staged.
func (a *answer) sayUnwell(local *berth.LocalVolume) {
	for _, of := range []struct{ kind, says string }{
		{berth.LocalVolumeHealthy, "It is not well"},
		{berth.LocalVolumeLimited, "Its limits are not in force"},
		{berth.LocalVolumeResized, "Its node could not make it larger"},
	} {
		if c := meta.FindStatusCondition(local.Status.Conditions, of.kind); c != nil && c.Status != metav1.ConditionTrue {
			a.blame("%s, %s: %s", of.says, c.Reason, c.Message)
		}
	}
}
