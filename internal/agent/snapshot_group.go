// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// makeOfGroup takes the whole group that a LocalSnapshot is of, or finds it, and returns its
// own part. Each of the group's LocalSnapshots asks for it, and writes only its own status:
// whoever comes first takes it, the others find it, and so they do after a crash. What the
// disk says of it is the record of which there is only one.
func (r *SnapshotReconciler) makeOfGroup(ctx context.Context, s *v1alpha1.LocalSnapshot) (made takenSnapshot, err error) {
	unlock, err := r.groups.Lock(ctx, s.Spec.Group.Name)
	if err != nil {
		return takenSnapshot{}, err
	}
	defer unlock()
	members, err := r.membersOf(ctx, s)
	defer func() {
		if err != nil && !errors.Is(err, errRefused) {
			return
		}
		for _, m := range members {
			if m.UID != s.UID && !isTaken(&m) && !isFinalSnapshot(&m) {
				r.queue.addAfter(m.Name, touchDelay) // it may have looked before all were seen
			}
		}
	}()
	if err != nil {
		return takenSnapshot{}, err
	}
	release, err := r.holdVolumes(members)
	defer release()
	if err != nil {
		return takenSnapshot{}, fmt.Errorf("group snapshot %s: %w", s.Spec.Group.Name, err)
	}
	spec := volume.GroupSnapshotSpec{Name: s.Spec.Group.Name}
	var own copySource
	for _, m := range members {
		from, err := r.sourceOf(&m)
		if err != nil {
			return takenSnapshot{}, fmt.Errorf("group snapshot %s: %w", spec.Name, err)
		}
		if from.Pool != m.Spec.Pool {
			return takenSnapshot{}, fmt.Errorf("%w: group snapshot %s: volume %s is in pool %s, and not in pool %s: %w",
				errRefused, spec.Name, m.Spec.VolumeName, from.Pool, m.Spec.Pool, volume.ErrInvalid)
		}
		spec.Snapshots = append(spec.Snapshots, specOf(&m, from))
		if isTaken(&m) {
			spec.TakenAt = m.Status.CreationTime.Time
		}
		if m.UID == s.UID {
			own = from
		}
	}
	groups, err := r.grouper(s.Spec.Pool)
	if err != nil {
		return takenSnapshot{}, refusedIf(err, volume.ErrInvalid)
	}
	group, err := groups.SnapshotGroup(ctx, spec)
	if err != nil {
		return takenSnapshot{}, refusedIf(fmt.Errorf("take group snapshot %s: %w", spec.Name, err), volume.ErrInvalid, volume.ErrNoSpace)
	}
	r.Backends.Touch(s.Spec.Pool)
	i := slices.IndexFunc(members, func(m v1alpha1.LocalSnapshot) bool { return m.UID == s.UID })
	return takenSnapshot{group.Records[i], own, metav1.NewTime(group.TakenAt)}, nil
}

// holdVolumes takes the locks of all volumes of a group: none of them must be wiped while
// they are copied. It does not wait, for others hold one lock and wait for another.
// release gives back what was taken, also after an error: volume.ErrBusy.
func (r *SnapshotReconciler) holdVolumes(members []v1alpha1.LocalSnapshot) (release func(), err error) {
	var unlocks []func()
	release = func() {
		for _, unlock := range unlocks {
			unlock()
		}
	}
	for i := range members {
		unlock, ok := r.Locks.TryLock(members[i].Spec.VolumeName)
		if !ok {
			return release, fmt.Errorf("%w: another operation on volume %s is under way", volume.ErrBusy, members[i].Spec.VolumeName)
		}
		unlocks = append(unlocks, unlock)
	}
	return release, nil
}

// membersOf returns all LocalSnapshots of the group that s is of, by the names of their
// volumes. volume.ErrBusy: not all of them were seen yet, or one is being deleted. What one
// of them was refused for, none gets; they are returned with a refusal too.
func (r *SnapshotReconciler) membersOf(ctx context.Context, s *v1alpha1.LocalSnapshot) ([]v1alpha1.LocalSnapshot, error) {
	list := &v1alpha1.LocalSnapshotList{}
	if err := r.Client.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list the LocalSnapshots of group %s: %w", s.Spec.Group.Name, err)
	}
	members := slices.DeleteFunc(list.Items, func(m v1alpha1.LocalSnapshot) bool {
		return m.Spec.Group == nil || m.Spec.Group.Name != s.Spec.Group.Name || m.Spec.NodeName != s.Spec.NodeName
	})
	slices.SortFunc(members, func(a, b v1alpha1.LocalSnapshot) int { return strings.Compare(a.Spec.VolumeName, b.Spec.VolumeName) })
	for i := range members {
		m := &members[i]
		switch {
		case m.UID == s.UID:
		case !m.DeletionTimestamp.IsZero():
			return nil, fmt.Errorf("group snapshot %s: %w: its LocalSnapshot %s is being deleted", s.Spec.Group.Name, volume.ErrBusy, m.Name)
		case isFinalSnapshot(m):
			c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.LocalSnapshotReady)
			return members, fmt.Errorf("%w: group snapshot %s: its LocalSnapshot %s was refused: %s: %w", errRefused, s.Spec.Group.Name, m.Name, c.Message, sentinelOf(c.Reason))
		}
	}
	for i, m := range members {
		switch {
		case m.Spec.Pool != s.Spec.Pool:
			return members, fmt.Errorf("%w: group snapshot %s: volume %s is in pool %s and volume %s in pool %s; what is taken at one instant must be in one pool: %w",
				errRefused, s.Spec.Group.Name, s.Spec.VolumeName, s.Spec.Pool, m.Spec.VolumeName, m.Spec.Pool, volume.ErrInvalid)
		case i > 0 && members[i-1].Spec.VolumeName == m.Spec.VolumeName:
			return members, fmt.Errorf("%w: group snapshot %s: volume %s is in it twice: %w", errRefused, s.Spec.Group.Name, m.Spec.VolumeName, volume.ErrInvalid)
		}
	}
	if wanted := int(s.Spec.Group.Members); len(members) != wanted {
		return nil, fmt.Errorf("group snapshot %s: %w: %d of its %d LocalSnapshots were seen", s.Spec.Group.Name, volume.ErrBusy, len(members), wanted)
	}
	return members, nil
}

// sentinelOf is what a final reason was made of.
func sentinelOf(reason string) error {
	switch reason {
	case v1alpha1.ReasonNoSpace:
		return volume.ErrNoSpace
	case v1alpha1.ReasonPoolNotFound:
		return ErrPoolNotFound
	}
	return volume.ErrInvalid
}

// grouper is the backend of a pool, if its volumes have group snapshots.
func (r *SnapshotReconciler) grouper(pool string) (volume.GroupSnapshotter, error) {
	s, err := r.snapshotter(volume.ModeLVM, pool)
	if err != nil {
		return nil, err
	}
	groups, ok := s.(volume.GroupSnapshotter)
	if !ok {
		return nil, fmt.Errorf("volumes of pool %s have no group snapshots: %w", pool, volume.ErrInvalid)
	}
	return groups, nil
}
