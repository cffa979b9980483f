// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// snapshotWait is how long a call waits for the node before it leaves the rest to the
// next one.
const snapshotWait = 20 * time.Second

// Snapshots takes, finds and deletes LocalSnapshots. They are few and seldom asked for, so
// nothing of them is kept: each call reads what it needs, and watches the one object that
// it waits for.
type Snapshots struct {
	// Live reads and writes past every cache.
	Live client.WithWatch
}

// Ensure makes the LocalSnapshot of that name, or finds the one an earlier call made, and
// waits a while for its node. Repeated calls return the same snapshot; Taken says whether
// it stands.
//
// Errors: volume.ErrInvalid for a volume that cannot have one, volume.ErrExists for a
// snapshot of that name and of another volume, a *Failure for the node's final answer,
// after which nothing is left of the attempt, a *Pending when the node may go on and cannot
// be followed, and volume.ErrBusy while one of that name is being deleted.
func (s *Snapshots) Ensure(ctx context.Context, name string, lv *berth.LocalVolume) (*berth.LocalSnapshot, error) {
	if lv.Spec.Mode == berth.ModeDevice {
		return nil, fmt.Errorf("%w: volume %s is of mode %s, which has no snapshots", volume.ErrInvalid, lv.Name, lv.Spec.Mode)
	}
	found, err := s.post(ctx, name, lv, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Spec.Group != nil:
		return nil, fmt.Errorf("snapshot %s: %w: it is of the group snapshot %s", name, volume.ErrExists, found.Spec.Group.Name)
	case found.Spec.VolumeUID != lv.UID:
		return nil, fmt.Errorf("snapshot %s: %w: it is of volume %s (%s)", name, volume.ErrExists, found.Spec.VolumeName, found.Spec.VolumeUID)
	case found.DeletionTimestamp != nil:
		return nil, fmt.Errorf("snapshot %s: %w: one of that name is being deleted", name, volume.ErrBusy)
	}
	waiting, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	last, err := s.await(waiting, found, func(seen *berth.LocalSnapshot, gone bool) bool {
		return gone || Taken(seen) || refusalOf(seen) != nil
	})
	if err != nil {
		if ctx.Err() == nil && waiting.Err() != nil {
			return last, nil // it goes on
		}
		return nil, &Pending{Volume: lv.Name, What: fmt.Sprintf("node %s goes on with its snapshot %s, of which nothing can be learned now", lv.Spec.NodeName, name), Cause: err}
	}
	refusal := refusalOf(last)
	if refusal == nil {
		return last, nil
	}
	// The next call begins anew: the pool may have room then.
	if err := s.Delete(ctx, name); err != nil {
		return nil, notTakenBack(lv.Name, refusal, err)
	}
	return nil, refusal
}

// notTakenBack is what the node's refusal becomes as long as it has not proven that nothing is
// left of the attempt.
func notTakenBack(volumeName string, refusal, cause error) error {
	return &Pending{Volume: volumeName, What: refusal.Error(), Cause: cause}
}

func (s *Snapshots) post(ctx context.Context, name string, lv *berth.LocalVolume, group *berth.SnapshotGroup) (*berth.LocalSnapshot, error) {
	wanted := &berth.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Finalizers: []string{berth.AgentFinalizer},
			Labels: map[string]string{labelManagedBy: managedBy, labelPool: lv.Spec.Pool},
		},
		Spec: berth.LocalSnapshotSpec{NodeName: lv.Spec.NodeName, Pool: lv.Spec.Pool, VolumeName: lv.Name, VolumeUID: lv.UID, Group: group},
	}
	err := s.Live.Create(ctx, wanted)
	if err == nil {
		return wanted, nil
	}
	switch {
	case apierrors.IsAlreadyExists(err):
	case definite(err):
		return nil, fmt.Errorf("create LocalSnapshot %s: %w", name, err)
	default:
		return nil, &Pending{Volume: lv.Name, What: fmt.Sprintf("the API server did not say whether its snapshot %s was created", name), Cause: err}
	}
	return s.Find(ctx, name)
}

// Find returns the LocalSnapshot of that name; volume.ErrNotFound when there is none.
func (s *Snapshots) Find(ctx context.Context, name string) (*berth.LocalSnapshot, error) {
	found := &berth.LocalSnapshot{}
	err := s.Live.Get(ctx, client.ObjectKey{Name: name}, found)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("LocalSnapshot %s: %w", name, volume.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read LocalSnapshot %s: %w", name, err)
	}
	return found, nil
}

