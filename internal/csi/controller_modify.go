// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/internal/provision"
)

// ControllerModifyVolume gives a volume the limits of the mutable parameters in place of
// those it has, and returns when its node has put them in force. A repeated call does
// nothing more.
//
// INVALID_ARGUMENT means that it will not have them, and has those of before: csi-resizer
// takes that for infeasible and lets the user set the claim back. Any other code leaves
// it trying.
func (c *Controller) ControllerModifyVolume(ctx context.Context, req *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	lv, err := c.find(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	limits, err := provision.ParseLimits(withoutMetadata(req.GetMutableParameters()))
	if err != nil {
		return nil, err
	}
	release, err := c.busy.take(lv.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := c.volumes.Limit(ctx, lv.Name, limits); err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}
