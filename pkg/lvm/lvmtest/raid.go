// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The bytes of a volume with legs are in a file of its own, from when it is first activated
// until it is removed, when they go to those legs that hold data: what the kernel computes
// from the legs that are there is always there.

// leg is an image with its metadata, both on one disk.
type leg struct {
	number int
	disk   *disk
	// The volumes that it is for lvm.
	imageUUID, metaUUID string
	meta                extent
	extents             []extent
	// plugs of the disk when the volume found it; another number means that the device
	// below is gone.
	plugs int
	// rebuilding from the others.
	rebuilding bool
}

func isRaid(kind string) bool { return strings.HasPrefix(kind, "raid") }

// raidLayout is what lvm's report says of a volume of that type.
func raidLayout(kind string) string {
	switch kind {
	case "raid5":
		return "raid,raid5,raid5_ls"
	case "raid6":
		return "raid,raid6,raid6_zr"
	}
	return "raid," + kind
}

// dataLegs are the legs that hold the volume's bytes.
func dataLegs(layout string, legs []*leg) []*leg {
	switch {
	case strings.HasSuffix(layout, "raid1"):
		return legs[:1]
	case strings.HasSuffix(layout, "raid10"):
		var first []*leg
		for i := 0; i < len(legs); i += 2 {
			first = append(first, legs[i])
		}
		return first
	case strings.Contains(layout, "raid6"):
		return legs[:len(legs)-2]
	}
	return legs[:len(legs)-1]
}

func (lv *logicalVolume) extentsOfLegs() (all []extent) {
	for _, l := range lv.legs {
		all = append(append(all, l.meta), l.extents...)
	}
	return all
}

func cloneLegs(legs []*leg) (c []*leg) {
	for _, l := range legs {
		copied := *l
		copied.extents = slices.Clone(l.extents)
		c = append(c, &copied)
	}
	return c
}

func (h *Host) raidFile(lv *logicalVolume) string { return filepath.Join(h.dir, "raid-"+lv.uuid) }

func (h *Host) activateRaid(g *group, lv *logicalVolume) {
	f, err := os.OpenFile(h.raidFile(lv), os.O_CREATE|os.O_RDWR, 0o600)
	h.must(err)
	h.close(f)
	lv.node, lv.suspended = h.nodeFile(g, lv), false
	h.link(h.raidFile(lv), lv.node)
	h.resizeNode(g, lv)
	lv.follow()
}

// forgetRaid leaves the bytes on the disks, where the next owner finds them.
func (h *Host) forgetRaid(g *group, lv *logicalVolume) {
	if len(lv.legs) == 0 {
		return
	}
	in, err := os.Open(h.raidFile(lv))
	if errors.Is(err, fs.ErrNotExist) {
		return // it was never active
	}
	h.must(err)
	for i, e := range lv.extents {
		out := h.open(e.disk.file)
		h.copyExtent(out, dataStart+e.index*g.extent, in, int64(i)*g.extent, g.extent)
		h.close(out)
	}
	h.close(in)
	h.must(os.Remove(h.raidFile(lv)))
}

// follow lets an active volume find the disks as they are now.
func (lv *logicalVolume) follow() {
	for _, l := range lv.legs {
		l.plugs = l.disk.plugs
	}
}

// refresh lets legs follow their disks, and rebuilds those that have missed something.
func (h *Host) refresh(lv *logicalVolume) {
	for _, l := range lv.legs {
		l.rebuilding = l.rebuilding || h.slowRebuild && l.plugs != l.disk.plugs
	}
	lv.follow()
}

// canActivate reports whether enough of a volume is there.
func (lv *logicalVolume) canActivate(mode string) bool {
	if lv.thin != nil {
		return lv.thin.canActivate(mode)
	}
	if len(lv.parts) > 0 {
		return !slices.ContainsFunc(lv.parts, func(part *logicalVolume) bool { return !part.canActivate(mode) })
	}
	if len(lv.legs) == 0 {
		return !slices.ContainsFunc(lv.under(), func(e extent) bool { return e.disk.missing })
	}
	missing, pairs := 0, map[int]int{}
	for _, l := range lv.legs {
		if l.disk.missing {
			missing++
			pairs[l.number/2]++
		}
	}
	most := 1
	switch {
	case missing > 0 && mode != "degraded":
		return false
	case strings.HasSuffix(lv.layout, "raid10"):
		for _, n := range pairs {
			if n > 1 {
				return false
			}
		}
		return true
	case strings.Contains(lv.layout, "raid6"):
		most = 2
	}
	return missing <= most
}

