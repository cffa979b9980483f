// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"slices"
	"strings"
)

// A redundant thin pool is made of two volumes with legs, which it hides.

// withParts are the volumes of a group, and what its redundant thin pool is made of.
func (g *group) withParts() []*logicalVolume {
	all := slices.Clone(g.volumes)
	for _, lv := range g.volumes {
		all = append(all, lv.parts...)
	}
	return all
}

// any returns a volume or a part of a pool by its name.
func (g *group) any(name string) *logicalVolume {
	for _, lv := range g.withParts() {
		if lv.name == name {
			return lv
		}
	}
	return nil
}

func (g *group) isPart(lv *logicalVolume) bool { return lv.partOf != "" }

// data of a redundant thin pool.
func (lv *logicalVolume) data() *logicalVolume { return lv.parts[1] }

// shownName is the name with lvm's brackets for what is hidden.
func (lv *logicalVolume) shownName() string {
	if lv.partOf != "" {
		return "[" + lv.name + "]"
	}
	return lv.name
}

// waits reports whether a command on the volume would wait for what is suspended.
func (lv *logicalVolume) waits() bool {
	if lv.thin != nil {
		return lv.suspended || lv.thin.waits()
	}
	return lv.suspended || slices.ContainsFunc(lv.parts, (*logicalVolume).waits)
}

func (lv *logicalVolume) activateParts() {
	for _, part := range lv.parts {
		if part.node == "" {
			part.node = "active"
			part.follow()
		}
	}
}

// joinPool makes a thin pool of two volumes.
func (p *process) joinPool(c command, within func() error) (string, error) {
	groupName, name, _ := strings.Cut(c.args[0], "/")
	g, refused := p.writable(c, groupName)
	if refused != "" {
		return refused, nil
	}
	_, metaName, _ := strings.Cut(c.value("--poolmetadata"), "/")
	data, meta := g.volume(name), g.volume(metaName)
	switch {
	case data == nil || meta == nil || data.unfinished || meta.unfinished:
		return fmt.Sprintf("Failed to find logical volume %q", c.args[0]), nil
	case c.value("--zero") != "y":
		return "lvmtest: a pool that does not zero its chunks shows the data of others", nil
	case c.value("--poolmetadataspare") != "n":
		return "lvmtest: a spare would lie on one disk", nil
	}
	for _, lv := range []*logicalVolume{data, meta} {
		p.h.deactivate(lv)
		p.h.forgetRaid(g, lv)
	}
	pool := &logicalVolume{
		name: name, uuid: data.uuid, tags: data.tags, role: []string{"private"}, layout: "thin,pool",
		metaBytes: int64(len(meta.extents)) * g.extent, parts: []*logicalVolume{meta, data},
	}
	data.uuid = p.h.newUUID()
	data.name, data.role, data.tags, data.partOf = name+"_tdata", []string{"private", "thin", "pool", "data"}, nil, name
	meta.name, meta.role, meta.partOf = name+"_tmeta", []string{"private", "thin", "pool", "metadata"}, name
	g.volumes = slices.DeleteFunc(g.volumes, func(lv *logicalVolume) bool { return lv == data || lv == meta })
	g.volumes = append(g.volumes, pool)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, pool)
	return "", nil
}

// extendMetadata lets the metadata of a redundant pool grow.
func (p *process) extendMetadata(g *group, pool *logicalVolume, c command, bytes int64, within func() error) (string, error) {
	meta := pool.parts[0]
	more := int((bytes-pool.metaBytes+g.extent-1)/g.extent) + len(meta.extents)
	c.flags["--extents"] = []string{fmt.Sprint(more)}
	said, err := p.extendRaid(g, meta, c, within)
	if said == "" {
		pool.metaBytes = int64(len(meta.extents)) * g.extent
	}
	return said, err
}

// printThinWithLegs prints the rows of a thin volume, or of a pool and all that it is made of.
func (p *process) printThinWithLegs(c command, g *group, lv *logicalVolume) {
	fields := lvFields(g, lv)
	fields["lv_parent"], fields["devices"] = "", ""
	if len(lv.parts) == 0 {
		p.print(c, fields)
		return
	}
	fields["devices"] = lv.name + "_tdata(0)"
	p.print(c, fields)
	for _, place := range g.places(lv.spare) {
		fields := lvFields(g, &logicalVolume{name: "[lvol0_pmspare]", uuid: spareUUID, role: []string{"private", "pool", "spare"}, extents: lv.spare})
		fields["lv_parent"], fields["devices"] = "", place
		p.print(c, fields)
	}
	for _, part := range lv.parts {
		fields := lvFields(g, part)
		fields["lv_name"] = part.shownName()
		p.printLegs(c, g, part, fields)
	}
}

const spareUUID = "spare0-0000-0000-0000-0000-0000-000000"

// AddSpare keeps a spare for the metadata of a redundant pool, as lvconvert --repair does, on
// the first disk that has room.
func (e *Editor) AddSpare(pool string) { e.g.volume(pool).spare = slices.Clone(e.g.free()[:1]) }

// removeSpare removes the spare by its name.
func (p *process) removeSpare(c command) string {
	groupName, name, _ := strings.Cut(c.args[0], "/")
	g := p.h.groupNamed(groupName)
	if g == nil || name != "lvol0_pmspare" {
		return fmt.Sprintf("Failed to find logical volume %q", c.args[0])
	}
	for _, lv := range g.volumes {
		lv.spare = nil
	}
	flagMissing(g)
	g.seqno++
	return ""
}
