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

// plan turns operations into the commands of one process.
type plan struct {
	group    *Group
	terms    terms
	room     *room
	commands [][]string
	// acting have a command in this process.
	acting []*operation
	// watching need none: they are answered with the group as it is afterwards.
	watching []*operation
	// later must wait for the next process.
	later []*operation
	// refused with the reason.
	refused map[*operation]error

	removed []string
	names   map[string]bool
}

// makePlan decides what to do for each operation by what the group looks like
// now. Two operations on one volume never share a process: the second is decided
// by what the first has done.
func makePlan(g *Group, t terms, batch []*operation) *plan {
	p := &plan{
		group: g, terms: t, room: g.room(t),
		refused: map[*operation]error{}, names: map[string]bool{},
	}
	for _, op := range batch {
		if op.name != "" && p.names[op.name] {
			p.later = append(p.later, op)
			continue
		}
		p.add(op)
		p.names[op.name] = true
	}
	if len(p.removed) > 0 {
		p.commands = append(p.commands, removeCommands(g.UUID, p.removed)...)
	}
	p.backUpOnce()
	return p
}

// backUpOnce lets only the last command that changes the metadata write it to
// /etc/lvm/backup and /etc/lvm/archive. Each copy is written and synced anew; one
// for a process tells an operator as much, and a batch of 60 does not leave 60.
func (p *plan) backUpOnce() {
	seen := false
	for i, command := range slices.Backward(p.commands) {
		if command[0] == "lvchange" && !changesMetadata(command) {
			continue
		}
		if seen && command[0] != "lvconvert" { // which does not know the option
			p.commands[i] = slices.Insert(command, 1, "--autobackup", "n")
		}
		seen = true
	}
}

// changesMetadata reports whether an lvchange does: activation does not.
func changesMetadata(lvchange []string) bool {
	return slices.ContainsFunc(lvchange, func(word string) bool {
		return word == "--errorwhenfull" || word == "--addtag" || word == "--deltag" || word == "--permission"
	})
}

func (p *plan) add(op *operation) {
	lv := p.group.Volume(op.name)
	if op.verb == verbObserve || op.met(p.group) {
		p.watching = append(p.watching, op)
		return
	}
	if err := op.allowed(p.group); err != nil {
		p.refused[op] = err
		return
	}
	if err := op.check(p.group, lv); err != nil {
		p.refused[op] = err
		return
	}
	if err := p.refuses(op); err != nil {
		p.refused[op] = err
		return
	}
	switch op.verb {
	case verbObserve, verbInstant, verbMove:
	case verbClose, verbOpen:
		p.act(op, []string{"pvchange", "--yes", "--allocatable", yesOrNo(op.verb == verbOpen), p.group.device(op.pv).Path})
	case verbEndMove:
		p.act(op, []string{pvmove, "--yes"})
	case verbAbortMove:
		p.act(op, []string{pvmove, "--yes", "--abort"})
	case verbTakeOut:
		p.act(op, []string{"vgreduce", "--yes", p.group.Name, p.group.device(op.pv).Path})
	case verbRemove:
		p.removed = append(p.removed, op.uuid)
		p.acting = append(p.acting, op)
	case verbActivate:
		p.act(op, changeCommand(p.group.UUID, op.uuid, p.activating("--activate", "y")...))
	case verbRefresh:
		p.act(op, changeCommand(p.group.UUID, op.uuid, p.activating("--refresh")...))
	case verbCreate, verbGrow, verbFill:
		p.allocate(op, lv)
	case verbArea:
		p.extendArea(op, lv)
	case verbHandOut:
		p.act(op, changeCommand(p.group.UUID, op.uuid, append(untag(lv, TagFilling), "--addtag", op.tag)...))
	case verbQuarantine:
		p.quarantine(op, lv)
	case verbTakeOver:
		p.takeOver(op, lv)
	case verbSplit:
		p.split(op, lv)
	case verbClone, verbSnapshot:
		p.copy(op)
	case verbTend:
		p.tend(op, lv)
	case verbPoolParts:
		p.makeParts(op)
	case verbJoin:
		p.act(op, p.group.joinCommand())
	case verbRepair:
		p.act(op, append([]string{"lvconvert", "--yes", "--repair", p.group.Name + "/" + lv.Name}, op.devices...))
	case verbTakeBack:
		p.act(op, append([]string{"vgextend", "--yes", "--restoremissing", p.group.Name}, op.devices...))
	case verbDropMissing:
		// Never --force: lvm leaves what a volume needs.
		p.act(op, []string{"vgreduce", "--yes", "--removemissing", p.group.Name})
	case verbDiscard:
		p.act(op, []string{"lvremove", "--yes", "--select", selectVolumes(p.group.UUID, "lv_layout=[linear]&&lv_health_status=partial&&", []string{op.uuid})})
	case verbDropSpare:
		p.act(op, []string{"lvremove", "--yes", p.group.Name + "/" + op.name})
	case verbMark:
		p.act(op, changeCommand(p.group.UUID, op.uuid, retag(lv, TagInstant, op.tag)...))
	case verbWhenFull:
		p.act(op, changeCommand(p.group.UUID, op.uuid, "--errorwhenfull", yesOrNo(op.failWhenFull)))
	}
}

