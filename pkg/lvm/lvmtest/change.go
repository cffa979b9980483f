// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// change does what a command does. within is called between the change of the
// metadata and that of the device nodes. said is lvm's complaint; the error ends
// the process.
func (p *process) change(c command, within func() error) (said string, err error) {
	switch c.name {
	case "lvcreate":
		return p.lvcreate(c, within)
	case "lvextend":
		return p.lvextend(c, within)
	case "lvconvert":
		switch {
		case c.has("--type"):
			return p.joinPool(c, within)
		case c.has("--splitsnapshot"):
			return p.split(c, within)
		}
		return p.repair(c, within)
	case "lvrename":
		return p.rename(c, within)
	case "pvmove":
		return p.pvmove(c, within)
	case "lvremove":
		if !c.has("--select") {
			return p.removeSpare(c), within()
		}
		return p.eachSelected(c, func(g *group, lv *logicalVolume) (string, error) {
			if g.isMoving(lv) {
				return fmt.Sprintf("Can't remove locked logical volume %s/%s.", g.name, lv.name), nil
			}
			if lv.node != "" && p.h.held[lv.node] {
				return fmt.Sprintf("Logical volume %s/%s in use.", g.name, lv.name), nil
			}
			if lv.thickOf != nil {
				p.h.makePlain(g, lv)
				g.seqno++
			}
			p.h.deactivate(lv)
			if err := within(); err != nil {
				return "", err
			}
			p.h.drop(g, lv)
			g.seqno++
			return "", nil
		})
	case "lvchange":
		return p.eachSelected(c, func(g *group, lv *logicalVolume) (string, error) {
			if when := c.value("--errorwhenfull"); when != "" && lv.isThinPool() {
				lv.failsWhenFull = when == "y"
				g.seqno++
				return "", within()
			}
			if c.has("--addtag") || c.has("--deltag") {
				lv.tags = slices.DeleteFunc(slices.Clone(lv.tags), func(tag string) bool { return slices.Contains(c.flags["--deltag"], tag) })
				lv.tags = append(lv.tags, c.flags["--addtag"]...)
				g.seqno++
				return "", within()
			}
			if c.has("--permission") {
				lv.readOnly = c.value("--permission") == "r"
				g.seqno++
				return "", within()
			}
			if c.has("--refresh") {
				lv.unmarked = p.threshold(c) == 100
			}
			if c.value("--activate") == "n" {
				if lv.node != "" && p.h.held[lv.node] {
					return fmt.Sprintf("Logical volume %s/%s in use.", g.name, lv.name), nil
				}
				p.h.deactivate(lv)
				return "", within()
			}
			if lv.node == "" && c.has("--refresh") || lv.unfinished || lv.thickOf != nil {
				return "", nil
			}
			if !lv.canActivate(c.value("--activationmode")) {
				return fmt.Sprintf("Refusing activation of partial LV %s/%s.", g.name, lv.name), nil
			}
			if lv.waits() {
				return "lvmtest: it would wait for ever for a leg that is suspended", nil
			}
			if p.h.otherTransaction && (lv.thin != nil || lv.isThinPool()) && lv.node == "" {
				return fmt.Sprintf("Thin pool %s-thin-tpool (253:2) transaction_id is 8, while expected 7.", g.name), nil
			}
			p.h.activate(g, lv)
			if c.has("--refresh") {
				p.h.refresh(lv)
				for _, part := range lv.parts {
					p.h.refresh(part)
				}
			}
			return "", within()
		})
	}
	return p.changePool(c), within()
}

// writable returns the group with that name if it can be changed.
func (p *process) writable(c command, name string) (*group, string) {
	var found *group
	for _, g := range p.visible(c) {
		if g.name != name {
			continue
		}
		if found != nil {
			return nil, "Multiple VGs found with the same name: skipping " + name
		}
		found = g
	}
	if found == nil {
		return nil, fmt.Sprintf("Volume group %q not found", name)
	}
	return found, refuseChange(p, c, found)
}

