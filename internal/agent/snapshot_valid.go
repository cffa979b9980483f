// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// actionKeepSnapshot is the action of Events of snapshots.
const actionKeepSnapshot = "KeepSnapshot"

// tellValid writes into the status of a snapshot that stands whether it holds what it should.
func (r *SnapshotReconciler) tellValid(ctx context.Context, s, base *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	was := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotValid)
	now, known := r.found(ctx, s)
	if !known && r.State != nil {
		var state lvm.SnapshotState
		if state, known = r.State(string(s.UID)); known {
			now = validity(s, state)
		}
	}
	switch {
	case !known:
		return reconcile.Result{}, nil
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

// isMissing reports whether the status says that the snapshot is gone from its pool.
func isMissing(s *v1alpha1.LocalSnapshot) bool {
	c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotValid)
	return c != nil && c.Reason == v1alpha1.ReasonMissing
}

// Doubt has a snapshot looked at that its pool does not show, or shows again.
func (r *SnapshotReconciler) Doubt(name string) {
	r.mu.Lock()
	if r.doubted == nil {
		r.doubted = map[string]bool{}
	}
	r.doubted[name] = true
	r.mu.Unlock()
	r.queue.add(name)
}

// found looks at a snapshot that is in doubt. known is false when there is nothing to be said of that.
func (r *SnapshotReconciler) found(ctx context.Context, s *v1alpha1.LocalSnapshot) (now metav1.Condition, known bool) {
	missed := isMissing(s)
	r.mu.Lock()
	doubted := r.doubted[s.Name]
	delete(r.doubted, s.Name)
	r.mu.Unlock()
	if !missed && !doubted || s.Status.MachineID != r.MachineID {
		return now, false
	}
	snapshots, err := r.snapshotterOf(s)
	x, ok := snapshots.(volume.SnapshotExaminer)
	if err != nil || !ok {
		return now, false // the pool says what is wrong, and doubts it again when it shows what it has
	}
	_, err = x.ExamineSnapshot(ctx, string(s.UID))
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return metav1.Condition{
			Type: v1alpha1.LocalSnapshotValid, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonMissing, ObservedGeneration: s.Generation,
			Message: fmt.Sprintf("it is gone from pool %s of the node, and nothing can be restored from it: if somebody has removed it there, delete the snapshot", s.Spec.Pool),
		}, true
	case err == nil && missed:
		return validity(s, lvm.SnapshotState{}), true
	}
	return now, false
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
