// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

// mostGroupMembers is how many volumes a group snapshot may have: all of them stand still
// while they are copied (SnapshotGroup.members of the API).
const mostGroupMembers = 64

// EnsureGroup makes the LocalSnapshots of a group of that name, one of each volume, or finds
// those that an earlier call made, and waits a while for their node. It returns them by the
// names of their volumes; Taken says of each whether it stands, and all are of one instant.
//
// Errors: volume.ErrInvalid for volumes that cannot have one, volume.ErrNotTogether for
// volumes that are not in one place, volume.ErrExists for a group of that name and of other
// volumes, a *Failure for the node's final answer, after which nothing is left of the
// attempt, a *Pending when the node may go on and cannot be followed, and volume.ErrBusy
// while one of that name is being deleted.
func (s *Snapshots) EnsureGroup(ctx context.Context, name string, volumes []*berth.LocalVolume) ([]berth.LocalSnapshot, error) {
	volumes = slices.SortedFunc(slices.Values(volumes), func(a, b *berth.LocalVolume) int { return strings.Compare(a.Name, b.Name) })
	if err := canBeTogether(name, volumes); err != nil {
		return nil, err
	}
	existing, err := s.FindGroup(ctx, name)
	if err != nil && !errors.Is(err, volume.ErrNotFound) {
		return nil, err
	}
	if err := sameGroup(name, existing, volumes); err != nil {
		return nil, err
	}
	group := &berth.SnapshotGroup{Name: name, Members: int32(len(volumes))}
	members := make([]berth.LocalSnapshot, len(volumes))
	for i, lv := range volumes {
		found, err := s.post(ctx, memberName(name, lv.Name), lv, group)
		if err != nil {
			return nil, err
		}
		members[i] = *found
	}
	// Once more, with those that were found only now.
	if err := sameGroup(name, members, volumes); err != nil {
		return nil, err
	}
	return s.awaitGroup(ctx, name, members)
}

func (s *Snapshots) awaitGroup(ctx context.Context, name string, members []berth.LocalSnapshot) ([]berth.LocalSnapshot, error) {
	waiting, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	for i := range members {
		last, err := s.await(waiting, &members[i], func(seen *berth.LocalSnapshot, gone bool) bool {
			return gone || Taken(seen) || refusalOf(seen) != nil
		})
		if err != nil && ctx.Err() == nil && waiting.Err() != nil {
			break // it goes on
		}
		if err != nil {
			return nil, &Pending{
				Volume: members[i].Spec.VolumeName, Cause: err,
				What: fmt.Sprintf("node %s goes on with the group snapshot %s, of which nothing can be learned now", members[i].Spec.NodeName, name),
			}
		}
		if refusal := refusalOf(last); refusal != nil {
			// The next call begins anew: the pool may have room then.
			if err := s.removeAll(ctx, members); err != nil {
				return nil, notTakenBack(members[i].Spec.VolumeName, refusal, err)
			}
			return nil, refusal
		}
		members[i] = *last
	}
	return members, ofOneInstant(name, members)
}

// ofOneInstant returns an error if members that stand were not taken together, as by an agent
// of a version that knows no groups.
func ofOneInstant(name string, members []berth.LocalSnapshot) error {
	var first *berth.LocalSnapshot
	for i := range members {
		m := &members[i]
		switch {
		case !Taken(m) || m.Status.CreationTime == nil:
		case first == nil:
			first = m
		case !first.Status.CreationTime.Equal(m.Status.CreationTime):
			return fmt.Errorf("group snapshot %s: %w: %s was taken at %s and %s at %s: delete it; all agents must be of this version",
				name, volume.ErrIdentity, first.Name, first.Status.CreationTime, m.Name, m.Status.CreationTime)
		}
	}
	return nil
}