// List returns every LocalSnapshot, by name.
func (s *Snapshots) List(ctx context.Context) ([]berth.LocalSnapshot, error) {
	list := &berth.LocalSnapshotList{}
	if err := s.Live.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list LocalSnapshots: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b berth.LocalSnapshot) int { return strings.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// Delete deletes a LocalSnapshot and waits a while until its node has proven that nothing
// is left. It returns nil when there is none. volume.ErrBusy: the node is still at it.
func (s *Snapshots) Delete(ctx context.Context, name string) error {
	found, err := s.Find(ctx, name)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.remove(ctx, found); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	return s.awaitGone(ctx, waiting, found)
}

// remove begins the deletion of a LocalSnapshot.
func (s *Snapshots) remove(ctx context.Context, found *berth.LocalSnapshot) error {
	err := s.Live.Delete(ctx, found, client.Preconditions{UID: &found.UID})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete LocalSnapshot %s: %w", found.Name, err)
	}
	return nil
}

// awaitGone waits until a LocalSnapshot is gone, at most as long as the second context.
func (s *Snapshots) awaitGone(ctx, waiting context.Context, found *berth.LocalSnapshot) error {
	last, err := s.await(waiting, found, func(_ *berth.LocalSnapshot, gone bool) bool { return gone })
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("wait for the deletion of snapshot %s: %w", found.Name, context.Cause(ctx))
	case waiting.Err() == nil:
		return fmt.Errorf("wait for the deletion of snapshot %s: %w", found.Name, err)
	}
	said := ""
	if c := meta.FindStatusCondition(last.Status.Conditions, berth.LocalSnapshotReady); c != nil && c.Status != metav1.ConditionTrue {
		said = ": " + c.Message
	}
	return fmt.Errorf("snapshot %s: %w: node %s has not deleted it yet%s", found.Name, volume.ErrBusy, last.Spec.NodeName, said)
}

// await watches one snapshot until it is as wanted, and returns its last state. gone is
// told when it does not exist any more.
func (s *Snapshots) await(ctx context.Context, of *berth.LocalSnapshot, wanted func(seen *berth.LocalSnapshot, gone bool) bool) (*berth.LocalSnapshot, error) {
	last := of
	for {
		// Watch first, look second: nothing is missed in between.
		watcher, err := s.Live.Watch(ctx, &berth.LocalSnapshotList{}, &client.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", of.Name)})
		if err != nil {
			return last, fmt.Errorf("watch LocalSnapshot %s: %w", of.Name, err)
		}
		seen, err := s.Find(ctx, of.Name)
		gone := errors.Is(err, volume.ErrNotFound) || err == nil && seen.UID != of.UID
		if err != nil && !gone {
			watcher.Stop()
			return last, err
		}
		if !gone {
			last = seen
		}
		if wanted(last, gone) {
			watcher.Stop()
			return last, nil
		}
		done := follow(ctx, watcher, of, &last, wanted)
		watcher.Stop()
		switch {
		case done:
			return last, nil
		case ctx.Err() != nil:
			return last, context.Cause(ctx)
		}
	}
}

// follow reads a watch until it ends or the snapshot is as wanted.
func follow(ctx context.Context, watcher watch.Interface, of *berth.LocalSnapshot, last **berth.LocalSnapshot, wanted func(*berth.LocalSnapshot, bool) bool) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case event, open := <-watcher.ResultChan():
			if !open {
				return false
			}
			seen, ok := event.Object.(*berth.LocalSnapshot)
			if !ok {
				return false
			}
			if seen.Name != of.Name || seen.UID != of.UID {
				continue
			}
			*last = seen
			if wanted(seen, event.Type == watch.Deleted) {
				return true
			}
		}
	}
}

// Taken reports whether the snapshot stands.
func Taken(s *berth.LocalSnapshot) bool {
	return s.DeletionTimestamp == nil && meta.IsStatusConditionTrue(s.Status.Conditions, berth.LocalSnapshotReady)
}

// Lost reports whether a snapshot has overflowed or is gone, and holds nothing any more.
func Lost(s *berth.LocalSnapshot) bool {
	return meta.IsStatusConditionFalse(s.Status.Conditions, berth.LocalSnapshotValid)
}

// refusalOf returns why the node will not take the snapshot, or nil while it may.
func refusalOf(s *berth.LocalSnapshot) error {
	c := meta.FindStatusCondition(s.Status.Conditions, berth.LocalSnapshotReady)
	if s.DeletionTimestamp != nil || c == nil || c.Status != metav1.ConditionFalse {
		return nil
	}
	switch c.Reason {
	case berth.ReasonNoSpace, berth.ReasonInvalid, berth.ReasonPoolNotFound:
		return &Failure{Volume: s.Spec.VolumeName, Node: s.Spec.NodeName, Reason: c.Reason, Message: c.Message}
	}
	return nil
}
