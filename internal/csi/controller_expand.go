// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/pkg/volume"
)

// ControllerExpandVolume grows a volume and returns when its node has grown it. The
// filesystem on it is grown by the node service; a directory has none of its own,
// and a block device shows its new size at once, but for an encrypted one, which the node
// service makes larger with the passphrase.
//
// OUT_OF_RANGE means that it will not grow so far: csi-resizer takes that for final
// and lets the user ask for less (RecoverVolumeExpansionFailure). It takes
// RESOURCE_EXHAUSTED for an operation that may still be going on.
func (c *Controller) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if req.GetCapacityRange() == nil || req.GetCapacityRange().GetRequiredBytes() == 0 {
		return nil, fmt.Errorf("%w: capacity_range.required_bytes is missing", volume.ErrInvalid)
	}
	if err := checkRange(req.GetCapacityRange()); err != nil {
		return nil, err
	}
	lv, err := c.find(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if capability := req.GetVolumeCapability(); capability != nil {
		use, err := parseCapability(capability)
		if err != nil {
			return nil, err
		}
		if err := use.fits(Volume{Name: lv.Name, Access: volume.Access(lv.Spec.VolumeMode), FSType: lv.Spec.FSType}); err != nil {
			return nil, err
		}
	}
	release, err := c.busy.take(lv.Name)
	if err != nil {
		return nil, err
	}
	defer release()

	lv, err = c.volumes.Grow(ctx, lv.Name, req.GetCapacityRange().GetRequiredBytes())
	var failure *provision.Failure
	switch {
	case errors.As(err, &failure) && (errors.Is(err, volume.ErrNoSpace) || errors.Is(err, volume.ErrInvalid)):
		return nil, status.Errorf(codes.OutOfRange, "volume %s keeps its size: %v", req.GetVolumeId(), err)
	case err != nil:
		return nil, err
	}
	size := csiVolume(lv).GetCapacityBytes()
	if limit := req.GetCapacityRange().GetLimitBytes(); limit > 0 && size > limit {
		return nil, status.Errorf(codes.OutOfRange, "volume %s has %d bytes, and capacity_range ends at %d; it cannot be made smaller", lv.Name, size, limit)
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         size,
		NodeExpansionRequired: (lv.Spec.VolumeMode != berth.VolumeBlock || lv.Spec.Encryption != "") && lv.Spec.Mode != berth.ModeHostpath,
	}, nil
}
