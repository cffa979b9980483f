// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/pkg/volume"
)

// SnapshotPolicy is how much room thick snapshots get for what they keep: the former
// content of what is written to the volume. Percentages are whole.
type SnapshotPolicy struct {
	// InitialPercent of the volume is what a snapshot gets at first.
	InitialPercent int64
	// ThresholdPercent of it in use is when it gets ExtendPercent of the volume more.
	ThresholdPercent int64
	ExtendPercent    int64
}

// DefaultSnapshotPolicy is used where no other is given.
func DefaultSnapshotPolicy() SnapshotPolicy {
	return SnapshotPolicy{InitialPercent: 20, ThresholdPercent: 70, ExtendPercent: 20}
}

// Check returns volume.ErrInvalid for a policy that cannot be followed.
func (p SnapshotPolicy) Check() error {
	for _, field := range []struct {
		name        string
		value, most int64
	}{
		{"initial size", p.InitialPercent, 100},
		{"threshold of growth", p.ThresholdPercent, 95},
		{"growth", p.ExtendPercent, 100},
	} {
		if field.value < 1 || field.value > field.most {
			return fmt.Errorf("%w: %s of %d %%: 1 to %d are allowed", volume.ErrInvalid, field.name, field.value, field.most)
		}
	}
	return nil
}

const (
	// snapshotChunkBytes is what a snapshot keeps at once of what is overwritten, lvm's
	// default.
	snapshotChunkBytes = 4 << 10
	// exceptionBytes is what a snapshot needs to know of one chunk
	// (struct disk_exception in drivers/md/dm-snap-persistent.c).
	exceptionBytes = 16
	// quarantineBytes is the size from which on a volume is renamed before it is zeroed. What
	// is smaller is zeroed in less time than another process of lvm takes.
	quarantineBytes = 1 << 30
)

var (
	plainRole         = []string{"public"}
	thickSnapshotRole = []string{"public", "snapshot", "thicksnapshot"}
)

// Thick reports whether each volume of the group has its room for itself.
func (b *Backend) Thick() bool { return b.queue.thin == nil }

// isThickSnapshot reports whether it is a copy-on-write snapshot.
func (lv *LogicalVolume) isThickSnapshot() bool { return slices.Contains(lv.Role, "thicksnapshot") }

// isThickOrigin reports whether there are copy-on-write snapshots of it.
func (lv *LogicalVolume) isThickOrigin() bool { return slices.Contains(lv.Role, "thickorigin") }

// stands reports whether a snapshot is one: lvm makes a thick one as a plain volume first,
// and makes it plain again before it removes it.
func (lv *LogicalVolume) stands() bool { return lv.PoolUUID != "" || lv.isThickSnapshot() }

// takesBytes is what a volume takes of its group, without what its layout adds.
func (lv *LogicalVolume) takesBytes() int64 {
	if lv.isThickSnapshot() {
		return lv.AreaBytes
	}
	return lv.SizeBytes
}

// sizeSnapshots gives thick snapshots the size of what they show. lvm reports that of what
// they keep.
func (g *Group) sizeSnapshots() {
	for i := range g.LVs {
		lv := &g.LVs[i]
		if !lv.isThickSnapshot() {
			continue
		}
		lv.AreaBytes = lv.SizeBytes
		if origin := g.volumeByUUID(lv.OriginUUID); origin != nil {
			lv.SizeBytes = origin.SizeBytes
		}
	}
}

// snapshotsOf returns the thick snapshots of a volume.
func (g *Group) snapshotsOf(origin *LogicalVolume) (snapshots []*LogicalVolume) {
	for i := range g.LVs {
		if lv := &g.LVs[i]; lv.isThickSnapshot() && lv.OriginUUID == origin.UUID {
			snapshots = append(snapshots, lv)
		}
	}
	return snapshots
}

