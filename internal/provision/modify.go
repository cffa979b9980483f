// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// Limit gives a volume these limits in place of those it has, nil for none, and waits
// until its agent has put them in force. It returns the volume as it is then.
//
// Errors: volume.ErrNotFound; volume.ErrInvalid, as a Refusal or a *Failure, when the
// mode or the node cannot have limits: spec.limits is then set back to those in force, for
// nobody is told when a claim goes back to no class; a *Pending when the agent is still at
// it.
func (v *Volumes) Limit(ctx context.Context, name string, limits *berth.VolumeLimits) (*berth.LocalVolume, error) {
	sub := v.tracker.Subscribe(name)
	defer sub.Close()
	cur, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if cur.DeletionTimestamp != nil {
		return nil, fmt.Errorf("LocalVolume %q is being deleted: %w", name, volume.ErrNotFound)
	}
	if err := CheckLimits(cur.Spec.Mode, limits); err != nil {
		return nil, err
	}
	if inForce(cur, limits) {
		return cur, nil
	}
	if !SameLimits(cur.Spec.Limits, limits) {
		if cur, err = v.patchLimits(ctx, cur, limits); err != nil {
			return nil, fmt.Errorf("ask LocalVolume %q for other limits: %w", name, err)
		}
	}
	signs := v.tracker.lifeSigns(cur.Spec.NodeName)
	waitCtx, cancel := v.patience(ctx, cur.Spec.NodeName)
	defer cancel()
	last, err := sub.Until(waitCtx, cur.UID, func(lv *berth.LocalVolume) bool {
		return lv.DeletionTimestamp != nil || inForce(lv, limits) || refusedLimits(lv, limits, cur.Generation) != nil
	})
	switch {
	case errors.Is(err, errGone), err == nil && last.DeletionTimestamp != nil:
		return nil, fmt.Errorf("LocalVolume %q was deleted: %w", name, volume.ErrNotFound)
	case err != nil:
		if last == nil {
			last = cur
		}
		return nil, v.stillLimiting(last, signs, err)
	case inForce(last, limits):
		return last, nil
	}
	verdict := refusedLimits(last, limits, cur.Generation)
	back, err := v.patchLimits(ctx, last, last.Status.Limits)
	if err == nil {
		// Otherwise the next call may find these limits, and take the verdict for one on its own.
		_, err = sub.Until(waitCtx, back.UID, func(lv *berth.LocalVolume) bool { return lv.Generation >= back.Generation })
	}
	if err != nil {
		return nil, &Pending{Volume: name, What: fmt.Sprintf("%v; the limits of before are not set back yet", verdict), Cause: err}
	}
	return nil, verdict
}

// patchLimits writes spec.limits and returns the volume as the API server has it then.
func (v *Volumes) patchLimits(ctx context.Context, lv *berth.LocalVolume, limits *berth.VolumeLimits) (*berth.LocalVolume, error) {
	// All four are named: in a merge patch null takes away.
	values := map[string]any{"readIOPS": nil, "writeIOPS": nil, "readBytesPerSecond": nil, "writeBytesPerSecond": nil}
	if limits != nil {
		for key, value := range map[string]int64{
			"readIOPS": limits.ReadIOPS, "writeIOPS": limits.WriteIOPS,
			"readBytesPerSecond": limits.ReadBytesPerSecond, "writeBytesPerSecond": limits.WriteBytesPerSecond,
		} {
			if value != 0 {
				values[key] = value
			}
		}
	}
	spec := map[string]any{"limits": values}
	if limits == nil {
		spec["limits"] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": lv.UID}, "spec": spec})
	if err != nil {
		return nil, err
	}
	target := named(lv.Name)
	err = v.writer.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsInvalid(err) {
		return nil, refuse("%v", err)
	}
	return target, err
}

// inForce reports whether the agent holds pods to exactly these limits.
func inForce(lv *berth.LocalVolume, limits *berth.VolumeLimits) bool {
	limited := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeLimited)
	return SameLimits(lv.Spec.Limits, limits) && SameLimits(lv.Status.Limits, limits) &&
		(limits == nil) == (limited == nil) && (limited == nil || limited.Status == metav1.ConditionTrue)
}

// refusedLimits returns the agent's final answer to these limits, or nil while there is
// none. An answer to earlier ones is told by its observed generation.
func refusedLimits(lv *berth.LocalVolume, limits *berth.VolumeLimits, generation int64) *Failure {
	limited := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeLimited)
	if limited == nil || !SameLimits(lv.Spec.Limits, limits) || limited.ObservedGeneration < generation ||
		limited.Status != metav1.ConditionFalse || limited.Reason != berth.ReasonNotEnforceable {
		return nil
	}
	return &Failure{Volume: lv.Name, Node: lv.Spec.NodeName, Reason: limited.Reason, Message: limited.Message}
}

func (v *Volumes) stillLimiting(lv *berth.LocalVolume, signs uint64, cause error) error {
	node := lv.Spec.NodeName
	if errors.Is(cause, context.DeadlineExceeded) && v.tracker.lifeSigns(node) == signs {
		v.tracker.markSilent(node)
	}
	what := fmt.Sprintf("the Berth agent of node %s has not answered to the limits; is its pod running and the node Ready?", node)
	if limited := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeLimited); limited != nil && limited.Status != metav1.ConditionTrue {
		what = fmt.Sprintf("node %s: %s: %s", node, limited.Reason, limited.Message)
	}
	return &Pending{Volume: lv.Name, What: what, Cause: cause}
}
