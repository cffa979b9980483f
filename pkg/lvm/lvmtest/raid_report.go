// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"slices"
	"strings"
)

// printWithLegs prints the rows of lvs -a: one for each run of extents.
func (p *process) printWithLegs(c command, g *group, lv *logicalVolume) {
	if len(lv.parts) > 0 {
		p.printThinWithLegs(c, g, lv)
		return
	}
	if lv.isThinPool() {
		fields := lvFields(g, lv)
		fields["lv_parent"], fields["devices"] = "", lv.name+"_tdata(0)"
		p.print(c, fields)
		for _, fields := range lv.poolParts(g) {
			p.print(c, fields)
		}
		return
	}
	if lv.thin != nil {
		fields := lvFields(g, lv)
		fields["lv_parent"], fields["devices"] = "", ""
		p.print(c, fields)
		return
	}
	if len(lv.legs) == 0 {
		for _, place := range g.places(lv.extents) {
			fields := lvFields(g, lv)
			fields["lv_parent"], fields["devices"] = "", place
			p.print(c, fields)
		}
		return
	}
	p.printLegs(c, g, lv, lvFields(g, lv))
}

// printLegs prints the row of a volume with legs, and those of its legs.
func (p *process) printLegs(c command, g *group, lv *logicalVolume, fields map[string]string) {
	var images []string
	for _, l := range lv.legs {
		images = append(images, fmt.Sprintf("%s_rimage_%d(0)", lv.name, l.number))
	}
	fields["lv_parent"], fields["devices"] = lv.partOf, strings.Join(images, ",")
	p.print(c, fields)
	for _, fields := range lv.legFields(g) {
		p.print(c, fields)
	}
}

func (lv *logicalVolume) legFields(g *group) (rows []map[string]string) {
	row := func(name, uuid, role string, extents []extent, shown bool) {
		if !shown {
			name = "[" + name + "]"
		}
		for _, place := range g.places(extents) {
			fields := lvFields(g, &logicalVolume{name: name, uuid: uuid, role: []string{"private", "raid", role}, extents: extents})
			if role == "metadata" {
				fields["lv_tags"] = strings.Join(lv.tags, ",")
			}
			fields["lv_parent"], fields["devices"] = lv.shownName(), place
			rows = append(rows, fields)
		}
	}
	for _, l := range lv.legs {
		row(fmt.Sprintf("%s_rimage_%d", lv.name, l.number), l.imageUUID, "image", l.extents, false)
		row(fmt.Sprintf("%s_rmeta_%d", lv.name, l.number), l.metaUUID, "metadata", []extent{l.meta}, lv.unfinished)
	}
	return rows
}

// shownLegs are those that lvs shows without -a.
func (lv *logicalVolume) shownLegs(g *group) []map[string]string {
	if !lv.unfinished {
		return nil
	}
	return slices.DeleteFunc(lv.legFields(g), func(fields map[string]string) bool { return strings.HasPrefix(fields["lv_name"], "[") })
}

func (g *group) shownLegs() (rows []map[string]string) {
	for _, lv := range g.volumes {
		rows = append(rows, lv.shownLegs(g)...)
	}
	return rows
}

// places are the runs of extents, as lvm's field "devices" tells them.
func (g *group) places(extents []extent) (runs []string) {
	for i, e := range extents {
		if i > 0 && extents[i-1].disk == e.disk && extents[i-1].index+1 == e.index {
			continue
		}
		path := e.disk.path
		if e.disk.missing || e.disk.flagged {
			path = "[unknown]"
		}
		if g.moving != nil && slices.Contains(g.moving.from, e) {
			path = movementName
		}
		runs = append(runs, fmt.Sprintf("%s(%d)", path, e.index))
	}
	return runs
}