// canBeTogether returns why volumes cannot be snapshotted at one instant, as far as that
// shows without their node.
func canBeTogether(name string, volumes []*berth.LocalVolume) error {
	if len(volumes) == 0 || len(volumes) > mostGroupMembers {
		return fmt.Errorf("%w: group snapshot %s is of %d volumes; 1 to %d are allowed", volume.ErrInvalid, name, len(volumes), mostGroupMembers)
	}
	first := volumes[0]
	for i, lv := range volumes {
		switch {
		case lv.Spec.Mode != berth.ModeLVM:
			return fmt.Errorf("%w: volume %s is of mode %s, which has no group snapshots", volume.ErrInvalid, lv.Name, lv.Spec.Mode)
		case i > 0 && lv.Name == volumes[i-1].Name:
			return fmt.Errorf("%w: volume %s is in group snapshot %s twice", volume.ErrInvalid, lv.Name, name)
		case lv.Spec.NodeName != first.Spec.NodeName:
			return fmt.Errorf("group snapshot %s: %w: volume %s is on node %s and volume %s on node %s; all must be on one node",
				name, volume.ErrNotTogether, first.Name, first.Spec.NodeName, lv.Name, lv.Spec.NodeName)
		case lv.Spec.Pool != first.Spec.Pool:
			return fmt.Errorf("group snapshot %s: %w: volume %s is in pool %s and volume %s in pool %s; all must be in one pool",
				name, volume.ErrNotTogether, first.Name, first.Spec.Pool, lv.Name, lv.Spec.Pool)
		}
	}
	return nil
}

// sameGroup returns volume.ErrExists unless what is there of a group is of those volumes.
func sameGroup(name string, existing []berth.LocalSnapshot, volumes []*berth.LocalVolume) error {
	for i := range existing {
		m := &existing[i]
		same := slices.ContainsFunc(volumes, func(lv *berth.LocalVolume) bool {
			return m.Spec.VolumeUID == lv.UID && m.Name == memberName(name, lv.Name)
		})
		switch {
		case m.DeletionTimestamp != nil:
			return fmt.Errorf("group snapshot %s: %w: one of that name is being deleted", name, volume.ErrBusy)
		case !same || m.Spec.Group == nil || m.Spec.Group.Name != name || int(m.Spec.Group.Members) != len(volumes):
			return fmt.Errorf("group snapshot %s: %w: LocalSnapshot %s of volume %s is of other volumes' group", name, volume.ErrExists, m.Name, m.Spec.VolumeName)
		}
	}
	return nil
}

// FindGroup returns the LocalSnapshots of a group, by the names of their volumes.
// volume.ErrNotFound: there is none.
func (s *Snapshots) FindGroup(ctx context.Context, name string) ([]berth.LocalSnapshot, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	members := slices.DeleteFunc(all, func(m berth.LocalSnapshot) bool { return m.Spec.Group == nil || m.Spec.Group.Name != name })
	if len(members) == 0 {
		return nil, fmt.Errorf("group snapshot %s: %w", name, volume.ErrNotFound)
	}
	slices.SortFunc(members, func(a, b berth.LocalSnapshot) int { return strings.Compare(a.Spec.VolumeName, b.Spec.VolumeName) })
	return members, nil
}

// DeleteGroup deletes all LocalSnapshots of a group and waits a while until their node has
// proven that nothing is left. It returns nil when there is none. volume.ErrBusy: the node is
// still at it.
func (s *Snapshots) DeleteGroup(ctx context.Context, name string) error {
	members, err := s.FindGroup(ctx, name)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeAll(ctx, members)
}

// removeAll begins all deletions before it waits for one, so that the node has them in one
// batch.
func (s *Snapshots) removeAll(ctx context.Context, members []berth.LocalSnapshot) error {
	for i := range members {
		if err := s.remove(ctx, &members[i]); err != nil {
			return err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	for i := range members {
		if err := s.awaitGone(ctx, waiting, &members[i]); err != nil {
			return err
		}
	}
	return nil
}

// memberName is the name of the LocalSnapshot of a volume in a group: the same in each call.
func memberName(group, volumeName string) string {
	const longest, bytes = 253, 5 // of an object's name, and of the hash
	sum := sha256.Sum256([]byte(volumeName))
	name := group + "-" + hex.EncodeToString(sum[:bytes])
	if len(name) > longest {
		sum = sha256.Sum256([]byte(group + "/" + volumeName))
		name = "member-" + hex.EncodeToString(sum[:20])
	}
	return name
}
