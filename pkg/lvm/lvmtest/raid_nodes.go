// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"slices"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Raid implements lvm.Nodes.
func (n nodes) Raid(ctx context.Context, id lvm.NodeID) (dm.Raid, bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	lv, err := n.volume(ctx, id)
	if err != nil || lv == nil || lv.node == "" {
		return dm.Raid{}, false, err
	}
	status := dm.Raid{Type: lv.layout, Legs: len(lv.legs), SyncedSectors: 2, SyncSectors: 2, Action: dm.RaidIdle}
	for _, l := range lv.legs {
		switch {
		case l.disk.missing || l.plugs != l.disk.plugs:
			status.DeadLegs++
			status.Health += string(dm.LegDead)
		case l.rebuilding && n.h.slowRebuild:
			status.RebuildingLegs++
			status.Health += string(dm.LegRebuilding)
			status.SyncedSectors, status.Action = 1, dm.RaidRecover
		default:
			status.Health += string(dm.LegInStep)
		}
	}
	return status, true, nil
}

// InUse implements lvm.Nodes.
func (n nodes) InUse(ctx context.Context, id lvm.NodeID) (bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	lv, err := n.volume(ctx, id)
	return lv != nil && lv.node != "" && n.h.held[lv.node], err
}

// Gone implements lvm.Nodes, for volumes that lie on disks without anything in between.
func (n nodes) Gone(ctx context.Context, loc volume.Location) (bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			for d, plugs := range lv.plugged {
				if lv.node != "" && lv.node == loc.Device && (d.missing || d.plugs != plugs) {
					return true, n.h.alive(ctx, n.boot)
				}
			}
		}
	}
	return false, n.h.alive(ctx, n.boot)
}

// Stale implements lvm.Nodes.
func (n nodes) Stale(ctx context.Context, id lvm.NodeID, _ string) (bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return false, err
	}
	for _, g := range n.h.groups {
		for _, lv := range g.withParts() {
			for _, l := range lv.legs {
				if lv.node != "" && (l.imageUUID == id.UUID || l.metaUUID == id.UUID) {
					return l.plugs != l.disk.plugs, nil
				}
			}
		}
	}
	return false, nil
}

// Suspended implements lvm.Nodes.
func (n nodes) Suspended(ctx context.Context, _ string) (map[string]bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	suspended := map[string]bool{}
	for _, g := range n.h.groups {
		for _, lv := range g.withParts() {
			if lv.thin != nil || lv.isThinPool() {
				suspended[lv.uuid] = lv.suspended && lv.node != ""
			}
			for _, l := range lv.legs {
				suspended[l.imageUUID] = lv.suspended && lv.node != ""
			}
		}
	}
	return suspended, n.h.alive(ctx, n.boot)
}

// Resume implements lvm.Nodes.
func (n nodes) Resume(ctx context.Context, _, _ string, lvUUIDs []string) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	for _, g := range n.h.groups {
		for _, lv := range g.withParts() {
			for _, l := range lv.legs {
				lv.suspended = lv.suspended && !slices.Contains(lvUUIDs, l.imageUUID)
			}
		}
	}
	return n.h.alive(ctx, n.boot)
}

// Suspend leaves a volume suspended, as an lvm does that is killed while it repairs it:
// whatever needs it would wait for ever.
func (h *Host) Suspend(volume string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		if lv := g.any(volume); lv != nil {
			lv.suspended = true
		}
	}
}

// RemoveUnknown implements lvm.Nodes.
func (n nodes) RemoveUnknown(ctx context.Context, _, _ string, _ func(string) bool) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	clear(n.h.leftovers)
	return n.h.alive(ctx, n.boot)
}

func (n nodes) volume(ctx context.Context, id lvm.NodeID) (*logicalVolume, error) {
	if err := n.h.alive(ctx, n.boot); err != nil {
		return nil, err
	}
	for _, g := range n.h.groups {
		for _, lv := range g.withParts() {
			if g.uuid == id.GroupUUID && lv.uuid == id.UUID {
				return lv, nil
			}
		}
	}
	return nil, nil
}

// SetSlowRebuild keeps legs that were replaced in the state of being rebuilt, until it is
// called with false.
func (h *Host) SetSlowRebuild(slow bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slowRebuild = slow
}

// LeaveLeg leaves a device of a leg behind, as an lvm does that is killed while it repairs
// the volume.
func (h *Host) LeaveLeg(volume string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leftovers[volume] = true
}
