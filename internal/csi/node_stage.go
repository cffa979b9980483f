// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// NodeStageVolume mounts the filesystem of a volume at the staging path, after its
// identity was verified on the disk. It never formats: that was done when the
// volume was carved, but for an encrypted one, which is opened here with the passphrase
// of the secrets and, before its first use, is encrypted and formatted. Volumes of mode
// hostpath and plain block volumes are verified only. A repeated call does nothing more.
func (n *Node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("staging_target_path", req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	use, err := parseCapability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	unlock, err := hold(ctx, n.Locks, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()

	v, err := n.Volumes.Locate(ctx, req.GetVolumeId())
	if errors.Is(err, volume.ErrGone) {
		v, err = n.locateAnew(ctx, req)
	}
	if err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", req.GetVolumeId(), err)
	}
	if err := use.fits(v); err != nil {
		return nil, err
	}
	if err := n.stage(ctx, v, use, req); err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", v.Name, err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// locateAnew is Locate of a volume that is open on a disk that was pulled out. As with a
// filesystem of such a disk (UnmountGone), kubelet has not unstaged it. All that can be mounted
// at the staging path is what was behind the open device.
func (n *Node) locateAnew(ctx context.Context, req *csi.NodeStageVolumeRequest) (Volume, error) {
	if err := n.Mounter.UnmountOnly(ctx, req.GetStagingTargetPath()); err != nil {
		return Volume{}, err
	}
	if n.Encryption != nil {
		if err := n.Encryption.CloseGone(ctx, req.GetVolumeId()); err != nil {
			return Volume{}, err
		}
	}
	v, err := n.Volumes.Locate(ctx, req.GetVolumeId())
	if errors.Is(err, volume.ErrGone) && errors.Is(err, volume.ErrInUse) {
		err = fmt.Errorf("%w: the pod that had the volume then must be gone before it can be used again (kubectl delete pod, with --force if it does not end; restart the node if its processes stay)", err)
	}
	return v, err
}

// stage opens and mounts a volume. Where it fails it leaves nothing open or mounted that was
// not so before: kubelet takes most errors for final, and does not unstage the volume then.
func (n *Node) stage(ctx context.Context, v Volume, use usage, req *csi.NodeStageVolumeRequest) (err error) {
	if v.Encryption != "" {
		if v.Opened.Device == "" {
			defer func() {
				if err != nil {
					err = errors.Join(err, n.Encryption.Close(context.WithoutCancel(ctx), v.Name))
				}
			}()
		}
		if v.Opened, err = n.Encryption.Open(ctx, v, req.GetSecrets()); err != nil {
			return err
		}
	}
	if v.FSType == "" {
		return nil
	}
	return n.stageFilesystem(ctx, v, use, req.GetStagingTargetPath())
}

func (n *Node) stageFilesystem(ctx context.Context, v Volume, use usage, path string) error {
	// A disk that was pulled out under a pod and put back is another device. Kubelet does not
	// unstage the volume in between if the next pod is there before the last one is gone.
	if err := n.Mounter.UnmountGone(ctx, path); err != nil {
		return err
	}
	mounted, err := n.Mounter.Mounted(ctx, path)
	if err != nil {
		return err
	}
	// A mounted filesystem is in use and is not examined again; that it is this one
	// is for Mount to see.
	if !mounted {
		if err := n.examine(ctx, v); err != nil {
			return err
		}
	}
	options := use.options
	if v.Copied && v.FSType == mount.XFS {
		// xfs mounts no UUID twice (xfs(5)).
		options = append(slices.Clone(options), "nouuid")
	}
	err = n.Mounter.Mount(ctx, mount.Filesystem{
		Device: v.InUse().Device, Target: path, FSType: v.FSType, Options: options,
	})
	if err != nil {
		return err
	}
	// The volume may have grown while nobody had it mounted. Kubelet asks for the
	// growth too, but only of pods that run at that time.
	if use.readOnlyMount() {
		return nil
	}
	if _, err = n.Mounter.Grow(ctx, v.InUse().Device, path, v.FSType); err != nil && !mounted {
		return errors.Join(err, n.Mounter.UnmountOnly(context.WithoutCancel(ctx), path))
	}
	return err
}

// examine makes sure that the filesystem on the device is the one that was made
// there, and that it may be mounted.
func (n *Node) examine(ctx context.Context, v Volume) error {
	device := v.InUse().Device
	found, err := n.Mounter.Inspect(ctx, device)
	if errors.Is(err, mount.ErrNoFilesystem) {
		return fmt.Errorf("%w: %s has no %s any more; Berth does not format a volume that may have held data", volume.ErrIdentity, device, v.FSType)
	}
	if err != nil {
		return err
	}
	if found.FSType != v.FSType || found.UUID != v.FSUUID {
		return fmt.Errorf("%w: %s holds %s with UUID %s, recorded is %s with UUID %s", volume.ErrIdentity, device, found.FSType, found.UUID, v.FSType, v.FSUUID)
	}
	if !found.Complete {
		return fmt.Errorf("%w: mkfs never finished on %s", mount.ErrDamaged, device)
	}
	return n.Mounter.Check(ctx, device, found)
}

// NodeUnstageVolume unmounts the staging path. It asks nobody about the volume, so
// it works when the API server is away and when the volume is gone. A logical
// volume stays active: the next stage is near, and an open one cannot be lost. An
// encrypted one is closed, and its key leaves the kernel.
func (n *Node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := cmp.Or(required("volume_id", req.GetVolumeId()), required("staging_target_path", req.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	unlock, err := hold(ctx, n.Locks, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Kubelet made the directory, and removes it.
	if err := n.Mounter.UnmountOnly(ctx, req.GetStagingTargetPath()); err != nil {
		return nil, fmt.Errorf("unstage volume %s: %w", req.GetVolumeId(), err)
	}
	if n.Encryption != nil {
		if err := n.Encryption.Close(ctx, req.GetVolumeId()); err != nil {
			return nil, fmt.Errorf("unstage volume %s: %w", req.GetVolumeId(), err)
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}
