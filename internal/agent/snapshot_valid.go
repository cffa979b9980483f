// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
)

// actionKeepSnapshot is the action of Events of snapshots.
const actionKeepSnapshot = "KeepSnapshot"

// tellValid writes into the status of a snapshot that stands whether it holds what it should.
func (r *SnapshotReconciler) tellValid(ctx context.Context, s, base *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	if r.State == nil {
		return reconcile.Result{}, nil
	}
	state, known := r.State(string(s.UID))
	if !known {
		return reconcile.Result{}, nil
	}
	was := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotValid)
	now := validity(s, state)
	switch {
	case was == nil && now.Reason == v1alpha1.ReasonHeld, was != nil && was.Reason == now.Reason:
		return reconcile.Result{}, nil
	}
	meta.SetStatusCondition(&s.Status.Conditions, now)
	result, err := r.conclude(ctx, s, base, nil)
	if err != nil || result.RequeueAfter > 0 {
		return result, err
	}
	kind := corev1.EventTypeWarning
	if now.Reason == v1alpha1.ReasonHeld {
		kind = corev1.EventTypeNormal
	}
	r.Recorder.Eventf(s, nil, kind, now.Reason, actionKeepSnapshot, "%s", now.Message)
	return result, nil
}

// validity is the condition Valid of a snapshot.
func validity(s *v1alpha1.LocalSnapshot, state lvm.SnapshotState) metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.LocalSnapshotValid, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonHeld, ObservedGeneration: s.Generation,
		Message: "it holds what it should, and has the room that it needs",
	}
	switch {
	case state.Lost:
		c.Status, c.Reason = metav1.ConditionFalse, v1alpha1.ReasonOverflowed
		c.Message = fmt.Sprintf("more was written to volume %s than the snapshot had room to keep: what it held is lost, and nothing can be restored from it; the volume itself is as it should be: delete the snapshot", s.Spec.VolumeName)
	case state.Waiting != "":
		c.Reason = v1alpha1.ReasonNoRoomToExtend
		c.Message = fmt.Sprintf("%d %% of what it has for what is overwritten in volume %s is in use, and it cannot get more: %s; when that is full, what it holds is lost: add a disk to pool %s, or delete volumes or snapshots",
			state.UsedPercent, s.Spec.VolumeName, state.Waiting, s.Spec.Pool)
	}
	return c
}

// LookAt looks again at the snapshot with that UID.
func (r *SnapshotReconciler) LookAt(uid string) {
	var all v1alpha1.LocalSnapshotList
	if err := r.Client.List(context.Background(), &all); err != nil {
		return // it reads from the cache; the next change is told again
	}
	for i := range all.Items {
		if string(all.Items[i].UID) == uid {
			r.queue.add(all.Items[i].Name)
		}
	}
}
