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

// verb is what an operation asks of a logical volume.
type verb string

const (
	// verbObserve asks for a look at the group after everything queued before it.
	verbObserve verb = "observe"
	// verbCreate makes the volume or finds it, and grows it if it is too small.
	verbCreate verb = "create"
	// verbGrow grows a volume that is known by its UUID.
	verbGrow verb = "grow"
	// verbActivate makes the volume's device node appear.
	verbActivate verb = "activate"
	// verbRefresh gives the device node the size that the metadata says, after a
	// crash between the two.
	verbRefresh verb = "refresh"
	// verbRemove removes the volume that has both the name and the UUID.
	verbRemove verb = "remove"
)

// operation is one entry of a group's queue.
type operation struct {
	verb verb
	// name of the logical volume; "" observes the whole group.
	name string
	// uuid of the logical volume, but for verbCreate and verbObserve.
	uuid string
	// sizeBytes is the least size, for verbCreate and verbGrow.
	sizeBytes int64
	// tag is set at creation.
	tag string

	// made is true when a process was given the command that makes the volume, which was
	// not there before; it may be read when the outcome has come.
	made bool
	// tried counts the processes that had a command for it.
	tried int
	// said is what lvm said in the process that had a command for it; it may be read
	// when the outcome has come.
	said string
	// done takes the one outcome; it has room for it.
	done chan outcome
}

// outcome of an operation: how the group looks after it.
type outcome struct {
	group *Group
	err   error
}

