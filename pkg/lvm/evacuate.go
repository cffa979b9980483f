// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

// EvacuateOptions say which devices of a group are wanted empty.
type EvacuateOptions struct {
	// Empty are the paths of devices whose content is moved to the others. They are taken
	// out of the group when nothing is on them any more.
	Empty []string
	// Open are devices that were in Empty and are not any more: what is being moved from
	// them stays, and they are used again. Those that had left the group by then are returned,
	// behind those of Empty.
	Open []string
}

// Evacuation is how far a device has been emptied.
type Evacuation struct {
	Path string
	// RemainingBytes of volumes are still on it; what is copied of what is being moved does
	// not count.
	RemainingBytes int64
	// Moving is true while something is being copied from it.
	Moving bool
	// Waiting says in words why nothing is moved.
	Waiting string
	// Out: the device is not part of the group any more.
	Out bool
}

const (
	// moveBytes is the most that is moved at once, but for a leg. lvm locks what it moves
	// against growth and removal, and begins again with it after a loss of power.
	moveBytes = 8 << 30
	// evacuationTurn is after how long a call returns though it could go on: many small
	// volumes are copied as fast as they are asked for.
	evacuationTurn = 20 * time.Second
	// mostEvacuationSteps are taken by a call that moves nothing: devices are opened and
	// closed, a move is ended or aborted, and a device is taken out.
	mostEvacuationSteps = 4
)

// leftAlready are those of the devices that the group does not have any more.
func leftAlready(g *Group, paths []string) (out []Evacuation) {
	for _, path := range paths {
		if g.deviceAt(path) == nil {
			out = append(out, Evacuation{Path: path, Out: true})
		}
	}
	return out
}

// Evacuate brings devices nearer to being empty, and says how far they are. Nothing new is
// put on them. Volumes go on: lvm copies what lies on the device while they are written to
// (pvmove). It returns when there is something to wait for, or after a while, and is called
// again after each event of device-mapper, of which the end of a copy is one. It may be called
// again and again, also after a loss of power in any moment.
//
// volume.ErrPoolUnavailable: the group is in a state in which nothing may be changed, as when
// a device is missing. volume.ErrIdentity: lvm calls the devices by other names than
// Options.Devices does.
func (b *Backend) Evacuate(ctx context.Context, o EvacuateOptions) ([]Evacuation, error) {
	if len(b.queue.devices()) == 0 {
		return nil, fmt.Errorf("evacuate devices of %s: %w: which devices it has is not known", b.group.GroupName, volume.ErrPoolUnavailable)
	}
	b.queue.segmented.Store(true)
	states := make([]Evacuation, len(o.Empty))
	for i, path := range o.Empty {
		states[i].Path = path
	}
	began, least := time.Now(), int64(math.MaxInt64)
	for step, tried := (*operation)(nil), 0; ; tried++ {
		g, err := b.ready(ctx)
		if err != nil {
			return nil, err
		}
		if !g.withSegments {
			return nil, fmt.Errorf("evacuate devices of %s: %w: what lies on them was not seen", g.Name, volume.ErrBusy)
		}
		step, err = b.nextEvacuation(ctx, g, o, states)
		if err != nil {
			return nil, fmt.Errorf("evacuate devices of %s: %w", g.Name, err)
		}
		if step == nil {
			b.queue.segmented.Store(slices.ContainsFunc(states, func(s Evacuation) bool { return !s.Out }))
			return slices.Concat(states, leftAlready(g, o.Open)), nil
		}
		if rest := remaining(states); rest < least {
			least, tried = rest, 0
		}
		if tried > mostEvacuationSteps*(len(o.Empty)+len(o.Open)+1) {
			return nil, fmt.Errorf("%s %s: %w: it does not come to rest", step.verb, g.Name, volume.ErrBusy)
		}
		from := slices.IndexFunc(states, func(s Evacuation) bool { pv := g.device(step.pv); return pv != nil && s.Path == pv.Path })
		_, err = b.queue.do(ctx, step)
		switch {
		case err == nil && step.verb == verbAbortMove && from >= 0:
			states[from].Waiting = "a disk failed while extents were copied from it or to it; see the node's kernel log"
			return states, nil
		case err == nil && step.verb == verbMove && from >= 0 && time.Since(began) > evacuationTurn:
			states[from].Moving = true
			return states, nil
		case err == nil:
		case step.verb == verbMove && from >= 0 && !errors.Is(err, volume.ErrPoolUnavailable):
			// lvm has the last word on what can be moved where.
			states[from].Waiting = err.Error()
			if errors.Is(err, volume.ErrNoSpace) {
				states[from].Waiting = fmt.Sprintf("%s: %v", noPlace(g.at(step.pv, step.runs)), err)
			}
			return states, nil
		default:
			return nil, err
		}
	}
}

