// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"fmt"
	"maps"
	"slices"
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
	// verbClone makes the volume as a copy of another one, or finds it.
	verbClone verb = "clone"
	// verbSnapshot makes a snapshot of a volume, or finds it.
	verbSnapshot verb = "snapshot"
	// verbGrow grows a volume that is known by its UUID.
	verbGrow verb = "grow"
	// verbActivate makes the volume's device node appear.
	verbActivate verb = "activate"
	// verbRefresh gives the device node the size that the metadata says, after a
	// crash between the two.
	verbRefresh verb = "refresh"
	// verbRemove removes the volume that has both the name and the UUID.
	verbRemove verb = "remove"
	// verbTend makes the group's thin pool, or makes it as large as it should be.
	verbTend verb = "tend"
	// verbPoolParts makes what a redundant thin pool is made of, and verbJoin makes it one.
	verbPoolParts verb = "make the parts of thin pool"
	verbJoin      verb = "join the parts of thin pool"
	// verbRepair puts new legs on other devices into the place of those whose device is
	// missing.
	verbRepair verb = "repair"
	// verbTakeBack lets a device count again that came back after the group was changed.
	verbTakeBack verb = "take a device back into"
	// verbDropMissing takes devices out of the group that are missing and that nothing needs.
	verbDropMissing verb = "take missing devices out of"
	// verbDiscard removes what a repair that was cut short has left of a leg.
	verbDiscard verb = "remove the rest of a leg"
	// verbDropSpare removes the space that lvm keeps to repair the metadata of a thin pool,
	// when its device is missing: nothing is in it.
	verbDropSpare verb = "remove the lost spare"
	// verbInstant takes the snapshots of a group anew, all at one instant.
	verbInstant verb = "take at one instant"
	// verbMark puts the tag of its instant on a snapshot of a group, in the place of any
	// other.
	verbMark verb = "mark"
	// verbClose and verbOpen say whether anything new is put on a device.
	verbClose verb = "close a device of"
	verbOpen  verb = "open a device of"
	// verbMove begins to move extents from one device to others, or goes on with it;
	// verbEndMove gives the volumes the new extents, and verbAbortMove the old ones.
	verbMove      verb = "move extents of"
	verbEndMove   verb = "end the move of extents of"
	verbAbortMove verb = "abort the move of extents of"
	// verbTakeOut takes an empty device out of the group.
	verbTakeOut verb = "take a device out of"
	// verbFill makes the volume that a copy is going to be written to, and verbHandOut makes a
	// volume of it when it is.
	verbFill    verb = "make room for the copy"
	verbHandOut verb = "hand out"
	// verbQuarantine gives a volume that is deleted another name and tag.
	verbQuarantine verb = "quarantine"
	// verbTakeOver gives a left-over the name and the tag of another volume.
	verbTakeOver verb = "take over"
	// verbSplit makes what a thick snapshot has kept a volume that can be wiped.
	verbSplit verb = "split"
	// verbArea gives a thick snapshot more room for what it keeps.
	verbArea verb = "extend snapshot"
	// verbWhenFull changes what a thin pool does with writes when it is full.
	verbWhenFull verb = "set when-full of"
)

