// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/pkg/dm"
)

// movement is what pvmove has begun: extents that are being copied to others.
type movement struct {
	from, to []extent
	// active until the next boot.
	active bool
}

const movementName = "pvmove0"

// SetSlowCopy keeps what is being moved from being copied, until it is called with false.
func (h *Host) SetSlowCopy(slow bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slowCopy = slow
}

// FailCopy has the next copy fail.
func (h *Host) FailCopy() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failCopy = true
}

// Moving implements lvm.Nodes.
func (n nodes) Moving(ctx context.Context, _, groupUUID, name string) (dm.Mirror, bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return dm.Mirror{}, false, err
	}
	for _, g := range n.h.groups {
		if g.uuid != groupUUID || g.moving == nil || !g.moving.active || name != movementName {
			continue
		}
		status := dm.Mirror{Legs: 2, Regions: uint64(len(g.moving.from))}
		switch {
		case n.h.failCopy:
			status.DeadLegs, n.h.failCopy = 1, false
		case !n.h.slowCopy:
			status.SyncedRegions = status.Regions
		default:
			status.SyncedRegions = status.Regions / 2
		}
		return status, true, nil
	}
	return dm.Mirror{}, false, nil
}

// WhileStill implements lvm.Nodes: each process of the fake is one moment.
func (n nodes) WhileStill(ctx context.Context, _ string, f func() error) error {
	n.h.mu.Lock()
	err := n.h.alive(ctx, n.boot)
	n.h.mu.Unlock()
	if err != nil {
		return err
	}
	return f()
}

// pvmove begins to move, goes on, comes to the end, or aborts.
func (p *process) pvmove(c command, within func() error) (string, error) {
	if len(c.args) > 0 {
		return p.beginMove(c, within)
	}
	for _, g := range p.visible(c) {
		if g.moving == nil {
			continue
		}
		if !c.has("--abort") && (!g.moving.active || p.h.slowCopy) {
			return "lvmtest: it would wait for what is not copied", nil
		}
		m := g.moving
		if !c.has("--abort") {
			for _, lv := range g.volumes {
				p.h.writeThrough(g, lv)
			}
			for i, from := range m.from {
				p.h.copyOver(g, from, m.to[i])
				g.replace(from, m.to[i])
			}
		}
		g.moving = nil
		g.seqno++
		if err := within(); err != nil {
			return "", err
		}
		g.seqno += 2
	}
	return "", nil
}