// plan turns operations into the commands of one process.
type plan struct {
	group    *Group
	reserve  int64
	budget   volume.Capacity
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
func makePlan(g *Group, reserveBytes int64, batch []*operation) *plan {
	p := &plan{
		group: g, reserve: reserveBytes, budget: g.capacity(reserveBytes),
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
		if command[0] == "lvchange" {
			continue
		}
		if seen {
			p.commands[i] = slices.Insert(command, 1, "--autobackup", "n")
		}
		seen = true
	}
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
	switch op.verb {
	case verbObserve:
	case verbRemove:
		p.removed = append(p.removed, op.uuid)
		p.acting = append(p.acting, op)
	case verbActivate:
		p.act(op, changeCommand(p.group.UUID, op.uuid, "--activate", "y"))
	case verbRefresh:
		p.act(op, changeCommand(p.group.UUID, op.uuid, "--refresh"))
	case verbCreate, verbGrow:
		p.allocate(op, lv)
	}
}

// allocate admits by the same function that publishes the capacity (I8).
func (p *plan) allocate(op *operation, lv *LogicalVolume) {
	var have int64
	if lv != nil {
		have = lv.SizeBytes
	}
	want := p.group.rounded(op.sizeBytes)
	if more := want - have; !p.budget.Fits(more) {
		if len(p.removed) > 0 {
			p.later = append(p.later, op)
			return
		}
		p.refused[op] = fmt.Errorf("%s %s/%s: %w: %d bytes more are needed, %d are free",
			op.verb, p.group.Name, op.name, volume.ErrNoSpace, more, p.budget.FreeBytes)
		return
	}
	p.budget.FreeBytes -= want - have
	p.budget.MaxVolumeBytes -= want - have
	extents := strconv.FormatInt(want/p.group.ExtentBytes, 10)
	if lv != nil {
		p.act(op, []string{"lvextend", "--yes", "--extents", extents, p.group.Name + "/" + lv.Name})
		return
	}
	op.made = true
	p.act(op, []string{
		"lvcreate", "--yes", "--type", "linear", "--activate", "y",
		// Backend.Create clears more than lvm would, and again after a crash.
		"--wipesignatures", "n", "--zero", "n",
		"--extents", extents, "--addtag", op.tag, "--name", op.name, p.group.Name,
	})
}

// changes is how many changes of the metadata the commands may make.
func (p *plan) changes() int {
	n := 0
	for _, op := range p.acting {
		if op.changes() {
			n++
		}
	}
	return n
}

func (p *plan) act(op *operation, command []string) {
	p.commands = append(p.commands, command)
	p.acting = append(p.acting, op)
}

// met reports whether the group shows what the operation asked for.
func (op *operation) met(g *Group) bool {
	lv := g.Volume(op.name)
	switch op.verb {
	case verbObserve:
		return true
	case verbCreate:
		return lv != nil && ownedVolume(lv) && lv.SizeBytes >= op.sizeBytes
	case verbGrow:
		return lv != nil && lv.UUID == op.uuid && lv.SizeBytes >= op.sizeBytes
	case verbRemove:
		// Absence in a group whose devices are not all there is not proven: a missing
		// device may hold newer metadata (I4).
		return g.State() == StateReady && lv == nil && g.volumeByUUID(op.uuid) == nil
	case verbActivate, verbRefresh:
		// Not in the metadata: the caller looks at the device node.
	}
	return false
}

// allowed returns volume.ErrPoolUnavailable when the group is in no condition for
// the operation. A volume all of whose devices are there can be used though
// others are missing.
func (op *operation) allowed(g *Group) error {
	if op.verb == verbActivate && g.State() == StatePartial {
		return nil
	}
	return g.usable()
}

// check returns why the operation must not touch what is there under its name.
func (op *operation) check(g *Group, lv *LogicalVolume) error {
	where := fmt.Sprintf("%s %s/%s", op.verb, g.Name, op.name)
	switch {
	case op.verb == verbCreate && lv == nil:
		return nil
	case lv == nil && g.volumeByUUID(op.uuid) == nil:
		return fmt.Errorf("%s: %w", where, volume.ErrNotFound)
	case lv == nil:
		return fmt.Errorf("%s: %w: the volume with UUID %s has another name", where, volume.ErrIdentity, op.uuid)
	case op.verb == verbCreate && !ownedVolume(lv):
		return fmt.Errorf("%s: %w: a volume of that name has no tag %s", where, volume.ErrExists, TagVolume)
	case op.verb != verbCreate && lv.UUID != op.uuid:
		return fmt.Errorf("%s: %w: its UUID is %s, recorded is %s", where, volume.ErrIdentity, lv.UUID, op.uuid)
	case op.verb == verbRemove && !ownedVolume(lv):
		return fmt.Errorf("%s: %w: it has no tag %s", where, volume.ErrIdentity, TagVolume)
	case op.verb == verbRemove && !plain(lv):
		return fmt.Errorf("%s: %w: other volumes depend on it (layout %v, role %v)", where, volume.ErrInUse, lv.Layout, lv.Role)
	}
	return nil
}

// plain reports whether a volume is linear and nothing was made of it: no
// snapshot, no pool.
func plain(lv *LogicalVolume) bool {
	return len(lv.Layout) == 1 && lv.Layout[0] == "linear" && len(lv.Role) == 1 && lv.Role[0] == "public"
}

func changeCommand(groupUUID, lvUUID string, change ...string) []string {
	command := append([]string{"lvchange", "--yes"}, change...)
	return append(command, "--select", selectVolumes(groupUUID, "", []string{lvUUID}))
}

// removeCommands removes by UUID, in the one group, and only volumes that nothing
// depends on: lvm checks all this in the moment it acts, so what was made of a
// volume since the last report keeps it from being removed. (With --yes lvremove
// would take its snapshots along.)
func removeCommands(groupUUID string, lvUUIDs []string) [][]string {
	const mostPerCommand = 32
	var commands [][]string
	for start := 0; start < len(lvUUIDs); start += mostPerCommand {
		some := lvUUIDs[start:min(start+mostPerCommand, len(lvUUIDs))]
		commands = append(commands, []string{
			"lvremove", "--yes",
			"--select", selectVolumes(groupUUID, "lv_layout={linear}&&lv_role={public}&&", some),
		})
	}
	return commands
}

func selectVolumes(groupUUID, also string, lvUUIDs []string) string {
	return "vg_uuid=" + groupUUID + "&&" + also + "(lv_uuid=" + strings.Join(lvUUIDs, "||lv_uuid=") + ")"
}