func refuseChange(p *process, c command, g *group) string {
	switch {
	case g.exported:
		return fmt.Sprintf("Volume group %s is exported", g.name)
	case g.systemID != "":
		return fmt.Sprintf("Cannot access VG %s with system ID %s with unknown local system ID.", g.name, g.systemID)
	case p.missing(c, g) > 0:
		return fmt.Sprintf("Cannot change VG %s while PVs are missing.", g.name)
	}
	return ""
}

func (p *process) lvcreate(c command, within func() error) (string, error) {
	if c.has("--snapshot") {
		return p.createCopy(c, within)
	}
	if c.value("--type") == "snapshot" {
		return p.createThickSnapshot(c, within)
	}
	g, refused := p.writable(c, c.args[0])
	if refused != "" {
		return refused, nil
	}
	switch c.value("--type") {
	case "snapshot":
		return "lvmtest: it needs a volume to be of", nil
	case "thin-pool":
		return p.createThinPool(g, c, within)
	case "thin":
		return p.createThin(g, c, within)
	}
	if isRaid(c.value("--type")) {
		return p.createRaid(g, c, within)
	}
	extents, _ := strconv.Atoi(c.value("--extents"))
	name := c.value("--name")
	free, refused := g.place(c, extents)
	switch {
	case g.volume(name) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, g.name), nil
	case extents <= 0:
		return "Unable to create new logical volume with no extents.", nil
	case refused != "":
		return refused, nil
	}
	lv := &logicalVolume{
		name: name, uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"public"}, layout: c.value("--type"), extents: free,
	}
	g.volumes = append(g.volumes, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, lv)
	return "", nil
}

func (p *process) lvextend(c command, within func() error) (string, error) {
	groupName, name, _ := strings.Cut(c.args[0], "/")
	g, refused := p.writable(c, groupName)
	if refused != "" {
		return refused, nil
	}
	lv := g.volume(name)
	if lv == nil {
		return fmt.Sprintf("Failed to find logical volume \"%s/%s\"", groupName, name), nil
	}
	if len(lv.parts) > 0 && c.has("--extents") {
		said, err := p.extendRaid(g, lv.data(), c, within)
		return said, err
	}
	if g.isMoving(lv) {
		return fmt.Sprintf("Can't resize locked logical volume %s/%s.", g.name, lv.name), nil
	}
	if len(lv.legs) > 0 {
		return p.extendRaid(g, lv, c, within)
	}
	if lv.thin != nil || c.has("--poolmetadatasize") {
		return p.extendThin(g, lv, c, within)
	}
	extents, _ := strconv.Atoi(c.value("--extents"))
	if len(g.snapshotsOf(lv)) > 0 {
		return "Snapshot origin volumes can be resized only while inactive: try lvchange -an.", nil
	}
	if lv.thickOf != nil {
		extents = min(extents, g.mostCow(lv.thickOf))
	}
	more := extents - len(lv.extents)
	if more <= 0 {
		return fmt.Sprintf("New size given (%d extents) not larger than existing size (%d extents)", extents, len(lv.extents)), nil
	}
	free, refused := g.place(c, more)
	if refused != "" {
		return refused, nil
	}
	lv.extents = append(lv.extents, free...)
	g.seqno++
	lv.lags = (lv.isThinPool() || lv.thickOf != nil) && lv.node != ""
	if err := within(); err != nil {
		return "", err
	}
	lv.lags = false
	if lv.node != "" && lv.thickOf == nil {
		p.h.resizeNode(g, lv)
	}
	return "", nil
}