// beginMove also stays, as pvmove does, until the process is killed.
func (p *process) beginMove(c command, within func() error) (string, error) {
	path, ranges, ranged := strings.Cut(c.args[0], ":")
	d := p.h.disks[path]
	if d == nil || d.group == nil || !p.seen(c, d) {
		return fmt.Sprintf("Failed to find physical volume %q.", path), nil
	}
	g := d.group
	if refused := refuseChange(p, c, g); refused != "" {
		return refused, nil
	}
	if !c.has("--atomic") || !strings.HasPrefix(c.value("--interval"), "+") || !strings.Contains(c.value("--config"), "use_lvmpolld=0") {
		return "lvmtest: it would end the move by itself", nil
	}
	if g.moving != nil {
		if ranged {
			return "lvmtest: two moves at once", nil
		}
		g.moving.active, p.waits = true, true
		return "", within()
	}
	if !ranged {
		return "lvmtest: it would move all that is on the disk", nil
	}
	m := &movement{active: true}
	owners, name := g.owners(), c.value("--name")
	known := false
	for span := range strings.SplitSeq(ranges, ":") {
		first, last, _ := strings.Cut(span, "-")
		from, _ := strconv.ParseInt(first, 10, 64)
		to, _ := strconv.ParseInt(last, 10, 64)
		for i := from; i <= to; i++ {
			o, used := owners[extent{d, i}]
			if !used {
				continue
			}
			if name == "" || o.isOf(name) {
				m.from = append(m.from, extent{d, i})
			}
		}
	}
	// Redundant volumes of which a leg is on the disk keep lvm away from those of the other
	// legs, whether they are moved or not, where no volume is named.
	apart := map[string]bool{}
	for e, o := range owners {
		known = known || o.isOf(name)
		if e.disk == d && o.isLeg() && (name == "" || o.isOf(name)) {
			apart[o.parent] = true
		}
	}
	if name != "" && !known {
		return fmt.Sprintf("Logical volume %s not found.", name), nil
	}
	var free []extent
	for _, to := range c.args[1:] {
		t := p.h.disks[to]
		switch {
		case t == nil || t.group != g || t == d:
			return fmt.Sprintf("Physical Volume %q not found in Volume Group %q.", to, g.name), nil
		case g.closed[t]:
			return fmt.Sprintf("Physical volume %s is not allocatable.", to), nil
		}
		trimmed := false
		for e, o := range owners {
			trimmed = trimmed || e.disk == t && o.isLeg() && apart[o.parent]
		}
		if !trimmed {
			free = append(free, g.freeOn(t)...)
		}
	}
	switch {
	case len(m.from) == 0:
		return fmt.Sprintf("No data to move for %s.", g.name), nil
	case len(free) < len(m.from):
		return fmt.Sprintf("Insufficient free space: %d extents needed, but only %d available", len(m.from), len(free)), nil
	}
	m.to = slices.Clone(free[:len(m.from)])
	g.moving = m
	for _, lv := range g.volumes {
		lv.unmarked = lv.unmarked || lv.isThinPool() && p.threshold(c) == 100 // it is loaded anew
	}
	g.seqno++
	p.waits = true
	return "", within()
}

// copyOver copies what is on the disks; what an active volume holds is in its node.
func (h *Host) copyOver(g *group, from, to extent) {
	in, out := h.open(from.disk.file), h.open(to.disk.file)
	h.copyExtent(out, dataStart+to.index*g.extent, in, dataStart+from.index*g.extent, g.extent)
	h.close(in)
	h.close(out)
}

// writeThrough brings what is in the node of an active volume to its disks, so that it is
// there also where the volume comes from.
func (h *Host) writeThrough(g *group, lv *logicalVolume) {
	if lv.node == "" || lv.thin != nil || lv.isThinPool() || len(lv.legs) > 0 || lv.thickOf != nil {
		return
	}
	in := h.open(lv.node)
	for i, e := range lv.extents {
		out := h.open(e.disk.file)
		h.copyExtent(out, dataStart+e.index*g.extent, in, int64(i)*g.extent, g.extent)
		h.close(out)
	}
	h.close(in)
}

// replace puts another extent into the place of one.
func (g *group) replace(from, to extent) {
	swap := func(list []extent) {
		if i := slices.Index(list, from); i >= 0 {
			list[i] = to
		}
	}
	for _, lv := range g.withParts() {
		swap(lv.extents)
		swap(lv.metadata)
		swap(lv.spare)
		for _, l := range lv.legs {
			swap(l.extents)
			if l.meta == from {
				l.meta = to
			}
			if l.meta.disk == to.disk && !slices.ContainsFunc(l.extents, func(e extent) bool { return e.disk != to.disk }) {
				l.disk, l.plugs = to.disk, to.disk.plugs
			}
		}
	}
}

// isMoving reports whether a part of a volume is, so that lvm does not change its size.
func (g *group) isMoving(lv *logicalVolume) bool {
	return g.moving != nil && slices.ContainsFunc(lv.extents, func(e extent) bool { return len(lv.legs) == 0 && !lv.isThinPool() && slices.Contains(g.moving.from, e) })
}

// owner is what lies on an extent.
type owner struct{ name, parent, role, layout string }

func (o owner) isLeg() bool { return strings.Contains(o.role, "raid") }

// isOf reports whether it is a volume of that name, or a part of it.
func (o owner) isOf(name string) bool {
	return strings.Trim(o.name, "[]") == name || strings.Trim(o.parent, "[]") == name
}