// operation is one entry of a group's queue.
type operation struct {
	verb verb
	// name of the logical volume; "" observes the whole group.
	name string
	// uuid of the logical volume, but for those that are made, and for verbObserve.
	uuid string
	// source is the UUID of what verbClone and verbSnapshot copy, and of the metadata of
	// verbJoin.
	source string
	// sizeBytes is the least size, for verbCreate and verbGrow, what a copy is going to be
	// grown to, for verbClone, and for verbTend and verbPoolParts that of the data, with
	// metadataBytes for the metadata.
	sizeBytes     int64
	metadataBytes int64
	// failWhenFull for verbWhenFull.
	failWhenFull bool
	// devices for the new legs of verbRepair, the one of verbTakeBack, and those that verbMove
	// moves to.
	devices []string
	// pv is the device of verbClose, verbOpen, verbMove and verbTakeOut, by its UUID, and runs
	// are the extents that verbMove moves, which are of the volume; without any it goes on with
	// what was begun.
	pv     string
	runs   []run
	volume string
	// mostMissing legs are left by verbRepair.
	mostMissing int
	// tag is set at creation, and by verbMark, verbHandOut, verbQuarantine and verbTakeOver; wipe is what
	// TagWipe says of a new thick snapshot.
	tag  string
	wipe volume.WipePolicy
	// newName for verbQuarantine and verbTakeOver.
	newName string
	// group for verbInstant.
	group *volume.GroupSnapshotSpec

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

// met reports whether the group shows what the operation asked for.
func (op *operation) met(g *Group) bool {
	lv := g.Volume(op.name)
	switch op.verb {
	case verbObserve:
		return true
	case verbCreate:
		return lv != nil && ownedVolume(lv) && lv.SizeBytes >= op.sizeBytes && !lv.Unfinished
	case verbClone:
		return lv != nil && ownedVolume(lv)
	case verbSnapshot:
		return lv != nil && (ownedSnapshot(lv) || ownedCopy(lv)) && lv.stands() && lv.SizeBytes >= op.sizeBytes
	case verbFill:
		return lv != nil && ownedFilling(lv) && lv.SizeBytes >= op.sizeBytes
	case verbHandOut:
		return lv != nil && lv.UUID == op.uuid && ownedVolume(lv) && !hasTag(lv, TagFilling)
	case verbQuarantine:
		moved := g.volumeByUUID(op.uuid)
		return moved != nil && moved.Name == op.newName && ownedDeleted(moved) && !hasTag(moved, TagVolume)
	case verbTakeOver:
		moved := g.volumeByUUID(op.uuid)
		return moved != nil && moved.Name == op.newName && len(retag(moved, TagVolume, op.tag)) == 0
	case verbArea:
		return lv != nil && lv.UUID == op.uuid && lv.AreaBytes >= op.sizeBytes
	case verbGrow:
		return lv != nil && lv.UUID == op.uuid && lv.SizeBytes >= op.sizeBytes
	case verbMark:
		return lv != nil && lv.UUID == op.uuid && slices.Equal(lv.instants(), []string{op.tag})
	case verbWhenFull:
		return lv != nil && lv.UUID == op.uuid && lv.FailsWhenFull == op.failWhenFull
	case verbPoolParts:
		data, meta := g.poolParts()
		return data != nil && meta != nil
	case verbJoin:
		return lv != nil && slices.Equal(lv.Layout, poolLayout)
	case verbTend:
		return lv != nil && lv.SizeBytes >= op.sizeBytes && lv.MetadataBytes >= op.metadataBytes
	case verbRepair:
		return lv != nil && lv.UUID == op.uuid && !lv.Unfinished && lv.missingLegs() <= op.mostMissing
	case verbTakeBack:
		return !slices.ContainsFunc(g.PVs, func(pv PhysicalVolume) bool { return slices.Contains(op.devices, pv.ReturnedPath) })
	case verbDropMissing:
		return g.MissingPVs == 0
	case verbClose, verbOpen:
		pv := g.device(op.pv)
		return pv != nil && pv.Path != "" && pv.Closed == (op.verb == verbClose)
	case verbMove:
		// One that is not active, as after a boot, is gone on with.
		return false
	case verbEndMove, verbAbortMove:
		return g.withSegments && g.move() == nil
	case verbTakeOut:
		return g.State() == StateReady && g.device(op.pv) == nil
	case verbDiscard:
		return g.volumeByUUID(op.uuid) == nil
	case verbDropSpare:
		return g.lostSpare == nil
	case verbRemove:
		// Absence in a group whose devices are not all there is not proven: a missing
		// device may hold newer metadata (I4).
		return g.State() == StateReady && lv == nil && g.volumeByUUID(op.uuid) == nil
	case verbActivate, verbRefresh, verbInstant, verbSplit:
		// Not in the metadata, or not all of it: the caller looks at the device node, or was
		// told.
	}
	return false
}

// allowed returns volume.ErrPoolUnavailable when the group is in no condition for
// the operation. A volume all of whose devices are there can be used though
// others are missing.
func (op *operation) allowed(g *Group) error {
	if g.State() == StatePartial {
		switch op.verb {
		case verbActivate, verbRefresh, verbRepair, verbTakeBack, verbDropMissing, verbDiscard, verbDropSpare:
			return nil
		default:
		}
	}
	return g.usable()
}

// check returns why the operation must not touch what is there under its name.
func (op *operation) check(g *Group, lv *LogicalVolume) error {
	where := fmt.Sprintf("%s %s/%s", op.verb, g.Name, op.name)
	switch {
	case (op.verb == verbCreate || op.verb == verbFill || op.verb == verbTend) && lv == nil,
		op.verb == verbTakeBack, op.verb == verbDropMissing, op.verb == verbDropSpare:
		return nil
	case op.name == "":
		return op.checkDevice(g)
	case op.verb == verbDiscard:
		if lv == nil || lv.UUID != op.uuid || !extracted(lv) {
			return fmt.Errorf("%s: %w: it is not what a repair leaves", where, volume.ErrIdentity)
		}
		return nil
	case op.verb == verbClone || op.verb == verbSnapshot:
		return op.checkCopy(g, lv)
	case op.verb == verbTend:
		_, err := g.thinPool()
		return err
	case op.verb == verbPoolParts, op.verb == verbJoin:
		return op.checkParts(g)
	case lv == nil && g.volumeByUUID(op.uuid) == nil:
		return fmt.Errorf("%s: %w", where, volume.ErrNotFound)
	case lv == nil:
		return fmt.Errorf("%s: %w: the volume with UUID %s has another name", where, volume.ErrIdentity, op.uuid)
	case op.verb == verbCreate && !ownedVolume(lv):
		return fmt.Errorf("%s: %w: a volume of that name has no tag %s", where, volume.ErrExists, TagVolume)
	case op.verb == verbFill && !ownedFilling(lv):
		return fmt.Errorf("%s: %w: a volume of that name has no tag %s", where, volume.ErrExists, TagFilling)
	case op.verb != verbCreate && op.verb != verbFill && lv.UUID != op.uuid:
		return fmt.Errorf("%s: %w: its UUID is %s, recorded is %s", where, volume.ErrIdentity, lv.UUID, op.uuid)
	case op.verb == verbRemove && !owned(lv) && !isHalfPool(lv):
		return fmt.Errorf("%s: %w: it has no tag %s", where, volume.ErrIdentity, TagVolume)
	case op.verb == verbMark && !ownedSnapshot(lv):
		return fmt.Errorf("%s: %w: it is no snapshot of ours (tags %v)", where, volume.ErrIdentity, lv.Tags)
	case op.verb == verbRepair && !mendable(lv):
		return fmt.Errorf("%s: %w: it is no volume of ours with legs (layout %v, tags %v)", where, volume.ErrIdentity, lv.Layout, lv.Tags)
	case op.verb == verbHandOut && !ownedFilling(lv), op.verb == verbQuarantine && !ownedVolume(lv) && !isDeleted(lv),
		op.verb == verbTakeOver && !ownedVolume(lv):
		return fmt.Errorf("%s: %w: it is no volume of ours (tags %v)", where, volume.ErrIdentity, lv.Tags)
	case (op.verb == verbSplit || op.verb == verbArea) && !ownedSnapshot(lv) && !ownedCopy(lv):
		return fmt.Errorf("%s: %w: it is no snapshot of ours (tags %v)", where, volume.ErrIdentity, lv.Tags)
	case (op.verb == verbQuarantine || op.verb == verbTakeOver) && lv.Name != op.newName && g.Volume(op.newName) != nil:
		return fmt.Errorf("%s: %w: volume %s", where, volume.ErrExists, op.newName)
	case (op.verb == verbGrow || op.verb == verbCreate) && lv.isThickOrigin():
		// lvm: "Snapshot origin volumes can be resized only while inactive".
		return fmt.Errorf("%s: %w: a thick volume cannot grow while it has snapshots: delete %s", where, volume.ErrInUse, namesOf(g.snapshotsOf(lv)))
	case lv.Unfinished && op.verb != verbRemove:
		return fmt.Errorf("%s: %w", where, errUnfinished)
	case op.verb == verbRemove && !plain(lv):
		return fmt.Errorf("%s: %w: other volumes depend on it (layout %v, role %v)", where, volume.ErrInUse, lv.Layout, lv.Role)
	case op.verb == verbActivate:
		return g.requireCurrent(lv)
	}
	return nil
}

// checkDevice is check for what is about devices.
func (op *operation) checkDevice(g *Group) error {
	where := op.verb
	if op.verb == verbEndMove || op.verb == verbAbortMove {
		return nil // there is one: else it would be met
	}
	pv := g.device(op.pv)
	switch {
	case pv == nil:
		return fmt.Errorf("%s %s: %w: device %s", where, g.Name, volume.ErrNotFound, op.pv)
	case pv.Path == "":
		return fmt.Errorf("%s %s: %w: device %s is missing", where, g.Name, volume.ErrPoolUnavailable, op.pv)
	case op.verb == verbTakeOut && pv.FreeExtents != pv.Extents:
		return fmt.Errorf("%s %s: %w: %d extents of %s are in use", where, g.Name, volume.ErrInUse, pv.Extents-pv.FreeExtents, pv.Path)
	}
	return nil
}

// checkParts proves that what becomes a pool is nobody's: it wipes both.
func (op *operation) checkParts(g *Group) error {
	for _, name := range []string{thinPoolName, poolMetadataName} {
		if lv := g.Volume(name); lv != nil && !isHalfPool(lv) {
			return fmt.Errorf("%s %s/%s: %w: volume %s has no tag %s, or is something else (layout %v, tags %v)",
				op.verb, g.Name, op.name, volume.ErrExists, name, TagThinPool, lv.Layout, lv.Tags)
		}
	}
	if op.verb == verbPoolParts {
		return nil
	}
	data, meta := g.poolParts()
	if data == nil || meta == nil || data.UUID != op.uuid || meta.UUID != op.source {
		return fmt.Errorf("%s %s/%s: %w: its parts are not those that were made", op.verb, g.Name, op.name, volume.ErrIdentity)
	}
	return nil
}

func (op *operation) checkCopy(g *Group, lv *LogicalVolume) error {
	source := g.volumeByUUID(op.source)
	switch {
	case lv != nil && (ownedSnapshot(lv) || ownedCopy(lv)):
		return fmt.Errorf("%s %s/%s: %w", op.verb, g.Name, op.name, errUnfinished)
	case lv != nil:
		return fmt.Errorf("%s %s/%s: %w: a volume of that name is not ours", op.verb, g.Name, op.name, volume.ErrExists)
	case source == nil:
		return fmt.Errorf("%s %s/%s: %w: what is to be copied, with UUID %s", op.verb, g.Name, op.name, volume.ErrNotFound, op.source)
	case !ownedVolume(source) && !ownedSnapshot(source):
		return fmt.Errorf("%s %s/%s: %w: %s has no tag of ours", op.verb, g.Name, op.name, volume.ErrIdentity, source.Name)
	case source.PoolUUID == "":
		if err := canHaveThick(source); err != nil {
			return fmt.Errorf("%s %s/%s: %w", op.verb, g.Name, op.name, err)
		}
	}
	return nil
}

// plain reports whether a volume is of a layout that is made here and nothing was made
// of it that would go with it: no thick snapshot, no pool. Thin volumes stand for
// themselves, whatever was made of them, but for an origin outside of the pool.
func plain(lv *LogicalVolume) bool {
	if slices.Equal(lv.Layout, thinLayout) {
		return lv.PoolUUID != "" && !slices.ContainsFunc(lv.Role, func(role string) bool { return !slices.Contains(thinRoles, role) })
	}
	return layoutOf(lv) != "" && (slices.Equal(lv.Role, plainRole) || slices.Equal(lv.Role, thickSnapshotRole))
}

func changeCommand(groupUUID, lvUUID string, change ...string) []string {
	command := append([]string{"lvchange", "--yes"}, change...)
	return append(command, "--select", selectVolumes(groupUUID, "", []string{lvUUID}))
}

var (
	thinLayout = []string{"thin", "sparse"}
	poolLayout = []string{"thin", "pool"}
	thinRoles  = []string{"public", "origin", "snapshot", "thinorigin", "multithinorigin", "thinsnapshot"}
)

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
			"--select", selectVolumes(groupUUID, removable, some),
		})
	}
	return commands
}

// removable is what lvm is told that a volume must still be. In brackets a list is as it
// is; in braces it would have to hold these, as the role of an origin holds "public".
var removable = func() string {
	var layouts []string
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		layouts = append(layouts, "lv_layout=["+strings.Join(shapes[name].layout, ",")+"]")
	}
	roles := "(lv_role=[" + strings.Join(plainRole, ",") + "]||lv_role=[" + strings.Join(thickSnapshotRole, ",") + "])"
	return "((" + strings.Join(layouts, "||") + ")&&" + roles + "||lv_layout=[thin,sparse])&&"
}()

// errUnfinished: lvm was killed while it made the volume, or a leg of it. It was never
// told to anybody, and lvm does not activate it.
var errUnfinished = fmt.Errorf("%w: lvm did not come to the end of making it", volume.ErrPoolUnavailable)

func selectVolumes(groupUUID, also string, lvUUIDs []string) string {
	return "vg_uuid=" + groupUUID + "&&" + also + "(lv_uuid=" + strings.Join(lvUUIDs, "||lv_uuid=") + ")"
}