// namesOf are snapshots as people know them.
func namesOf(snapshots []*LogicalVolume) string {
	var names []string
	for _, lv := range snapshots {
		switch name := lv.tagged(TagSnapshot); {
		case ownedCopy(lv):
			names = append(names, "a clone that is being made")
		case name != "":
			names = append(names, name)
		default:
			names = append(names, lv.Name)
		}
	}
	return strings.Join(names, ", ")
}

// canHaveThick returns volume.ErrInvalid unless copy-on-write snapshots are made of such a
// volume.
func canHaveThick(lv *LogicalVolume) error {
	if layout := layoutOf(lv); layout != LayoutLinear && layout != LayoutStriped || lv.isThickSnapshot() {
		return fmt.Errorf("%w: only volumes of thin pools, and of the layouts linear and striped, can be copied, and %s is %v",
			volume.ErrInvalid, lv.title(), lv.Layout)
	}
	return nil
}

// mostArea is how many extents a snapshot of so many bytes can use: all of them, a chunk in
// front, and the table of what is where (_cow_max_size in lib/metadata/snapshot_manip.c). With
// these it cannot overflow.
func (g *Group) mostArea(sizeBytes int64) int64 {
	const perTable = snapshotChunkBytes / exceptionBytes
	chunks := (sizeBytes-1)/snapshotChunkBytes + 1
	return g.extentsFor((1 + chunks + (chunks-1)/perTable + 1) * snapshotChunkBytes)
}

// firstArea is how many extents a snapshot of so many bytes gets at first.
func (g *Group) firstArea(sizeBytes int64, p SnapshotPolicy) int64 {
	return min(g.mostArea(sizeBytes), max(1, scale(g.extentsFor(sizeBytes), p.InitialPercent)))
}

// nextArea is how many extents a snapshot should have of whose area so much is in use.
func (g *Group) nextArea(lv *LogicalVolume, used, total uint64, p SnapshotPolicy) int64 {
	have, most := g.extentsFor(lv.AreaBytes), g.mostArea(lv.SizeBytes)
	area := have
	if total == 0 {
		return area
	}
	// Of the largest volume that lvm makes (8 EiB) this is not exact, and does not overflow.
	usedExtents := float64(have) * float64(used) / float64(total)
	for area < most && usedExtents*100 >= float64(p.ThresholdPercent*area) {
		area = min(most, area+max(1, scale(g.extentsFor(lv.SizeBytes), p.ExtendPercent)))
	}
	return area
}

// takeArea hands out room for what a snapshot keeps, which lies on any devices one after
// another, whatever the layout of volumes. It reports false, and changes nothing, when there
// is not enough. What is in reserve is used only where that is asked for.
func (r *room) takeArea(extents int64, fromReserve bool) (devices []string, ok bool) {
	reserved := int64(0)
	if fromReserve {
		reserved = min(r.reserved, max(0, extents-r.extents))
	}
	if extents <= 0 || extents > r.extents+reserved {
		return nil, false
	}
	if !shapes[r.layout].spreads() {
		r.reserved -= reserved
		r.extents -= extents - reserved
		return nil, true
	}
	left := extents
	for i := range r.devices {
		if left <= 0 {
			break
		}
		devices = append(devices, r.devices[i].path)
		left -= r.devices[i].free
	}
	if left > 0 {
		return nil, false
	}
	for i := range devices {
		// Which of them lvm takes how much of is its own choice.
		if len(devices) > 1 {
			r.devices[i].free = 0
		} else {
			r.devices[i].free -= extents
		}
	}
	r.reserved -= reserved
	r.used(extents - reserved)
	return devices, true
}

// changesOfName is how often a volume that is renamed and tagged, or split from its origin,
// changes the metadata at most.
const changesOfName = 4

// isAboutThickSnapshot reports whether an operation makes, changes or removes one.
func (p *plan) isAboutThickSnapshot(op *operation) bool {
	return op.verb == verbSnapshot || op.verb == verbSplit || op.verb == verbArea || p.isThickSnapshot(op)
}

