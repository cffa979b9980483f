// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"math"

	"github.com/berth-dev/berth/pkg/volume"
)

// capacity is what a group offers. The published capacity and the admission of a volume
// both come from here (I8).
func (g *Group) capacity(t terms) volume.Capacity {
	room := g.room(t)
	c := volume.Capacity{
		TotalBytes:     g.bytes(max(0, g.Extents-g.extentsFor(t.reserveBytes))),
		AllocatedBytes: g.bytes(g.Extents - g.FreeExtents),
		FreeBytes:      g.bytes(room.free()),
		MaxVolumeBytes: g.bytes(room.largest()),
	}
	for i := range g.LVs {
		if ownedVolume(&g.LVs[i]) {
			c.Volumes++
		}
	}
	if t.layout.Redundant() && t.thin == nil {
		// What volumes have and can get: not what their legs take.
		var sizes int64
		for i := range g.LVs {
			sizes += g.extentsFor(g.LVs[i].takesBytes())
		}
		c.AllocatedBytes = g.bytes(sizes)
		c.TotalBytes = c.AllocatedBytes + c.FreeBytes
	}
	if t.thin != nil {
		total, _ := g.thinRoom(*t.thin)
		pool, _ := g.thinPool() // one that is not ours has no room
		promised := g.promised(pool)
		c.TotalBytes, c.AllocatedBytes = g.bytes(max(total, promised)), g.bytes(promised)
	}
	return c
}

// extentsFor rounds up. It saturates: a size beyond all storage is too large, not
// small.
func (g *Group) extentsFor(sizeBytes int64) int64 {
	if sizeBytes <= 0 {
		return 0
	}
	return (sizeBytes-1)/g.ExtentBytes + 1
}

// bytes saturates like extentsFor.
func (g *Group) bytes(extents int64) int64 {
	if extents > math.MaxInt64/g.ExtentBytes {
		return math.MaxInt64
	}
	return extents * g.ExtentBytes
}

// usable returns volume.ErrPoolUnavailable, with the reason, when nothing may be
// changed in the group. We never repair: that is an operator's decision.
func (g *Group) usable() error {
	if state := g.State(); state != StateReady {
		return fmt.Errorf("volume group %s (%s): %w: %s", g.Name, g.UUID, volume.ErrPoolUnavailable, state.reason(g))
	}
	return nil
}

// State is the condition of a volume group.
type State string

// The states of a volume group.
const (
	// StateReady: complete and ours to change.
	StateReady State = "Ready"
	// StatePartial: at least one of its devices is missing.
	StatePartial State = "Partial"
	// StateDuplicate: one of its physical volumes is on two devices, as after a
	// disk was cloned.
	StateDuplicate State = "Duplicate"
	// StateExported: vgexport was run on it.
	StateExported State = "Exported"
	// StateForeign: its system ID is another host's.
	StateForeign State = "Foreign"
)

// State returns the worst of the conditions the group is in. An empty group of
// another host is not told apart from one of ours by its report; lvm itself
// refuses to change it.
func (g *Group) State() State {
	switch {
	case g.Exported:
		return StateExported
	case g.hidden:
		return StateForeign
	case g.duplicates:
		return StateDuplicate
	case g.MissingPVs > 0:
		return StatePartial
	}
	return StateReady
}

func (s State) reason(g *Group) string {
	switch s {
	case StatePartial:
		return fmt.Sprintf("%d of its %d devices are missing; attach them again", g.MissingPVs, g.pvCount)
	case StateDuplicate:
		return "a physical volume of it is on two devices, as after a disk was cloned; detach one of them"
	case StateExported:
		return "it is exported; run vgimport when it shall be used on this host"
	case StateForeign:
		return fmt.Sprintf("it belongs to the host with system ID %q", g.SystemID)
	case StateReady:
	}
	return "it is ready"
}