// eachSelected does something with each volume that --select takes.
func (p *process) eachSelected(c command, do func(*group, *logicalVolume) (string, error)) (string, error) {
	var complaints []string
	for _, g := range p.visible(c) {
		if g.exported || g.systemID != "" {
			continue
		}
		for _, lv := range slices.Clone(g.volumes) {
			ok, err := matches(c.value("--select"), map[string]string{
				"vg_uuid": g.uuid, "lv_uuid": lv.uuid, "lv_layout": lv.layoutName(), "lv_role": strings.Join(g.roleOf(lv), ","),
				"lv_health_status": lv.health(),
			})
			if err != nil {
				return err.Error(), nil //nolint:nilerr // lvm complains of the selection and goes on.
			}
			if !ok {
				continue
			}
			if c.name == "lvremove" && p.missing(c, g) > 0 && lv.health() != "partial" {
				complaints = append(complaints, refuseChange(p, c, g))
				continue
			}
			said, err := do(g, lv)
			if err != nil {
				return "", err
			}
			if said != "" {
				complaints = append(complaints, said)
			}
		}
	}
	return strings.Join(complaints, "\n  "), nil
}

// changePool does the commands that make and unmake volume groups.
func (p *process) changePool(c command) string {
	switch c.name {
	case "pvcreate":
		return p.pvcreate(c)
	case "pvremove":
		d := p.h.disks[c.args[0]]
		if d == nil || d.missing || d.pvUUID == "" || d.group != nil {
			return fmt.Sprintf("Cannot use %s: it is no physical volume without a volume group", c.args[0])
		}
		d.pvUUID = ""
	case "vgcreate":
		name := c.args[0]
		if p.h.groupNamed(name) != nil {
			return fmt.Sprintf("A volume group called %s already exists.", name)
		}
		size, _ := strconv.ParseInt(strings.TrimSuffix(c.value("--physicalextentsize"), "b"), 10, 64)
		g := &group{name: name, uuid: p.h.newUUID(), extent: size, seqno: 1, tags: c.flags["--addtag"]}
		if said := p.addDisks(g, c.args[1:]); said != "" {
			return said
		}
		p.h.groups = append(p.h.groups, g)
	case "vgextend":
		g := p.h.groupNamed(c.args[0])
		if g == nil {
			return fmt.Sprintf("Volume group %q not found", c.args[0])
		}
		g.seqno++
		if c.has("--restoremissing") {
			return restoreMissing(g, c.args[1:])
		}
		flagMissing(g)
		return p.addDisks(g, c.args[1:])
	case "pvchange":
		return p.pvchange(c)
	case "vgreduce":
		if !c.has("--removemissing") {
			return p.takeOut(c)
		}
		return p.removeMissing(c)
	case "vgremove":
		p.h.groups = slices.DeleteFunc(p.h.groups, func(g *group) bool {
			ok, _ := matches(c.value("--select"), map[string]string{"vg_uuid": g.uuid})
			if !ok || len(g.volumes) > 0 {
				return false
			}
			for _, d := range g.disks {
				d.group = nil
			}
			return true
		})
	}
	return ""
}

func (p *process) pvcreate(c command) string {
	path := c.args[0]
	d := p.h.disks[path]
	switch {
	case d == nil || d.missing:
		return fmt.Sprintf("Cannot use %s: device not found", path)
	case p.h.held[path]:
		return fmt.Sprintf("Can't open %s exclusively.  Mounted filesystem?", path)
	case d.group != nil:
		return fmt.Sprintf("Physical volume '%s' is already in volume group '%s'", path, d.group.name)
	case d.content != "":
		// Nobody answers the question.
		return fmt.Sprintf("WARNING: %s signature detected on %s at offset 1080. Wipe it? [y/n]: [n]\n  Aborted wiping of %s.\n  1 existing signature left on the device.",
			d.content, path, d.content)
	}
	d.pvUUID = c.value("--uuid")
	return ""
}

func (p *process) addDisks(g *group, paths []string) string {
	for _, path := range paths {
		d := p.h.disks[path]
		if d == nil || d.missing || d.pvUUID == "" || d.group != nil {
			return fmt.Sprintf("Cannot use %s: it is no physical volume without a volume group", path)
		}
	}
	for _, path := range paths {
		d := p.h.disks[path]
		d.group, d.extents = g, (d.size-dataStart)/g.extent
		g.disks = append(g.disks, d)
	}
	return ""
}