func (g *group) owners() map[extent]owner {
	owners := map[extent]owner{}
	put := func(o owner, extents ...extent) {
		for _, e := range extents {
			owners[e] = o
		}
	}
	for _, lv := range g.withParts() {
		switch {
		case len(lv.parts) > 0:
			put(owner{"[lvol0_pmspare]", "", "private,pool,spare", "linear"}, lv.spare...)
		case lv.isThinPool():
			half := len(lv.metadata) / 2
			put(owner{"[" + lv.name + "_tdata]", lv.name, "private,thin,pool,data", "linear"}, lv.extents...)
			put(owner{"[" + lv.name + "_tmeta]", lv.name, "private,thin,pool,metadata", "linear"}, lv.metadata[:half]...)
			put(owner{"[lvol0_pmspare]", "", "private,pool,spare", "linear"}, lv.metadata[half:]...)
		case len(lv.legs) > 0:
			for _, l := range lv.legs {
				put(owner{fmt.Sprintf("[%s_rimage_%d]", lv.name, l.number), lv.shownName(), "private,raid,image", "linear"}, l.extents...)
				put(owner{fmt.Sprintf("[%s_rmeta_%d]", lv.name, l.number), lv.shownName(), "private,raid,metadata", "linear"}, l.meta)
			}
		default:
			put(owner{lv.name, "", strings.Join(g.roleOf(lv), ","), lv.layoutName()}, lv.extents...)
		}
	}
	if m := g.moving; m != nil {
		put(owner{"[" + movementName + "_mimage_0]", "[" + movementName + "]", "private,mirror,image", "linear"}, m.from...)
		put(owner{"[" + movementName + "_mimage_1]", "[" + movementName + "]", "private,mirror,image", "linear"}, m.to...)
	}
	return owners
}

// printSegments prints the rows of pvs --segments.
func (p *process) printSegments(c command, g *group, d *disk) {
	owners := g.owners()
	for start := int64(0); start < d.extents; {
		o, end := owners[extent{d, start}], start+1
		for end < d.extents && owners[extent{d, end}] == o {
			end++
		}
		fields := p.pvFields(c, g, d)
		maps.Copy(fields, map[string]string{
			"pvseg_start": strconv.FormatInt(start, 10), "pvseg_size": strconv.FormatInt(end-start, 10),
			"lv_name": o.name, "lv_parent": o.parent, "lv_role": o.role, "lv_layout": o.layout,
		})
		p.print(c, fields)
		start = end
	}
}

// pvchange closes disks and opens them.
func (p *process) pvchange(c command) string {
	d := p.h.disks[c.args[0]]
	if d == nil || d.group == nil || !p.seen(c, d) {
		return fmt.Sprintf("Failed to find physical volume %q.", c.args[0])
	}
	if refused := refuseChange(p, c, d.group); refused != "" {
		return refused
	}
	if d.group.closed == nil {
		d.group.closed = map[*disk]bool{}
	}
	d.group.closed[d] = c.value("--allocatable") == "n"
	d.group.seqno++
	return ""
}

// takeOut is vgreduce of a disk that is there.
func (p *process) takeOut(c command) string {
	g, refused := p.writable(c, c.args[0])
	if refused != "" {
		return refused
	}
	d := p.h.disks[c.args[1]]
	switch {
	case d == nil || d.group != g:
		return fmt.Sprintf("Physical Volume %q not found in Volume Group %q.", c.args[1], g.name)
	case int64(len(g.freeOn(d))) != d.extents:
		return fmt.Sprintf("Physical volume %q still in use", d.path)
	case len(g.disks) == 1:
		return fmt.Sprintf("Can't remove final physical volume %q from volume group %q", d.path, g.name)
	}
	g.disks = slices.DeleteFunc(slices.Clone(g.disks), func(o *disk) bool { return o == d })
	d.group = nil
	delete(g.closed, d)
	g.seqno++
	return ""
}