// copy makes a thin volume of another one. lvm suspends what it copies, which freezes a
// filesystem that is mounted from it.
func (p *plan) copy(op *operation) {
	source := p.group.volumeByUUID(op.source)
	if source.PoolUUID == "" {
		p.snapshotThick(op, source)
		return
	}
	needs := p.group.extentsFor(max(op.sizeBytes, source.SizeBytes))
	if _, fits := p.room.take(needs); !fits {
		if len(p.removed) > 0 {
			p.later = append(p.later, op)
			return
		}
		p.refused[op] = fmt.Errorf("%s %s/%s: %w: the thin pool can promise %d bytes more, and the copy may come to need %d",
			op.verb, p.group.Name, op.name, volume.ErrNoSpace, p.group.bytes(p.room.largest()), p.group.bytes(needs))
		return
	}
	op.made = true
	command := []string{"lvcreate", "--yes", "--snapshot", "--addtag", op.tag, "--name", op.name}
	if op.verb == verbSnapshot {
		// Nobody needs its device, and nobody gets one by accident.
		command = append(command, "--permission", "r", "--activate", "n", "--setactivationskip", "y")
	} else {
		command = append(command, "--permission", "rw", "--activate", "y", "--setactivationskip", "n")
	}
	p.act(op, append(command, p.group.Name+"/"+source.Name))
}

// tend sizes the thin pool.
func (p *plan) tend(op *operation, pool *LogicalVolume) {
	g, data := p.group, p.group.extentsFor(op.sizeBytes)
	if pool == nil {
		if where, fits := p.placePool(op); fits {
			p.act(op, g.newPoolCommand(where, op.metadataBytes))
		}
		return
	}
	p.acting = append(p.acting, op)
	if op.metadataBytes > pool.MetadataBytes {
		p.commands = append(p.commands, g.growMetadataCommand(op.metadataBytes))
	}
	have := g.extentsFor(pool.SizeBytes)
	if data <= have {
		return
	}
	where, fits := g.placeGrowth(data-have, *p.terms.thin)
	if !fits { // the metadata have got what was left; the caller looks again
		return
	}
	command := append([]string{"lvextend", "--yes", "--extents", strconv.FormatInt(have+where.extents, 10)}, where.flags()...)
	p.commands = append(p.commands, append(append(command, g.Name+"/"+thinPoolName), where.devices...))
}

// makeParts makes what a redundant thin pool is made of.
func (p *plan) makeParts(op *operation) {
	where, fits := p.placePool(op)
	if !fits {
		return
	}
	data, meta := p.group.partCommands(where, op.metadataBytes)
	p.commands = append(p.commands, data)
	p.act(op, meta)
}

// placePool finds a place for the data of a new pool, or refuses.
func (p *plan) placePool(op *operation) (placement, bool) {
	where, fits := p.group.placePool(p.group.extentsFor(op.sizeBytes), *p.terms.thin)
	if !fits {
		p.refused[op] = fmt.Errorf("%s %s/%s: %w: %d bytes of layout %s", op.verb, p.group.Name, op.name, volume.ErrNoSpace, op.sizeBytes, p.terms.layout)
	}
	return where, fits
}

