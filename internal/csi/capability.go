// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// usage is a volume capability, checked.
type usage struct {
	access volume.Access
	// fsType as the claim names it; may be empty.
	fsType string
	// options of the mount.
	options []string
	// readOnly is asked for by the access mode.
	readOnly bool
	// singleWriter allows one publication on the node at a time.
	singleWriter bool
}

// parseCapability checks a volume capability against what a volume on one node can
// do. volume.ErrInvalid says what cannot be done.
func parseCapability(c *csi.VolumeCapability) (usage, error) {
	var u usage
	if c == nil {
		return u, fmt.Errorf("%w: volume_capability is missing", volume.ErrInvalid)
	}
	switch t := c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
		u.access = volume.AccessBlock
	case *csi.VolumeCapability_Mount:
		u.access = volume.AccessFilesystem
		u.fsType = t.Mount.GetFsType()
		u.options = t.Mount.GetMountFlags()
		if err := mount.CheckOptions(u.options); err != nil {
			return u, err
		}
	default:
		return u, fmt.Errorf("%w: volume_capability has no access type", volume.ErrInvalid)
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		u.singleWriter = true
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	default:
		return u, fmt.Errorf("%w: access mode %s: a volume lives on one node, use ReadWriteOnce or ReadWriteOncePod", volume.ErrInvalid, mode)
	}
	return u, nil
}

// fits reports whether a volume is what a capability asks for.
func (u usage) fits(v Volume) error {
	if u.access != v.Access {
		return fmt.Errorf("%w: volume %s was made for access %s, not %s", volume.ErrInvalid, v.Name, v.Access, u.access)
	}
	if u.fsType != "" && v.FSType != "" && u.fsType != v.FSType {
		return fmt.Errorf("%w: volume %s has the filesystem %s, not %s", volume.ErrInvalid, v.Name, v.FSType, u.fsType)
	}
	return nil
}

// required refuses a request whose field is empty.
func required(field, value string) error {
	if value == "" {
		return fmt.Errorf("%w: %s is missing", volume.ErrInvalid, field)
	}
	return nil
}

// readOnlyMount reports whether the filesystem itself is mounted read-only.
func (u usage) readOnlyMount() bool { return mount.ReadOnly(u.options) }
