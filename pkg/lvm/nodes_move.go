// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Moving implements Nodes.
func (h HostNodes) Moving(ctx context.Context, groupName, groupUUID, name string) (dm.Mirror, bool, error) {
	uuid := ""
	err := h.eachOf(groupUUID, func(d mapped) error {
		if d.layer == "" && d.name == dmName(groupName, name) {
			uuid = dmUUID(groupUUID, d.lvUUID)
		}
		return ctx.Err()
	})
	if err != nil || uuid == "" {
		return dm.Mirror{}, false, err
	}
	status, err := (dm.Control{Root: h.Root}).Status(uuid)
	if errors.Is(err, volume.ErrNotFound) || err == nil && len(status) == 0 {
		return dm.Mirror{}, false, nil
	}
	if err != nil {
		return dm.Mirror{}, false, err
	}
	m, err := dm.MirrorOf(status)
	return m, err == nil, err
}

// WhileStill implements Nodes.
func (h HostNodes) WhileStill(ctx context.Context, groupName string, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := lockGroup(h.Root, groupName)
	if err != nil {
		return fmt.Errorf("lock volume group %s: %w", groupName, err)
	}
	defer unlock()
	return f()
}
