// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
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

// Delete deletes the LocalVolume and waits until its agent has removed the
// finalizer, which is the proof that nothing of it is left. It returns nil when
// the volume is proven gone, also when it was so before.
//
// A *Pending means that the agent is still at it. A node that is gone for good
// keeps its volumes: only an operator can say that the disks will not come back.
func (v *Volumes) Delete(ctx context.Context, name string) error {
	sub := v.tracker.Subscribe(name)
	defer sub.Close()
	cur := v.tracker.Get(name)
	if cur == nil {
		if v.tracker.ProvenGone(name) {
			return nil
		}
		// Not seen is not absent: what is seen may be old.
		live := &berth.LocalVolume{}
		switch err := v.live.Get(ctx, types.NamespacedName{Name: name}, live); {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("read LocalVolume %q before deleting it: %w", name, err)
		}
		cur = live
	}
	signs := v.tracker.lifeSigns(cur.Spec.NodeName)
	waitCtx, cancel := v.patience(ctx, cur.Spec.NodeName)
	defer cancel()
	err := v.remove(waitCtx, sub, cur)
	if err == nil {
		return nil
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("delete LocalVolume %q: %w", name, err)
	}
	if last := v.tracker.Get(name); last != nil && last.UID == cur.UID {
		cur = last
	}
	pending := v.stillGoing(ctx, cur, signs, err)
	if gone, nodeErr := v.nodeGone(ctx, cur.Spec.NodeName); nodeErr == nil && gone {
		return &Pending{Volume: name, Cause: err, What: fmt.Sprintf(
			"node %s is gone from the cluster, so its data can be neither reached nor erased; if the machine will never come back, remove the finalizer %s from the LocalVolume (kubectl berth forget-node %s does so for all that was on it)",
			cur.Spec.NodeName, berth.AgentFinalizer, cur.Spec.NodeName)}
	}
	return pending
}

// remove deletes exactly this LocalVolume and waits until it is gone.
func (v *Volumes) remove(ctx context.Context, sub *Subscription, lv *berth.LocalVolume) error {
	if lv.DeletionTimestamp == nil {
		err := v.writer.Delete(ctx, named(lv.Name), client.Preconditions{UID: &lv.UID})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case apierrors.IsConflict(err):
			// A new life of that name, which was not seen yet. Whether it is meant too
			// is for the next call to decide, with what is seen then.
			return fmt.Errorf("it was replaced by another of the same name: %w", volume.ErrBusy)
		case err != nil:
			return err
		}
	}
	if err := sub.UntilGone(ctx, lv.UID); err != nil {
		return err
	}
	v.forgetUnused(lv)
	return nil
}

// Grow asks for at least sizeBytes and waits until the agent has made them. It
// returns the volume as it is then; a volume that is large enough already is
// returned as it is. Less than what was asked for before takes that back, if it was not made
// yet: a claim may ask for less when its growth was refused.
//
// Errors: volume.ErrNotFound; volume.ErrInvalid when the mode cannot grow; a
// *Failure when the node will not grow it, which leaves the volume usable at its
// size; a *Pending when the agent is still at it.
func (v *Volumes) Grow(ctx context.Context, name string, sizeBytes int64) (*berth.LocalVolume, error) {
	sub := v.tracker.Subscribe(name)
	defer sub.Close()
	cur, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if cur.DeletionTimestamp != nil {
		return nil, fmt.Errorf("LocalVolume %q is being deleted: %w", name, volume.ErrNotFound)
	}
	if grown(cur, sizeBytes) {
		if cur.Spec.SizeBytes <= cur.Status.Capacity.Value() {
			return cur, nil
		}
		// More was asked for, and is not any more: the node must not go on trying.
		return v.wish(ctx, cur, cur.Status.Capacity.Value())
	}
	if cur.Spec.Mode == berth.ModeDevice {
		return nil, &Failure{
			Volume: name, Node: cur.Spec.NodeName, Reason: berth.ReasonInvalid,
			Message: fmt.Sprintf("a whole disk cannot grow: it has %s and %d bytes were asked for; make a volume on a larger disk and copy the data",
				cur.Status.Capacity, sizeBytes),
		}
	}
	before := meta.FindStatusCondition(cur.Status.Conditions, berth.LocalVolumeResized)
	patched := cur.Spec.SizeBytes != sizeBytes
	if patched {
		if sizeBytes > cur.Spec.SizeBytes {
			if refusal := v.noRoom(ctx, cur, sizeBytes); refusal != nil {
				return nil, refusal
			}
		}
		if cur, err = v.wish(ctx, cur, sizeBytes); err != nil {
			return nil, err
		}
	}
	signs := v.tracker.lifeSigns(cur.Spec.NodeName)
	waitCtx, cancel := v.patience(ctx, cur.Spec.NodeName)
	defer cancel()
	answered := func(lv *berth.LocalVolume) bool {
		return lv.DeletionTimestamp != nil || grown(lv, sizeBytes) || refusedGrowth(lv, sizeBytes, before, patched) != nil
	}
	last, err := sub.Until(waitCtx, cur.UID, answered)
	switch {
	case errors.Is(err, errGone), err == nil && last.DeletionTimestamp != nil:
		return nil, fmt.Errorf("LocalVolume %q was deleted: %w", name, volume.ErrNotFound)
	case err != nil:
		if last == nil {
			last = cur
		}
		return nil, v.stillGrowing(last, signs, err)
	case grown(last, sizeBytes):
		return last, nil
	}
	return nil, refusedGrowth(last, sizeBytes, before, patched)
}

