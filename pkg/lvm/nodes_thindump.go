// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// thinPoolDevice returns device-mapper's UUID of an active thin pool; see ThinPool.
func (h HostNodes) thinPoolDevice(pool NodeID) (uuid string, status, table []dm.Target, err error) {
	control, plain := dm.Control{Root: h.Root}, dmUUID(pool.GroupUUID, pool.UUID)
	for _, uuid := range []string{plain + "-tpool", plain} {
		status, err := control.Status(uuid)
		if errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", nil, nil, err
		}
		table, err := control.Table(uuid)
		if errors.Is(err, volume.ErrNotFound) {
			continue // deactivated in between
		}
		return uuid, status, table, err
	}
	return "", nil, nil, fmt.Errorf("thin pool %s: %w: it is not active", pool, volume.ErrNotFound)
}

// HoldThinMetadata implements Nodes.
func (h HostNodes) HoldThinMetadata(ctx context.Context, pool NodeID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	uuid, _, _, err := h.thinPoolDevice(pool)
	if err != nil {
		return err
	}
	return dm.Control{Root: h.Root}.Message(uuid, "reserve_metadata_snap")
}

// ReleaseThinMetadata implements Nodes.
func (h HostNodes) ReleaseThinMetadata(ctx context.Context, pool NodeID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	uuid, status, table, err := h.thinPoolDevice(pool)
	if err != nil {
		return err
	}
	usage, err := dm.ThinPoolOf(status, table)
	if err != nil || usage.HeldRoot == 0 {
		return err
	}
	return dm.Control{Root: h.Root}.Message(uuid, "release_metadata_snap")
}

// ThinMetadataPath implements Nodes. Which device that is the kernel says, in the pool's
// table: the name alone proves nothing.
func (h HostNodes) ThinMetadataPath(ctx context.Context, pool NodeID) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	_, _, table, err := h.thinPoolDevice(pool)
	if err != nil {
		return "", err
	}
	if len(table) != 1 || table[0].Type != "thin-pool" {
		return "", fmt.Errorf("the device of %s is no thin pool: it has %d targets", pool, len(table))
	}
	number, _, _ := strings.Cut(table[0].Status, " ")
	dir := h.path("/sys/dev/block", number)
	uuid, uuidErr := readText(dir + "/dm/uuid")
	name, nameErr := readText(dir + "/dm/name")
	if err := errors.Join(uuidErr, nameErr); err != nil {
		return "", fmt.Errorf("look at device %s, which holds the metadata of %s: %w", number, pool, err)
	}
	if !strings.HasPrefix(uuid, dmUUID(pool.GroupUUID, "")) {
		return "", fmt.Errorf("device %s, which holds the metadata of %s: %w: its UUID in device-mapper is %q", number, pool, volume.ErrIdentity, uuid)
	}
	path := "/dev/mapper/" + name
	found, isNode, err := h.deviceNumber(path)
	if err != nil {
		return "", err
	}
	if !isNode || found != number {
		return "", fmt.Errorf("%s: %w: it is not the node of device %s, which holds the metadata of %s", path, volume.ErrIdentity, number, pool)
	}
	return path, nil
}