func remaining(states []Evacuation) (sumBytes int64) {
	for _, s := range states {
		sumBytes += s.RemainingBytes
	}
	return sumBytes
}

// nextEvacuation fills in how the devices are, and returns what must be done first, or nil.
func (b *Backend) nextEvacuation(ctx context.Context, g *Group, o EvacuateOptions, states []Evacuation) (*operation, error) {
	devices := b.queue.devices()
	for _, pv := range g.PVs {
		if !slices.Contains(devices, pv.Path) {
			// Then a path that is none of the group's may be another name of one that is.
			return nil, fmt.Errorf("%w: lvm calls a device %s, which is none of %q", volume.ErrIdentity, pv.Path, devices)
		}
	}
	for i := range states {
		pv := g.deviceAt(states[i].Path)
		if pv == nil {
			// No device of the group is missing, so this one was taken out.
			states[i] = Evacuation{Path: states[i].Path, Out: true}
			continue
		}
		states[i] = Evacuation{Path: pv.Path, RemainingBytes: g.bytes(pv.Extents - pv.FreeExtents)}
	}
	if m := g.move(); m != nil {
		op, err := b.goOnWith(ctx, g, m, o, states)
		if op != nil || err != nil {
			return op, err
		}
	}
	for _, path := range o.Open {
		if pv := g.deviceAt(path); pv != nil && pv.Closed {
			return &operation{verb: verbOpen, pv: pv.UUID}, nil
		}
	}
	for _, path := range o.Empty {
		if pv := g.deviceAt(path); pv != nil && !pv.Closed {
			return &operation{verb: verbClose, pv: pv.UUID}, nil
		}
	}
	for i := range states {
		pv := g.deviceAt(states[i].Path)
		if pv == nil || pv.FreeExtents != pv.Extents {
			continue
		}
		if least := b.queue.layout.MinDevices(); len(g.PVs) <= least {
			states[i].Waiting = fmt.Sprintf("it is empty, and stays in the pool, whose volumes need %d disks", least)
			continue
		}
		return &operation{verb: verbTakeOut, pv: pv.UUID}, nil
	}
	if g.move() != nil {
		return nil, nil
	}
	for i := range states {
		if pv := g.deviceAt(states[i].Path); pv != nil && pv.FreeExtents < pv.Extents {
			if op := g.nextMove(pv, &states[i]); op != nil {
				return op, nil
			}
		}
	}
	return nil, nil
}

// goOnWith looks at what is being moved.
func (b *Backend) goOnWith(ctx context.Context, g *Group, m *move, o EvacuateOptions, states []Evacuation) (*operation, error) {
	wanted := slices.IndexFunc(states, func(s Evacuation) bool { return s.Path == m.from })
	switch {
	case wanted < 0 && slices.Contains(o.Open, m.from):
		return &operation{verb: verbAbortMove}, nil
	case wanted < 0:
		for i := range states {
			states[i].Waiting = fmt.Sprintf("a pvmove that is not Berth's moves extents of %s", m.from)
		}
		return nil, nil
	}
	status, active, err := b.nodes.Moving(ctx, g.Name, g.UUID, m.name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look at %s/%s: %w", g.Name, m.name, err)
	case !active:
		return &operation{verb: verbMove, pv: m.fromUUID}, nil
	case status.DeadLegs > 0:
		return &operation{verb: verbAbortMove, pv: m.fromUUID}, nil
	case status.Synced():
		return &operation{verb: verbEndMove}, nil
	}
	states[wanted].Moving = true
	if status.Regions > 0 {
		states[wanted].RemainingBytes -= int64(float64(g.bytes(m.extents)) * float64(status.SyncedRegions) / float64(status.Regions))
	}
	return nil, nil
}

