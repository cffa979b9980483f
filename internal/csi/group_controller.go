// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// GroupSnapshots takes, finds and deletes LocalSnapshots that are taken at one instant.
// internal/provision.Snapshots implements it.
type GroupSnapshots interface {
	EnsureGroup(ctx context.Context, name string, volumes []*berth.LocalVolume) ([]berth.LocalSnapshot, error)
	FindGroup(ctx context.Context, name string) ([]berth.LocalSnapshot, error)
	DeleteGroup(ctx context.Context, name string) error
}

// GroupController is the CSI GroupController service. A request for a group that another
// request is busy with is answered with ABORTED at once.
type GroupController struct {
	csi.UnimplementedGroupControllerServer

	volumes LocalVolumes
	groups  GroupSnapshots
	busy    busyVolumes
}

var _ csi.GroupControllerServer = (*GroupController)(nil)

// NewGroupController returns the service.
func NewGroupController(volumes LocalVolumes, groups GroupSnapshots) *GroupController {
	return &GroupController{volumes: volumes, groups: groups}
}

// GroupControllerGetCapabilities says what is served.
func (c *GroupController) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// CreateVolumeGroupSnapshot takes snapshots of several volumes of one node at one instant. A
// repeated call returns those of the first; a group of the same name and of other volumes is
// ALREADY_EXISTS. A node that takes its time is answered with ready_to_use false: the CO asks
// again.
func (c *GroupController) CreateVolumeGroupSnapshot(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if err := required("name", req.GetName()); err != nil {
		return nil, err
	}
	if len(req.GetSourceVolumeIds()) == 0 {
		return nil, fmt.Errorf("%w: source_volume_ids is missing", volume.ErrInvalid)
	}
	if err := noParameters(req.GetParameters(), "VolumeGroupSnapshotClass"); err != nil {
		return nil, err
	}
	name := objectName(req.GetName())
	release, err := c.busy.take(name)
	if err != nil {
		return nil, err
	}
	defer release()
	existing, err := c.groups.FindGroup(ctx, name)
	switch {
	case err == nil && isGroupOf(existing, req.GetSourceVolumeIds()):
		return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: csiGroup(name, existing)}, nil // also when its volumes are gone
	case err != nil && !errors.Is(err, volume.ErrNotFound):
		return nil, err
	}
	var volumes []*berth.LocalVolume
	for _, id := range req.GetSourceVolumeIds() {
		lv, err := findVolume(ctx, c.volumes, id)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, lv)
	}
	members, err := c.groups.EnsureGroup(ctx, name, volumes)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: csiGroup(name, members)}, nil
}

// DeleteVolumeGroupSnapshot deletes a group with all its snapshots and returns when their
// node has proven that nothing of them is left. A group that does not exist is deleted
// already.
func (c *GroupController) DeleteVolumeGroupSnapshot(ctx context.Context, req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", req.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	if !isObjectName(req.GetGroupSnapshotId()) {
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil // nothing of ours was ever called so
	}
	release, err := c.busy.take(req.GetGroupSnapshotId())
	if err != nil {
		return nil, err
	}
	defer release()
	members, err := c.groups.FindGroup(ctx, req.GetGroupSnapshotId())
	if errors.Is(err, volume.ErrNotFound) {
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	// Of a deletion that was cut short only some are left.
	if err := areMembers(req.GetGroupSnapshotId(), members, req.GetSnapshotIds(), false); err != nil {
		return nil, err
	}
	if err := c.groups.DeleteGroup(ctx, req.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// GetVolumeGroupSnapshot returns a group with its snapshots.
func (c *GroupController) GetVolumeGroupSnapshot(ctx context.Context, req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if err := required("group_snapshot_id", id); err != nil {
		return nil, err
	}
	if !isObjectName(id) {
		return nil, fmt.Errorf("group snapshot %q: %w: no group of ours has such an ID", id, volume.ErrNotFound)
	}
	members, err := c.groups.FindGroup(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := areMembers(id, members, req.GetSnapshotIds(), true); err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: csiGroup(id, members)}, nil
}

// isGroupOf reports whether a group stands and is of those volumes.
func isGroupOf(members []berth.LocalSnapshot, volumeIDs []string) bool {
	if len(members) != len(volumeIDs) || len(members) != int(members[0].Spec.Group.Members) {
		return false
	}
	for i := range members {
		if !provision.Taken(&members[i]) || !slices.Contains(volumeIDs, members[i].Spec.VolumeName) ||
			!members[i].Status.CreationTime.Equal(members[0].Status.CreationTime) {
			return false
		}
	}
	return true
}

// areMembers returns volume.ErrInvalid for a list of snapshots that is not that of the group.
// An empty list says nothing.
func areMembers(group string, members []berth.LocalSnapshot, ids []string, all bool) error {
	if len(ids) == 0 {
		return nil
	}
	for i := range members {
		if !slices.Contains(ids, members[i].Name) {
			return fmt.Errorf("%w: snapshot_ids lacks %s, which is of the group snapshot %s", volume.ErrInvalid, members[i].Name, group)
		}
	}
	if all && len(ids) != len(members) {
		return fmt.Errorf("%w: snapshot_ids has %d snapshots, and the group snapshot %s has %d", volume.ErrInvalid, len(ids), group, len(members))
	}
	return nil
}

// csiGroup is a group of LocalSnapshots in CSI's terms.
func csiGroup(name string, members []berth.LocalSnapshot) *csi.VolumeGroupSnapshot {
	group := &csi.VolumeGroupSnapshot{GroupSnapshotId: name}
	ready := len(members) > 0 && len(members) == int(members[0].Spec.Group.Members)
	for i := range members {
		s := csiSnapshot(&members[i])
		group.Snapshots = append(group.Snapshots, s)
		ready = ready && s.GetReadyToUse()
		if at := s.GetCreationTime().AsTime(); i == 0 || at.Before(group.GetCreationTime().AsTime()) {
			group.CreationTime = timestamppb.New(at)
		}
	}
	group.ReadyToUse = ready
	return group
}
