// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// NodePublishVolume makes the volume visible to one pod: the staged filesystem or
// the directory by a bind mount, a block volume by its device node. A repeated call
// does nothing more.
func (n *Node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("target_path", req.GetTargetPath()),
		required("staging_target_path", req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	use, err := parseCapability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	use.readOnly = use.readOnly || req.GetReadonly()
	unlock, err := hold(ctx, n.Locks, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.publish(ctx, req, use); err != nil {
		return nil, fmt.Errorf("publish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n *Node) publish(ctx context.Context, req *csi.NodePublishVolumeRequest, use usage) error {
	bind := mount.Bind{Target: req.GetTargetPath(), ReadOnly: use.readOnly}
	bindSource := n.Mounter.BindDirectory
	staged, err := n.staged(ctx, req.GetStagingTargetPath(), use)
	if err != nil {
		return err
	}
	if staged {
		// Verified when it was staged, and mounted since: nothing has to be asked again.
		bind.Source = req.GetStagingTargetPath()
	} else {
		v, err := n.Volumes.Locate(ctx, req.GetVolumeId())
		if err != nil {
			return err
		}
		if err := use.fits(v); err != nil {
			return err
		}
		switch {
		case v.Access == volume.AccessBlock && v.InUse().Device != "":
			bind.Source, bindSource = v.InUse().Device, n.Mounter.BindDevice
		case v.Access == volume.AccessFilesystem && v.FSType == "":
			bind.Source, bind.Options = v.Location.Directory, use.options
		default:
			return status.Errorf(codes.FailedPrecondition, "volume %s is not staged at %s", v.Name, req.GetStagingTargetPath())
		}
	}
	if use.singleWriter {
		if err := n.requireSole(ctx, bind.Source, req); err != nil {
			return err
		}
	}
	return bindSource(ctx, bind)
}

// staged reports whether the filesystem of the volume is mounted at its staging
// path.
func (n *Node) staged(ctx context.Context, path string, use usage) (bool, error) {
	if use.access == volume.AccessBlock {
		return false, nil
	}
	return n.Mounter.Mounted(ctx, path)
}

// requireSole refuses a second publication of a volume that one pod may have
// (CSI spec, NodePublishVolume: SINGLE_NODE_SINGLE_WRITER at a second target is
// FAILED_PRECONDITION). One that stands was the only one when it was made, and has
// followers of its own since: kubelet binds a block device once more, for itself.
func (n *Node) requireSole(ctx context.Context, source string, req *csi.NodePublishVolumeRequest) error {
	stands, err := n.Mounter.Mounted(ctx, req.GetTargetPath())
	if err != nil || stands {
		return err // that it is this volume is for the bind mount to see
	}
	others, err := n.Mounter.MountsBeside(ctx, source, req.GetStagingTargetPath())
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s may have one pod at a time and is published at %s", req.GetVolumeId(), others[0])
	}
	return nil
}

// NodeUnpublishVolume takes the volume away from one pod and removes the target
// path. Like unstaging it asks nobody about the volume.
func (n *Node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("target_path", req.GetTargetPath())); err != nil {
		return nil, err
	}
	unlock, err := hold(ctx, n.Locks, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := n.Mounter.Unmount(ctx, req.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("unpublish volume %s: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
