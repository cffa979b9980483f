// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// CreateSnapshot takes a snapshot of a volume. A repeated call returns the snapshot of the
// first; one of the same name and of another volume is ALREADY_EXISTS. A node that takes
// its time is answered with ready_to_use false: the CO asks again.
func (c *Controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := cmp.Or(required("name", req.GetName()), required("source_volume_id", req.GetSourceVolumeId())); err != nil {
		return nil, err
	}
	if c.snapshots == nil {
		return nil, status.Error(codes.Unimplemented, "this controller takes no snapshots")
	}
	if err := noParameters(req.GetParameters(), "VolumeSnapshotClass"); err != nil {
		return nil, err
	}
	name := objectName(req.GetName())
	release, err := c.busy.take(name)
	if err != nil {
		return nil, err
	}
	defer release()
	existing, err := c.snapshots.Find(ctx, name)
	switch {
	case err == nil && existing.Spec.VolumeName == req.GetSourceVolumeId() && existing.Spec.Group == nil && provision.Taken(existing):
		return &csi.CreateSnapshotResponse{Snapshot: csiSnapshot(existing)}, nil // also when its volume is gone
	case err != nil && !errors.Is(err, volume.ErrNotFound):
		return nil, err
	}
	lv, err := c.find(ctx, req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	taken, err := c.snapshots.Ensure(ctx, name, lv)
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: csiSnapshot(taken)}, nil
}

// noParameters refuses the parameters of a class.
func noParameters(parameters map[string]string, class string) error {
	for key := range parameters {
		// What csi-snapshotter adds with --extra-create-metadata asks for nothing.
		if !strings.HasPrefix(key, "csi.storage.k8s.io/") {
			return fmt.Errorf("%w: parameter %q of the %s is unknown; there are none", volume.ErrInvalid, key, class)
		}
	}
	return nil
}