// wish asks for a size, which may be less than what was asked for before.
func (v *Volumes) wish(ctx context.Context, lv *berth.LocalVolume, sizeBytes int64) (*berth.LocalVolume, error) {
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"sizeBytes":%d}}`, lv.UID, sizeBytes)
	asked := named(lv.Name)
	if err := v.writer.Patch(ctx, asked, client.RawPatch(types.MergePatchType, patch)); err != nil {
		if apierrors.IsInvalid(err) {
			return nil, &Failure{Volume: lv.Name, Node: lv.Spec.NodeName, Reason: berth.ReasonInvalid, Message: err.Error()}
		}
		return nil, fmt.Errorf("ask LocalVolume %q for %d bytes: %w", lv.Name, sizeBytes, err)
	}
	return asked, nil
}

// noRoom says so when the volume's pool has published less free space than the
// growth needs. The agent has the last word on what fits; this one comes first, for what
// the spec asks for is tried again until less is asked for. What cannot be read is left to the agent.
func (v *Volumes) noRoom(ctx context.Context, lv *berth.LocalVolume, sizeBytes int64) error {
	if lv.Status.Capacity == nil {
		return nil
	}
	pools := &berth.PoolList{}
	if err := v.live.List(ctx, pools, client.MatchingFields{"spec.nodeName": lv.Spec.NodeName}); err != nil {
		return nil //nolint:nilerr // the agent will tell
	}
	more := sizeBytes - lv.Status.Capacity.Value()
	for i := range pools.Items {
		pool := &pools.Items[i]
		if pool.Spec.PoolSetName != lv.Spec.Pool || pool.Status.Free == nil || pool.Status.Free.Value() >= more {
			continue
		}
		return &Failure{
			Volume: lv.Name, Node: lv.Spec.NodeName, Reason: berth.ReasonNoSpace,
			Message: fmt.Sprintf("pool %s has %s free and the growth needs %d bytes more", pool.Name, human(pool.Status.Free), more),
		}
	}
	return nil
}

// find returns the LocalVolume from what is seen, else from the API server.
func (v *Volumes) find(ctx context.Context, name string) (*berth.LocalVolume, error) {
	if cur := v.tracker.Get(name); cur != nil {
		return cur, nil
	}
	live := &berth.LocalVolume{}
	switch err := v.live.Get(ctx, types.NamespacedName{Name: name}, live); {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("LocalVolume %q: %w", name, volume.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("read LocalVolume %q: %w", name, err)
	}
	return live, nil
}

// Find returns the LocalVolume of that name, or volume.ErrNotFound when the API
// server knows none. The object is shared: do not change it.
func (v *Volumes) Find(ctx context.Context, name string) (*berth.LocalVolume, error) {
	return v.find(ctx, name)
}

func grown(lv *berth.LocalVolume, sizeBytes int64) bool {
	return lv.Status.Capacity != nil && lv.Status.Capacity.Value() >= sizeBytes
}

// refusedGrowth returns the agent's final answer to this growth, or nil while
// there is none. An answer to an earlier, larger wish does not count: it is told
// by its time and its observed generation.
func refusedGrowth(lv *berth.LocalVolume, sizeBytes int64, before *metav1.Condition, patched bool) *Failure {
	resized := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeResized)
	if lv.Spec.SizeBytes != sizeBytes || resized == nil || resized.Status != metav1.ConditionFalse {
		return nil
	}
	if resized.ObservedGeneration != 0 && resized.ObservedGeneration != lv.Generation {
		return nil
	}
	if patched && before != nil && resized.ObservedGeneration == before.ObservedGeneration &&
		resized.LastTransitionTime.Equal(&before.LastTransitionTime) && resized.Message == before.Message {
		return nil
	}
	switch resized.Reason {
	case berth.ReasonNoSpace, berth.ReasonPoolNotFound, berth.ReasonToolMissing, berth.ReasonInvalid, berth.ReasonMissing, berth.ReasonIdentityMismatch, berth.ReasonHasSnapshots:
		return &Failure{Volume: lv.Name, Node: lv.Spec.NodeName, Reason: resized.Reason, Message: resized.Message}
	}
	return nil
}

func (v *Volumes) stillGrowing(lv *berth.LocalVolume, signs uint64, cause error) error {
	node := lv.Spec.NodeName
	if errors.Is(cause, context.DeadlineExceeded) && v.tracker.lifeSigns(node) == signs {
		v.tracker.markSilent(node)
	}
	what := fmt.Sprintf("the Berth agent of node %s has not answered to the growth; is its pod running and the node Ready?", node)
	if resized := meta.FindStatusCondition(lv.Status.Conditions, berth.LocalVolumeResized); resized != nil && resized.Message != "" {
		what = fmt.Sprintf("node %s: %s: %s", node, resized.Reason, resized.Message)
	}
	return &Pending{Volume: lv.Name, What: what, Cause: cause}
}

// named is the least object that a request can name.
func named(name string) *berth.LocalVolume {
	return &berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// List returns every LocalVolume seen, sorted by name. The objects are shared.
func (v *Volumes) List() []*berth.LocalVolume { return v.tracker.List() }
