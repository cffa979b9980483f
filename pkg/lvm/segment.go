// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// segment is a run of extents of one device that one logical volume lies on.
type segment struct {
	// path of the device, "" when it is missing; pvUUID is its identity.
	path, pvUUID string
	// start and extents on the device.
	start, extents int64
	// name of what lies there, without the brackets of what is hidden, and what that is a
	// part of.
	name, parent string
	role         []string
	layout       []string

	groupUUID  string
	groupSeqno uint64
}

// run is a number of extents of one device that follow each other.
type run struct{ start, extents int64 }

// segmentFields are asked for in a report of their own where it matters on which device
// which volume lies.
const segmentFields = "vg_uuid,vg_seqno,pv_uuid,pv_name,pvseg_start,pvseg_size,lv_name,lv_parent,lv_role,lv_layout"

// moveName is what lvm calls what it moves (tools/pvmove.c): a mirror, of which the image 0
// lies where it came from and the image 1 where it goes.
var moveName = regexp.MustCompile(`^pvmove\d+$`)

func (r *row) segment() segment {
	s := segment{
		path: r.text("PV_NAME"), pvUUID: r.uuid("PV_UUID"),
		start: r.number("PVSEG_START"), extents: r.number("PVSEG_SIZE"),
		role: r.list("LV_ROLE"), layout: r.list("LV_LAYOUT"),
		groupUUID: r.uuid("VG_UUID"), groupSeqno: uint64(r.numberOrNone("VG_SEQNO")),
	}
	s.name, _ = hiddenName(r.text("LV_NAME"))
	s.parent, _ = hiddenName(r.text("LV_PARENT"))
	return s
}

// attachSegments gives the segments to their groups, and proves that none is missing.
func (r *Report) attachSegments(segments []segment) error {
	if len(segments) == 0 {
		return nil
	}
	for _, s := range segments {
		g := r.Group(s.groupUUID)
		switch {
		case s.groupUUID == "":
			continue // of a device that is in no group
		case g == nil:
			return fmt.Errorf("extents of %s belong to a volume group that is not shown", s.path)
		case g.Seqno != s.groupSeqno:
			return fmt.Errorf("volume group %s changed from %d to %d while it was read", g.Name, s.groupSeqno, g.Seqno)
		}
		g.segments = append(g.segments, s)
	}
	for _, g := range r.Groups {
		for _, pv := range g.PVs {
			var all, used int64
			for _, s := range g.segments {
				if s.pvUUID == pv.UUID {
					all += s.extents
					if s.name != "" {
						used += s.extents
					}
				}
			}
			if all != pv.Extents || used != pv.Extents-pv.FreeExtents {
				return fmt.Errorf("%s of volume group %s has %d extents and %d in use, shown are %d and %d",
					pv.Path, g.Name, pv.Extents, pv.Extents-pv.FreeExtents, all, used)
			}
		}
		g.withSegments = true
	}
	return nil
}

// move is what lvm is moving from one device of a group to others.
type move struct {
	// name of lvm's volume for it.
	name string
	// fromUUID and from are the device that is being emptied.
	fromUUID, from string
	extents        int64
}

// move returns what is under way, or nil. A group without segments does not tell.
func (g *Group) move() *move {
	var found *move
	for _, s := range g.segments {
		name, isSource := strings.CutSuffix(s.name, "_mimage_0")
		if !isSource || !moveName.MatchString(name) {
			continue
		}
		if found == nil {
			found = &move{name: name, fromUUID: s.pvUUID, from: s.path}
		}
		found.extents += s.extents
	}
	return found
}

// on returns what lies on a device, in the order of its extents.
func (g *Group) on(pvUUID string) (segments []segment) {
	for _, s := range g.segments {
		if s.pvUUID == pvUUID && s.name != "" {
			segments = append(segments, s)
		}
	}
	slices.SortFunc(segments, func(a, b segment) int { return cmp.Compare(a.start, b.start) })
	return segments
}