func (lv *logicalVolume) health() string {
	if lv.thin != nil {
		return lv.thin.health()
	}
	for _, part := range lv.parts {
		if health := part.health(); health != "" {
			return health
		}
	}
	gone := func(e extent) bool { return e.disk.missing || e.disk.flagged }
	if slices.ContainsFunc(lv.extents, gone) || slices.ContainsFunc(lv.extentsOfLegs(), gone) {
		return "partial"
	}
	return ""
}

func (p *process) createRaid(g *group, c command, within func() error) (string, error) {
	name, layout := c.value("--name"), raidLayout(c.value("--type"))
	extents, _ := strconv.Atoi(c.value("--extents"))
	lv := &logicalVolume{name: name, uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"public"}, layout: layout, unfinished: true}
	if g.volume(name) != nil {
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, g.name), nil
	}
	for i, path := range c.args[1:] {
		d := p.h.disks[path]
		if d == nil || d.group != g || g.closed[d] {
			return fmt.Sprintf("Physical Volume %q not found in Volume Group %q.", path, g.name), nil
		}
		lv.legs = append(lv.legs, &leg{number: i, disk: d, imageUUID: p.h.newUUID(), metaUUID: p.h.newUUID(), plugs: d.plugs})
	}
	data := dataLegs(layout, lv.legs)
	if stripes := c.value("--stripes"); stripes != "" && stripes != strconv.Itoa(len(data)) {
		return fmt.Sprintf("lvmtest: %s stripes on %d devices", stripes, len(lv.legs)), nil
	}
	mirrors := ""
	switch {
	case strings.HasSuffix(layout, "raid1"):
		mirrors = strconv.Itoa(len(lv.legs) - 1)
	case strings.HasSuffix(layout, "raid10"):
		mirrors = "1"
	}
	if c.value("--mirrors") != mirrors {
		return fmt.Sprintf("lvmtest: %s mirrors of a %s", c.value("--mirrors"), layout), nil
	}
	share := extents / len(data)
	if extents%len(data) != 0 || share == 0 {
		return fmt.Sprintf("Rounding size (%d extents) up to stripe boundary size (%d stripes).", extents, len(data)), nil
	}
	for _, l := range lv.legs {
		free := g.freeOn(l.disk)
		if len(free) < share+1 {
			return fmt.Sprintf("Insufficient suitable allocatable extents for logical volume %s: %d more required", name, share+1-len(free)), nil
		}
		l.meta, l.extents = free[0], slices.Clone(free[1:share+1])
	}
	lv.extents = interleave(data, 0)
	g.volumes = append(g.volumes, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	lv.unfinished = false
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, lv)
	return "", nil
}

// interleave is the order in which a volume's bytes lie on its legs, from a row on.
func interleave(data []*leg, from int) (extents []extent) {
	for row := from; row < len(data[0].extents); row++ {
		for _, l := range data {
			extents = append(extents, l.extents[row])
		}
	}
	return extents
}

func (p *process) extendRaid(g *group, lv *logicalVolume, c command, within func() error) (string, error) {
	extents, _ := strconv.Atoi(c.value("--extents"))
	data := dataLegs(lv.layout, lv.legs)
	more := extents - len(lv.extents)
	switch {
	case more <= 0:
		return fmt.Sprintf("New size given (%d extents) not larger than existing size (%d extents)", extents, len(lv.extents)), nil
	case more%len(data) != 0:
		return fmt.Sprintf("Rounding size (%d extents) up to stripe boundary size (%d stripes).", extents, len(data)), nil
	case c.value("--alloc") != "cling":
		return "lvmtest: two legs may come to lie on one disk", nil
	}
	if lv.suspended {
		return "lvmtest: it would wait for ever for a leg that is suspended", nil
	}
	share, old := more/len(data), len(lv.legs[0].extents)
	for _, l := range lv.legs {
		if !slices.Contains(c.args[1:], l.disk.path) || len(g.freeOn(l.disk)) < share {
			return fmt.Sprintf("Insufficient suitable allocatable extents for logical volume %s: %d more required", lv.name, share), nil
		}
	}
	for _, l := range lv.legs {
		l.extents = append(l.extents, g.freeOn(l.disk)[:share]...)
	}
	lv.extents = append(lv.extents, interleave(data, old)...)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	if lv.node != "" && !g.isPart(lv) {
		p.h.resizeNode(g, lv)
	}
	return "", nil
}
