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
	// volume.ErrPoolUnavailable: its pool cannot be used now. volume.ErrGone: it is open on
	// a disk that was pulled out; see Encryption.CloseGone.
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
	// Encryption of the content; empty for none.
	Encryption volume.Encryption
	// Location of the storage right now. That of an encrypted volume is not for use: see
	// Opened.
	Location volume.Location
	// Opened is where an encrypted volume can be read and written; no device while it is not
	// open.
	Opened volume.Location
}

// UsableBytes is what the volume has room for.
func (v Volume) UsableBytes() int64 { return v.Encryption.Usable(v.Location.SizeBytes) }

// InUse is where a volume that is staged can be read and written; no device for an
// encrypted one that is not open.
func (v Volume) InUse() volume.Location {
	if v.Encryption != "" {
		return v.Opened
	}
	return v.Location
}

// Encryption opens and closes encrypted volumes. internal/agent implements it; it must also
// answer while the API server is away. Its callers hold the volume's lock.
type Encryption interface {
	// Open makes an encrypted volume readable with the passphrase among the secrets, and
	// returns where. What was never used is encrypted, and formatted, before. A volume
	// that is open already needs no passphrase.
	//
	// volume.ErrKey: there is no passphrase, or it opens nothing. volume.ErrIdentity: the
	// header is not the recorded one, or is not there any more. Nothing was changed.
	Open(ctx context.Context, v Volume, secrets map[string]string) (volume.Location, error)
	// Grow makes an open volume as large as its storage. volume.ErrKey as Open.
	Grow(ctx context.Context, v Volume, secrets map[string]string) (volume.Location, error)
	// Close ends what Open began. It returns nil for a volume that is not encrypted, not open
	// or not known. volume.ErrInUse: somebody has it.
	Close(ctx context.Context, name string) error
	// CloseGone is Close of a volume that is open on a disk that was pulled out, whose pods may
	// be there still. volume.ErrInUse says who has it and what is to be done; nothing was changed.
	CloseGone(ctx context.Context, name string) error
}

// Locks keeps operations on one volume apart, by the volume's name. The node
// service shares them with the agent's reconcilers.
type Locks interface {
	// Lock waits until nobody holds the key, or until the context ends.
	Lock(ctx context.Context, key string) (unlock func(), err error)
}
