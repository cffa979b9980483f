// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/pkg/volume"
)

// NodeExpandVolume grows the filesystem to the size that its volume has by now.
// Block volumes and directories have nothing to grow here. volume.ErrBusy while the
// volume itself is still smaller than asked for. A repeated call does
// nothing more.
func (n *Node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("volume_path", req.GetVolumePath())); err != nil {
		return nil, err
	}
	unlock, err := hold(ctx, n.Locks, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := n.Volumes.Locate(ctx, req.GetVolumeId())
	if err != nil {
		return nil, fmt.Errorf("expand volume %s: %w", req.GetVolumeId(), err)
	}
	if v.Location.Device == "" { // a directory
		return &csi.NodeExpandVolumeResponse{CapacityBytes: max(v.Location.SizeBytes, req.GetCapacityRange().GetRequiredBytes())}, nil
	}
	if want := req.GetCapacityRange().GetRequiredBytes(); v.UsableBytes() < want {
		// The agent grows the volume itself when its spec changes, before this call.
		return nil, fmt.Errorf("expand volume %s: %w: it has %d bytes and is still being grown to %d", v.Name, volume.ErrBusy, v.UsableBytes(), want)
	}
	if v.Encryption != "" {
		if v.Opened, err = n.Encryption.Grow(ctx, v, req.GetSecrets()); err != nil {
			return nil, fmt.Errorf("expand volume %s: %w", v.Name, err)
		}
	}
	if v.FSType != "" {
		if _, err := n.Mounter.Grow(ctx, v.InUse().Device, req.GetVolumePath(), v.FSType); err != nil {
			return nil, fmt.Errorf("expand volume %s: %w", v.Name, err)
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.UsableBytes()}, nil
}

// NodeGetVolumeStats measures what is mounted at a path. Kubelet asks every minute
// for every volume, so it runs no program and asks nobody.
func (n *Node) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("volume_path", req.GetVolumePath())); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(req.GetVolumePath()) {
		return nil, fmt.Errorf("%w: %s is not an absolute path, so no volume is there", volume.ErrNotFound, req.GetVolumePath())
	}
	s, err := n.Mounter.Stats(ctx, filepath.Clean(req.GetVolumePath()))
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", req.GetVolumeId(), err)
	}
	if s.Block {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: s.TotalBytes}}}, nil
	}
	usage := []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: s.TotalBytes, Used: s.UsedBytes, Available: s.AvailableBytes}}
	if s.TotalInodes > 0 { // btrfs makes inodes as it needs them and has no count of them
		usage = append(usage, &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: s.TotalInodes, Used: s.UsedInodes, Available: s.AvailableInodes})
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: usage}, nil
}
