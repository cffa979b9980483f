// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	"github.com/berth-dev/berth/pkg/volume"
)

// Volumes finds the volumes of this node for the node service. internal/agent
// implements it; it must also answer while the API server is away.
type Volumes interface {
	// Locate verifies that the storage of a volume is what was recorded, makes it
	// reachable, and says where it is.
	//
	// volume.ErrNotFound: this node has no such volume, or its storage was proven
	// absent. volume.ErrIdentity: the storage is not what was recorded.
	// volume.ErrBusy: it is not ready yet, or is being deleted.
	// volume.ErrPoolUnavailable: its pool cannot be used now.
	Locate(ctx context.Context, name string) (Volume, error)
}

// Volume is one volume of this node that may be staged.
type Volume struct {
	// Name is the CSI volume handle and the LocalVolume's name; UID is its UID.
	Name, UID string
	Mode      volume.Mode
	Access    volume.Access
	// FSType and FSUUID of the filesystem that was made when the volume was carved;
	// empty for block volumes and in mode hostpath.
	FSType, FSUUID string
	// Copied: the filesystem has the UUID of the one that it is a copy of, which may be
	// mounted on the node too.
	Copied bool
	// Location right now.
	Location volume.Location
}

// Locks keeps operations on one volume apart, by the volume's name. The node
// service shares them with the agent's reconcilers.
type Locks interface {
	// Lock waits until nobody holds the key, or until the context ends.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}