func (p *plan) isThickSnapshot(op *operation) bool {
	lv := p.group.volumeByUUID(op.uuid)
	return op.uuid != "" && lv != nil && (lv.isThickSnapshot() || lv.isThickOrigin())
}

// snapshotThick makes a copy-on-write snapshot of a volume. lvm suspends what it copies,
// which freezes a filesystem that is mounted from it. The room for what it keeps is admitted
// by the function that admits volumes (I8).
func (p *plan) snapshotThick(op *operation, source *LogicalVolume) {
	extents := p.group.firstArea(source.SizeBytes, p.terms.snapshots)
	devices, fits := p.room.takeArea(extents, false)
	if !fits {
		if len(p.removed) > 0 {
			p.later = append(p.later, op)
			return
		}
		p.refused[op] = p.noArea(op, extents)
		return
	}
	op.made = true
	command := []string{
		"lvcreate", "--yes", "--type", "snapshot", "--permission", "r", "--chunksize", byteCount(snapshotChunkBytes),
		"--extents", strconv.FormatInt(extents, 10), "--addtag", op.tag,
	}
	if op.wipe != "" {
		command = append(command, "--addtag", TagWipe+string(op.wipe))
	}
	p.act(op, append(append(command, "--name", op.name, p.group.Name+"/"+source.Name), devices...))
}

func (p *plan) noArea(op *operation, extents int64) error {
	return fmt.Errorf("%s %s/%s: %w: it needs %d bytes for what is overwritten in its volume, and the group has %d for that",
		op.verb, p.group.Name, op.name, volume.ErrNoSpace, p.group.bytes(extents), p.group.bytes(p.room.extents))
}

// extendArea lets a snapshot keep more.
func (p *plan) extendArea(op *operation, lv *LogicalVolume) {
	have, want := p.group.extentsFor(lv.AreaBytes), p.group.extentsFor(op.sizeBytes)
	devices, fits := p.room.takeArea(want-have, true)
	if !fits {
		if len(p.removed) > 0 {
			p.later = append(p.later, op)
			return
		}
		p.refused[op] = p.noArea(op, want-have)
		return
	}
	p.act(op, append([]string{"lvextend", "--yes", "--extents", strconv.FormatInt(want, 10), p.group.Name + "/" + lv.Name}, devices...))
}

// quarantine takes a volume out of what is handed out, and then out of its name. By each of
// them alone it is not a volume any more.
func (p *plan) quarantine(op *operation, lv *LogicalVolume) {
	p.acting = append(p.acting, op)
	change := untag(lv, TagVolume)
	if !hasTag(lv, TagDeleted) {
		change = append(change, "--addtag", op.tag)
	}
	if len(change) > 0 {
		p.commands = append(p.commands, changeCommand(p.group.UUID, op.uuid, change...))
	}
	if lv.Name != op.newName {
		p.commands = append(p.commands, []string{"lvrename", "--yes", p.group.Name, lv.Name, op.newName})
	}
}

// split makes a snapshot a plain volume of what it has kept, active, that can be written to.
// Its former device would stay below it, were it not deactivated first.
func (p *plan) split(op *operation, lv *LogicalVolume) {
	if lv.isThickSnapshot() {
		p.commands = append(p.commands, []string{"lvconvert", "--yes", "--splitsnapshot", p.group.Name + "/" + lv.Name})
	}
	p.commands = append(p.commands,
		p.whenPlain(op, "--activate", "n"),
		p.whenPlain(op, "--permission", "rw"))
	p.act(op, p.whenPlain(op, "--activate", "y"))
}

// whenPlain is a change of a volume that lvm makes only if it is no snapshot any more.
func (p *plan) whenPlain(op *operation, change ...string) []string {
	command := append([]string{"lvchange", "--yes"}, change...)
	return append(command, "--select", selectVolumes(p.group.UUID, "lv_role=["+strings.Join(plainRole, ",")+"]&&", []string{op.uuid}))
}
