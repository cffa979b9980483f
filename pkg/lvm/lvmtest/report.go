// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// answer prints what lvs, pvs or vgs prints. vgs is asked for the fields of devices.
func (p *process) answer(c command) {
	switch c.name {
	case "lvs":
		for _, g := range p.visible(c) {
			if g.exported || g.systemID != "" {
				continue
			}
			for _, lv := range g.volumes {
				if c.has("-a") {
					p.printWithLegs(c, g, lv)
					continue
				}
				p.print(c, lvFields(g, lv))
				for _, fields := range lv.shownLegs(g) {
					p.print(c, fields)
				}
			}
		}
	case "vgs":
		for _, g := range p.visible(c) {
			for _, d := range g.disks {
				p.print(c, p.pvFields(c, g, d))
			}
		}
	case "pvs":
		for _, g := range p.visible(c) {
			for _, d := range g.disks {
				if c.has("--segments") {
					p.printSegments(c, g, d)
					continue
				}
				p.print(c, p.pvFields(c, g, d))
			}
		}
		if c.has("--segments") {
			return
		}
		for _, d := range p.h.disks {
			switch {
			case d.pvUUID == "" || !p.seen(c, d):
			case d.group == nil:
				p.print(c, p.pvFields(c, nil, d))
			case d.group.torn > 0:
				fields := p.pvFields(c, nil, d)
				fields["vg_name"] = "[unknown]"
				p.print(c, fields)
			}
		}
	}
}

func (p *process) print(c command, fields map[string]string) {
	for i, name := range strings.Split(c.value("-o"), ",") {
		value, ok := fields[name]
		if !ok {
			fmt.Fprintf(&p.stderr, "  Unrecognised field: %s\n", name)
			return
		}
		separator := " "
		if i == 0 {
			separator = "  "
		}
		fmt.Fprintf(&p.report, "%sLVM2_%s='%s'", separator, strings.ToUpper(name), value)
	}
	p.report.WriteByte('\n')
}

func lvFields(g *group, lv *logicalVolume) map[string]string {
	return map[string]string{
		"vg_uuid": g.uuid, "vg_seqno": strconv.FormatUint(g.seqno, 10),
		"lv_uuid": lv.uuid, "lv_name": lv.name, "lv_tags": strings.Join(lv.tags, ","),
		"lv_size":   strconv.FormatInt(lv.size()*g.extent, 10),
		"lv_layout": lv.layoutName(), "lv_role": strings.Join(g.roleOf(lv), ","),
		"pool_lv_uuid": lv.poolUUID(), "origin_uuid": lv.originUUID(g), "lv_metadata_size": lv.metadataSize(),
		"lv_when_full": lv.whenFull(), "thin_id": lv.thinNumber(), "zero": lv.zeroes(),
	}
}

func (p *process) pvFields(c command, g *group, d *disk) map[string]string {
	fields := map[string]string{"pv_uuid": d.pvUUID, "pv_name": cmp.Or(d.alias, d.path), "pv_missing": "", "pv_allocatable": "", "dev_size": strconv.FormatInt(d.size, 10)}
	switch {
	case !p.seen(c, d):
		fields["pv_name"], fields["pv_missing"], fields["dev_size"] = "[unknown]", "missing", "0"
	case d.flagged:
		fields["pv_missing"] = "missing"
	}
	if g != nil && !g.closed[d] {
		fields["pv_allocatable"] = "allocatable"
	}
	text := func(name, value string) { fields[name] = value }
	number := func(name string, value int64) { fields[name] = strconv.FormatInt(value, 10) }
	const metadataBytes = 64 << 20
	if g == nil {
		g, d = &group{}, &disk{}
	}
	text("vg_uuid", g.uuid)
	text("vg_name", g.name)
	text("vg_tags", strings.Join(g.tags, ","))
	text("vg_systemid", g.systemID)
	text("vg_exported", map[bool]string{true: "exported"}[g.exported])
	number("pv_pe_count", d.extents)
	number("pv_pe_alloc_count", d.extents-int64(len(g.freeOn(d))))
	number("vg_seqno", int64(g.seqno))
	number("vg_size", g.total()*g.extent)
	number("vg_extent_size", g.extent)
	number("vg_extent_count", g.total())
	number("vg_free_count", int64(len(g.free())))
	number("vg_missing_pv_count", int64(p.missing(c, g)))
	number("pv_count", int64(len(g.disks)))
	number("lv_count", int64(len(g.volumes)+len(g.shownLegs())))
	number("vg_mda_size", metadataBytes)
	number("vg_mda_free", ((metadataBytes-512)/2-512-int64(len(g.text()))-1)/512*512)
	return fields
}

// seen reports whether a command sees a disk.
func (p *process) seen(c command, d *disk) bool {
	if d.missing {
		return false
	}
	return c.accepts(d.path)
}

// visible returns the groups of which a command sees at least one disk.
func (p *process) visible(c command) []*group {
	groups := slices.DeleteFunc(slices.Clone(p.h.groups), func(g *group) bool {
		return g.torn > 0 || !slices.ContainsFunc(g.disks, func(d *disk) bool { return p.seen(c, d) })
	})
	for _, d := range p.h.disks {
		if d.ghost != nil && p.seen(c, d) && !p.h.isMember(d) && !slices.ContainsFunc(groups, func(g *group) bool { return g.uuid == d.ghost.uuid }) {
			groups = append(groups, d.ghost)
		}
	}
	return groups
}

// isMember reports whether a disk is part of a group that knows it.
func (h *Host) isMember(d *disk) bool {
	return slices.ContainsFunc(h.groups, func(g *group) bool { return slices.Contains(g.disks, d) })
}

func (p *process) missing(c command, g *group) int {
	n := 0
	for _, d := range g.disks {
		if !p.seen(c, d) || d.flagged {
			n++
		}
	}
	return n
}

// Report prints the report of the whole host, for tests of its reader.
func (h *Host) Report() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &process{h: h}
	for _, line := range []string{
		"lvs -o vg_uuid,vg_seqno,lv_uuid,lv_name,lv_size,lv_tags,lv_layout,lv_role,pool_lv_uuid,origin_uuid,lv_metadata_size,lv_when_full",
		"pvs -o pv_uuid,pv_name,pv_missing,dev_size,pv_pe_count,pv_pe_alloc_count,vg_uuid,vg_name,vg_seqno,vg_size,vg_extent_size,vg_extent_count," +
			"vg_free_count,vg_tags,vg_systemid,vg_exported,vg_missing_pv_count,pv_count,lv_count,vg_mda_size,vg_mda_free",
	} {
		c, err := parse(strings.Fields(line))
		h.must(err)
		p.answer(c)
	}
	return bytes.Clone(p.report.Bytes())
}