// allocate admits by the same function that publishes the capacity (I8).
func (p *plan) allocate(op *operation, lv *LogicalVolume) {
	var have int64
	if lv != nil {
		have = p.group.extentsFor(lv.SizeBytes)
	}
	more := p.group.extentsFor(op.sizeBytes) - have
	where, fits := p.place(lv, more)
	if !fits {
		if len(p.removed) > 0 {
			p.later = append(p.later, op)
			return
		}
		p.refused[op] = p.noRoom(op, lv, more)
		return
	}
	extents := strconv.FormatInt(have+where.extents, 10)
	if lv != nil {
		command := append([]string{"lvextend", "--yes", "--extents", extents}, where.flags()...)
		p.act(op, append(append(command, p.group.Name+"/"+lv.Name), where.devices...))
		return
	}
	op.made = true
	command := []string{"lvcreate", "--yes", "--type", where.kind(), "--activate", "y", "--addtag", op.tag, "--name", op.name}
	if where.thin {
		p.act(op, append(command, "--wipesignatures", "n",
			"--thinpool", p.group.thinPoolName(), "--virtualsize", byteCount(p.group.bytes(where.extents)), p.group.Name))
		return
	}
	// Backend.Create clears more than lvm would, and again after a crash.
	command = append(append(command, "--wipesignatures", "n", "--zero", "n", "--extents", extents), where.flags()...)
	p.act(op, append(append(command, p.group.Name), where.devices...))
}

func (p *plan) place(lv *LogicalVolume, more int64) (placement, bool) {
	if lv == nil {
		return p.room.take(more)
	}
	return p.room.takeFor(lv, more)
}

func (p *plan) noRoom(op *operation, lv *LogicalVolume, more int64) error {
	kind := string(p.room.layout)
	if p.room.thin {
		kind = "thin"
	}
	needs := fmt.Sprintf("%d bytes more are needed, and the largest free room for a %s volume has", p.group.bytes(more), kind)
	most := p.room.largest()
	if lv != nil && layoutOf(lv).Redundant() {
		needs = fmt.Sprintf("%d bytes more are needed, and the disks that it lies on have room for", p.group.bytes(more))
		most = p.room.growth(lv)
	}
	return fmt.Errorf("%s %s/%s: %w: %s %d", op.verb, p.group.Name, op.name, volume.ErrNoSpace, needs, p.group.bytes(most))
}

// activating adds to what lvchange is told that a volume that is whole but for a leg can be
// used, whatever the host's lvm.conf says (activation/activation_mode).
func (p *plan) activating(how ...string) []string {
	if p.terms.layout.Redundant() {
		return append([]string{"--activationmode", "degraded"}, how...)
	}
	return how
}

// changes is how many changes of the metadata the commands may make. A message to a thin
// pool is written down before it is sent, and taken out afterwards. The metadata of legs
// are cleared before they are used, as volumes of their own.
func (p *plan) changes() int {
	n := 0
	for _, op := range p.acting {
		switch {
		case !op.changes():
		case op.verb == verbPoolParts:
			n += changesOfParts
		case op.verb == verbQuarantine, op.verb == verbTakeOver, op.verb == verbSplit:
			n += changesOfName
		case p.terms.thin != nil, p.terms.layout.Redundant(), op.verb == verbSnapshot:
			n += 2
		case op.verb == verbRemove && p.isThickSnapshot(op):
			n += 2
		case op.verb == verbEndMove, op.verb == verbAbortMove:
			n += changesOfMove
		default:
			n++
		}
	}
	return n
}

// settings of lvm for the commands: nobody watches the pool but Berth, and the kernel
// tells of it in time.
func (p *plan) settings() []string {
	switch {
	case p.terms.thin != nil:
	case p.terms.layout.Redundant(), slices.ContainsFunc(p.acting, p.isAboutThickSnapshot):
		return []string{"monitoring=0"}
	default:
		return nil
	}
	if p.group.adopted != nil {
		return p.settingsOfAdopted()
	}
	pool, _ := p.group.thinPool() // a foreign one was refused
	threshold := strconv.FormatInt(p.group.threshold(pool, *p.terms.thin), 10)
	return []string{"monitoring=0", "thin_pool_autoextend_threshold=" + threshold}
}

// untag is how lvchange takes tags off a volume.
func untag(lv *LogicalVolume, prefix string) (change []string) {
	for _, tag := range lv.Tags {
		if strings.HasPrefix(tag, prefix) {
			change = append(change, "--deltag", tag)
		}
	}
	return change
}

// retag is how lvchange leaves one tag of a prefix on a volume; empty where it has no other.
func retag(lv *LogicalVolume, prefix, tag string) (change []string) {
	for _, old := range lv.Tags {
		if strings.HasPrefix(old, prefix) && old != tag {
			change = append(change, "--deltag", old)
		}
	}
	if !slices.Contains(lv.Tags, tag) {
		change = append(change, "--addtag", tag)
	}
	return change
}

func (p *plan) act(op *operation, command []string) {
	p.commands = append(p.commands, command)
	p.acting = append(p.acting, op)
}
