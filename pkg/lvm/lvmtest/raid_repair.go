// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"slices"
	"strings"
)

// repair puts new legs into the place of those whose disk is missing.
func (p *process) repair(c command, within func() error) (string, error) {
	groupName, name, _ := strings.Cut(c.args[0], "/")
	g := p.h.groupNamed(groupName)
	if g == nil || g.any(name) == nil {
		return fmt.Sprintf("Failed to find logical volume \"%s/%s\"", groupName, name), nil
	}
	lv := g.any(name)
	if lv.node == "" {
		return fmt.Sprintf("%s/%s must be active to perform this operation.", groupName, name), nil
	}
	if lv.suspended {
		return "lvmtest: it would wait for ever for a volume that is suspended", nil
	}
	if p.h.leftovers[name] {
		return fmt.Sprintf("device-mapper: create ioctl on %s-%s_rmeta_2 failed: Device or resource busy", groupName, name), nil
	}
	spares, rest := slices.Clone(c.args[1:]), []*logicalVolume(nil)
	for i, l := range lv.legs {
		if !l.disk.missing && !l.disk.flagged || len(spares) == 0 {
			continue
		}
		d := p.h.disks[spares[0]]
		free := g.freeOn(d)
		if d.group != g || len(free) <= len(l.extents) || slices.ContainsFunc(lv.legs, func(o *leg) bool { return o.disk == d }) {
			return fmt.Sprintf("Insufficient suitable allocatable extents for logical volume %s: %d more required", name, len(l.extents)+1), nil
		}
		spares = spares[1:]
		made := &leg{
			number: len(lv.legs) + i, disk: d, imageUUID: p.h.newUUID(), metaUUID: p.h.newUUID(), plugs: d.plugs,
			meta: free[0], extents: slices.Clone(free[1 : len(l.extents)+1]), rebuilding: p.h.slowRebuild,
		}
		for at, e := range lv.extents {
			if old := slices.Index(l.extents, e); old >= 0 {
				lv.extents[at] = made.extents[old]
			}
		}
		rest = append(rest,
			&logicalVolume{name: fmt.Sprintf("%s_rimage_%d_extracted", name, l.number), uuid: l.imageUUID, role: []string{"public"}, extents: l.extents},
			&logicalVolume{name: fmt.Sprintf("%s_rmeta_%d_extracted", name, l.number), uuid: l.metaUUID, role: []string{"public"}, extents: []extent{l.meta}, tags: lv.tags})
		lv.legs[i] = made
	}
	if len(rest) == 0 {
		return fmt.Sprintf("Logical volume %s/%s does not contain devices specified to replace.", groupName, name), nil
	}
	flagMissing(g)
	g.volumes = append(g.volumes, rest...)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	g.volumes = slices.DeleteFunc(g.volumes, func(o *logicalVolume) bool { return slices.Contains(rest, o) })
	g.seqno++
	return "", within()
}

// flagMissing is what each change of a group's metadata does to disks that are missing.
func flagMissing(g *group) {
	for _, d := range g.disks {
		d.flagged = d.flagged || d.missing
	}
}

func restoreMissing(g *group, paths []string) string {
	for _, d := range g.disks {
		if slices.Contains(paths, d.path) && !d.missing {
			d.flagged = false
		}
	}
	return ""
}

func (p *process) removeMissing(c command) string {
	g := p.h.groupNamed(c.args[0])
	if g == nil {
		return fmt.Sprintf("Volume group %q not found", c.args[0])
	}
	for _, lv := range g.volumes {
		if lv.health() == "partial" || slices.ContainsFunc(lv.spare, func(e extent) bool { return e.disk.missing || e.disk.flagged }) {
			return fmt.Sprintf("There are still partial LVs in VG %s.", g.name)
		}
	}
	// Nothing is written on them: their labels say what the group does not know any more,
	// and lvm shows them nowhere.
	g.disks = slices.DeleteFunc(g.disks, func(d *disk) bool { return d.missing || d.flagged })
	g.seqno++
	return ""
}
