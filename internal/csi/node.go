// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/pkg/mount"
)

// Mounter does the work on the host; *mount.Mounter is one.
type Mounter interface {
	Inspect(ctx context.Context, device string) (mount.Superblock, error)
	Check(ctx context.Context, device string, s mount.Superblock) error
	Mount(ctx context.Context, fs mount.Filesystem) error
	BindDirectory(ctx context.Context, b mount.Bind) error
	BindDevice(ctx context.Context, b mount.Bind) error
	Unmount(ctx context.Context, target string) error
	UnmountOnly(ctx context.Context, target string) error
	UnmountGone(ctx context.Context, target string) error
	Mounted(ctx context.Context, path string) (bool, error)
	MountsBeside(ctx context.Context, path string, known ...string) ([]string, error)
	Grow(ctx context.Context, device, mountpoint, fsType string) (mount.Sizes, error)
	Stats(ctx context.Context, path string) (mount.Stats, error)
	Condition(ctx context.Context, path string) (mount.Condition, error)
}

// Node is the CSI Node service.
type Node struct {
	csi.UnimplementedNodeServer

	// NodeName is the name of the Node object: the node's CSI id and its topology
	// segment.
	NodeName string
	// TopologyKey of that segment.
	TopologyKey string
	// MaxVolumes the node can have published; 0 leaves it to the scheduler.
	MaxVolumes int64

	Volumes Volumes
	Mounter Mounter
	Locks   Locks
	Health  Health
	// Encryption may be nil where no volume is encrypted.
	Encryption Encryption
}

// NodeGetCapabilities tells what this service can do.
func (n *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo tells the node's name, its topology and how many volumes it takes.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.NodeName,
		MaxVolumesPerNode:  n.MaxVolumes,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{n.TopologyKey: n.NodeName}},
	}, nil
}
