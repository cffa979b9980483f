// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/berth-dev/berth/pkg/volume"
)

// Disks have volatile write caches: what lvm writes about volume groups is there for
// everybody, and is lost with the power unless the disk was flushed since. A group's
// metadata is on each of its disks; one that was flushed tells it to the others, as
// lvm repairs outdated copies, but for the labels, without which a disk is no physical
// volume.

// durable is what would be left of the volume groups without power.
type durable struct {
	groups []*group
	// labels are the disks' UUIDs as physical volumes, and the group each is in.
	labels map[string]label
}

type label struct {
	pvUUID string
	group  string // its UUID
}

// Flush is the lvm.Flusher of the host's disks.
func (h *Host) Flush(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[path]
	if h.blind || h.dead || d == nil || d.missing {
		return fmt.Errorf("flush %s: %w", path, volume.ErrNotFound)
	}
	if h.noFlush {
		return fmt.Errorf("flush %s: input/output error", path)
	}
	if h.durable.labels == nil {
		h.durable.labels = map[string]label{}
	}
	if d.pvUUID == "" {
		delete(h.durable.labels, path)
		return nil
	}
	now := label{pvUUID: d.pvUUID}
	if d.group != nil {
		now.group = d.group.uuid
		h.durable.groups = slices.DeleteFunc(h.durable.groups, func(g *group) bool { return g.uuid == d.group.uuid })
		h.durable.groups = append(h.durable.groups, d.group.clone())
	}
	h.durable.labels[path] = now
	return nil
}

// SetNoFlush makes every flush fail.
func (h *Host) SetNoFlush(fails bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noFlush = fails
}

// LoseCaches takes the power away, and with it all of the metadata that was not flushed.
// Reboot gives the power back.
func (h *Host) LoseCaches() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		for _, lv := range g.volumes {
			h.deactivate(lv)
		}
	}
	h.dead = true
	h.groups = nil
	for _, g := range h.durable.groups {
		h.groups = append(h.groups, g.clone())
	}
	for path, d := range h.disks {
		was := h.durable.labels[path]
		d.pvUUID, d.group = was.pvUUID, nil
		if i := slices.IndexFunc(h.groups, func(g *group) bool { return g.uuid == was.group && was.group != "" }); i >= 0 {
			d.group = h.groups[i]
		}
	}
	for _, g := range h.groups {
		// A disk without its label is missing from its group.
		for i, d := range g.disks {
			if d.group != g {
				lost := *d
				lost.missing = true
				g.disks[i] = &lost
			}
		}
	}
}

// clone copies the metadata, not what it is about.
func (g *group) clone() *group {
	c := *g
	c.tags, c.disks, c.closed = slices.Clone(g.tags), slices.Clone(g.disks), maps.Clone(g.closed)
	if g.moving != nil {
		m := *g.moving
		c.moving = &m
	}
	c.volumes = make([]*logicalVolume, len(g.volumes))
	for i, lv := range g.volumes {
		v := *lv
		v.node = ""
		v.tags, v.role, v.extents = slices.Clone(lv.tags), slices.Clone(lv.role), slices.Clone(lv.extents)
		v.metadata = slices.Clone(lv.metadata)
		v.legs, v.spare = cloneLegs(lv.legs), slices.Clone(lv.spare)
		v.parts = nil
		for _, part := range lv.parts {
			copied := *part
			copied.node, copied.extents, copied.legs = "", slices.Clone(part.extents), cloneLegs(part.legs)
			v.parts = append(v.parts, &copied)
		}
		c.volumes[i] = &v
	}
	for _, lv := range c.volumes {
		if lv.thin != nil {
			lv.thin = c.volume(lv.thin.name)
		}
		if lv.thickOf != nil {
			lv.thickOf = c.volume(lv.thickOf.name)
		}
	}
	return &c
}