// nextMove is what is moved next from a device, or nil: then state says why.
func (g *Group) nextMove(pv *PhysicalVolume, state *Evacuation) *operation {
	for _, s := range g.on(pv.UUID) {
		runs, to := g.moveOf(pv, s)
		if len(runs) == 0 {
			state.Waiting = noPlace(s)
			continue
		}
		state.Waiting = ""
		return &operation{verb: verbMove, pv: pv.UUID, runs: runs, volume: s.whole(), devices: to}
	}
	return nil
}

func noPlace(s segment) string {
	if s.isLeg() || slices.Contains(s.layout, "striped") {
		return fmt.Sprintf("no other disk of the pool has room for %s, and nothing else of its volume on it", s.name)
	}
	return "no other disk of the pool has room for " + s.name
}

// moveOf returns what is moved with the beginning of a segment, and to where; nothing when
// there is no room. lvm moves a leg, of which the metadata are a part, to a device only on
// which nothing of its volume lies, so that all of it is moved together.
func (g *Group) moveOf(from *PhysicalVolume, s segment) (runs []run, to []string) {
	var open []PhysicalVolume
	for _, pv := range g.PVs {
		if pv.UUID != from.UUID && pv.Path != "" && !pv.Closed && pv.FreeExtents > 0 {
			open = append(open, pv)
		}
	}
	slices.SortFunc(open, func(a, b PhysicalVolume) int {
		return cmp.Or(cmp.Compare(b.FreeExtents, a.FreeExtents), cmp.Compare(a.Path, b.Path))
	})
	if s.isLeg() {
		var needed int64
		for _, other := range g.on(from.UUID) {
			if other.parent == s.parent && legNumber(other.name) == legNumber(s.name) {
				runs = append(runs, run{other.start, other.extents})
				needed += other.extents
			}
		}
		for _, pv := range open {
			if pv.FreeExtents >= needed && !slices.ContainsFunc(g.on(pv.UUID), func(o segment) bool { return o.parent == s.parent }) {
				return runs, []string{pv.Path}
			}
		}
		return nil, nil
	}
	var room int64
	for _, pv := range open {
		to = append(to, pv.Path)
		room += pv.FreeExtents
	}
	extents := min(s.extents, room, max(1, moveBytes/g.ExtentBytes))
	if extents == 0 {
		return nil, nil
	}
	return []run{{s.start, extents}}, to
}

// at returns what lies where extents are moved from.
func (g *Group) at(pvUUID string, runs []run) segment {
	for _, s := range g.on(pvUUID) {
		if len(runs) > 0 && s.start == runs[0].start {
			return s
		}
	}
	return segment{name: "what is on it"}
}

// isLeg reports whether a segment is of a part of a redundant volume.
func (s segment) isLeg() bool { return s.parent != "" && slices.Contains(s.role, "raid") }

// whole is the name of what a segment is moved with: of a leg the volume that it is a leg of.
func (s segment) whole() string {
	if s.isLeg() {
		return s.parent
	}
	return s.name
}

// deviceAt returns the device with that path, or nil.
func (g *Group) deviceAt(path string) *PhysicalVolume {
	i := slices.IndexFunc(g.PVs, func(pv PhysicalVolume) bool { return pv.Path == path && path != "" })
	if i < 0 {
		return nil
	}
	return &g.PVs[i]
}