// DeleteSnapshot deletes a snapshot and returns when its node has proven that nothing of
// it is left. A snapshot that does not exist is deleted already. One of a group is deleted with
// that, by the GroupController service.
func (c *Controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	if c.snapshots == nil {
		return nil, status.Error(codes.Unimplemented, "this controller takes no snapshots")
	}
	if !isObjectName(req.GetSnapshotId()) {
		return &csi.DeleteSnapshotResponse{}, nil // nothing of ours was ever called so
	}
	release, err := c.busy.take(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	defer release()
	found, err := c.snapshots.Find(ctx, req.GetSnapshotId())
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return &csi.DeleteSnapshotResponse{}, nil
	case err != nil:
		return nil, err // whether it is of a group is not known
	case found.Spec.Group != nil:
		return nil, fmt.Errorf("%w: snapshot %s is of the group snapshot %s and is deleted with it", volume.ErrInvalid, found.Name, found.Spec.Group.Name)
	}
	if err := c.snapshots.Delete(ctx, req.GetSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots lists by name: all, those of a volume, or one.
func (c *Controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if c.snapshots == nil {
		return nil, status.Error(codes.Unimplemented, "this controller takes no snapshots")
	}
	limit := int(req.GetMaxEntries())
	if limit < 0 {
		return nil, fmt.Errorf("%w: max_entries is %d", volume.ErrInvalid, limit)
	}
	all, err := c.matching(ctx, req)
	if err != nil {
		return nil, err
	}
	if token := req.GetStartingToken(); token != "" {
		after, ours := strings.CutPrefix(token, tokenPrefix)
		if !ours {
			return nil, status.Errorf(codes.Aborted, "starting_token %q is not one of ours; begin anew without one", token)
		}
		from, found := slices.BinarySearchFunc(all, after, func(s berth.LocalSnapshot, name string) int { return strings.Compare(s.Name, name) })
		if found {
			from++
		}
		all = all[from:]
	}
	response := &csi.ListSnapshotsResponse{}
	if limit > 0 && len(all) > limit {
		all = all[:limit]
		response.NextToken = tokenPrefix + all[limit-1].Name
	}
	for i := range all {
		response.Entries = append(response.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: csiSnapshot(&all[i])})
	}
	return response, nil
}

func (c *Controller) matching(ctx context.Context, req *csi.ListSnapshotsRequest) ([]berth.LocalSnapshot, error) {
	var all []berth.LocalSnapshot
	if id := req.GetSnapshotId(); id != "" {
		if !isObjectName(id) {
			return nil, nil
		}
		one, err := c.snapshots.Find(ctx, id)
		if errors.Is(err, volume.ErrNotFound) {
			return nil, nil // an empty list, not an error (CSI 1.13, ListSnapshots)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, *one)
	} else {
		var err error
		if all, err = c.snapshots.List(ctx); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(all, func(s berth.LocalSnapshot) bool {
		// One that was never taken has no size and no time.
		return s.Status.CreationTime == nil || req.GetSourceVolumeId() != "" && s.Spec.VolumeName != req.GetSourceVolumeId()
	}), nil
}

// csiSnapshot is a LocalSnapshot in CSI's terms.
func csiSnapshot(s *berth.LocalSnapshot) *csi.Snapshot {
	snapshot := &csi.Snapshot{SnapshotId: s.Name, SourceVolumeId: s.Spec.VolumeName, ReadyToUse: provision.Taken(s) && !provision.Lost(s)}
	if s.Spec.Group != nil {
		snapshot.GroupSnapshotId = s.Spec.Group.Name
	}
	if s.Status.RestoreSize != nil {
		snapshot.SizeBytes = s.Status.RestoreSize.Value()
	}
	created := s.CreationTimestamp
	if s.Status.CreationTime != nil {
		created = *s.Status.CreationTime
	}
	snapshot.CreationTime = timestamppb.New(created.Time)
	return snapshot
}

// createCopy makes a volume that begins as a copy, where its source is.
func (c *Controller) createCopy(ctx context.Context, want creation, csiName string) (*csi.CreateVolumeResponse, error) {
	from, err := c.origin(ctx, want.copyOf)
	if err != nil {
		return nil, err
	}
	if len(want.nodes) > 0 && !slices.Contains(want.nodes, from.Node) {
		return nil, fmt.Errorf("%w: what volume %s is to be a copy of is on node %s, which accessibility_requirements leave out", volume.ErrNoSpace, want.name, from.Node)
	}
	request := want.request(from.Node, csiName)
	if err := from.Fill(&request); err != nil {
		return nil, err
	}
	lv, err := c.volumes.Ensure(ctx, request)
	if err != nil {
		return nil, err
	}
	return c.within(ctx, lv, want.limitBytes)
}

// contentSource is what a volume began as a copy of in CSI's terms.
func contentSource(of *berth.VolumeSource) *csi.VolumeContentSource {
	switch {
	case of == nil:
		return nil
	case of.Kind == berth.SourceSnapshot:
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: of.Name}}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: of.Name}}}
}

func (c *Controller) origin(ctx context.Context, of *csi.VolumeContentSource) (*provision.Origin, error) {
	if c.snapshots == nil {
		return nil, fmt.Errorf("%w: this controller makes no copies", volume.ErrInvalid)
	}
	if s := of.GetSnapshot(); s != nil {
		if !isObjectName(s.GetSnapshotId()) {
			return nil, fmt.Errorf("snapshot %q: %w: no snapshot of ours has such an ID", s.GetSnapshotId(), volume.ErrNotFound)
		}
		found, err := c.snapshots.Find(ctx, s.GetSnapshotId())
		if err != nil {
			return nil, err
		}
		return provision.OriginOfSnapshot(found, "snapshot "+found.Name)
	}
	lv, err := c.find(ctx, of.GetVolume().GetVolumeId())
	if err != nil {
		return nil, err
	}
	return provision.OriginOfVolume(lv, "volume "+lv.Name)
}

// sameSource reports whether a volume began as a copy of what is asked for.
func sameSource(have *berth.VolumeSource, want *csi.VolumeContentSource) bool {
	switch {
	case have == nil || want == nil:
		return have == nil && want == nil
	case want.GetSnapshot() != nil:
		return have.Kind == berth.SourceSnapshot && have.Name == want.GetSnapshot().GetSnapshotId()
	}
	return have.Kind == berth.SourceVolume && have.Name == want.GetVolume().GetVolumeId()
}
