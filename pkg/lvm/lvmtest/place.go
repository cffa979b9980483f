// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"fmt"
	"strconv"
)

// place finds extents for lvcreate and lvextend: on the disks that the command names, or
// on any, and in stripes on as many of them as it says. Else it returns lvm's complaint.
func (g *group) place(c command, extents int) (found []extent, refused string) {
	var disks []*disk
	for _, d := range g.disks {
		named := len(c.args) == 1
		for _, path := range c.args[1:] {
			named = named || path == d.path
		}
		if named && !g.closed[d] {
			disks = append(disks, d)
		}
	}
	if len(c.args) > 1 && len(disks) != len(c.args)-1 {
		return nil, fmt.Sprintf("Physical Volume %q not found in Volume Group %q.", c.args[1:], g.name)
	}
	if !c.has("--stripes") {
		for _, d := range disks {
			found = append(found, g.freeOn(d)...)
		}
		if len(found) < extents {
			return nil, fmt.Sprintf("Volume group %q has insufficient free space (%d extents): %d required.", g.name, len(found), extents)
		}
		return found[:extents], ""
	}
	stripes, _ := strconv.Atoi(c.value("--stripes"))
	if stripes < 2 || extents%stripes != 0 {
		// lvm rounds up; who asks for that has not counted what he takes.
		return nil, fmt.Sprintf("Rounding size (%d extents) up to stripe boundary size (%d stripes).", extents, stripes)
	}
	var free [][]extent
	for _, d := range disks {
		if on := g.freeOn(d); len(on) >= extents/stripes {
			free = append(free, on)
		}
	}
	if len(free) < stripes {
		return nil, fmt.Sprintf("Insufficient suitable allocatable extents for logical volume : %d more required", extents)
	}
	for i := range extents {
		found = append(found, free[i%stripes][i/stripes])
	}
	return found, ""
}
