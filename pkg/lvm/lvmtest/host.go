// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Host is a host with disks and lvm. It is safe for concurrent use.
type Host struct {
	t   testing.TB
	dir string

	mu     sync.Mutex
	disks  map[string]*disk
	groups []*group
	serial int
	boot   int
	blind  bool
	// slowCopy keeps what is moved from being copied, failCopy has a copy fail.
	slowCopy, failCopy bool
	// slowRebuild keeps legs from coming in step; leftovers are volumes in whose way a
	// killed lvm has left something.
	slowRebuild bool
	leftovers   map[string]bool
	// betweenCopies is called after each copy of an instant.
	betweenCopies func(still bool)
	held          map[string]bool
	faults        []Fault
	// countdown to the loss of power; negative: not armed.
	countdown int
	dead      bool
	durable   durable
	noFlush   bool
	tearing   bool
	// textless: the text of metadata cannot be read below lvm.
	textless bool
	// moreMetadata blocks are in use in each thin pool.
	moreMetadata uint64
	journal      Journal
	noThinDump   bool
	// otherTransaction: the metadata of thin pools are not of the one that lvm expects.
	otherTransaction bool
	// onCopy is called in the middle of each copy.
	onCopy func()
	// onWipe is called at the start of each wipe, without the lock.
	onWipe func(policy volume.WipePolicy)

	processes int
	commands  []string
	// running, if not nil, is called at the start of each process, without the lock.
	running func(commands []string)
}

// disk is a file of bytes, with what is on it.
type disk struct {
	path    string
	size    int64
	file    string
	content string // a foreign signature; "" is none
	pvUUID  string
	group   *group
	missing bool
	// alias is how lvm calls it, if that is not its path.
	alias string
	// plugs is how often it was plugged in.
	plugs int
	// flagged: its group was changed while it was missing.
	flagged bool
	// ghost is its group as it was when the disk was lost: what its metadata say.
	ghost *group
	// start of the extents, and how many are on it.
	extents int64
}

type group struct {
	name, uuid, systemID string
	exported             bool
	extent               int64
	seqno                uint64
	tags                 []string
	disks                []*disk
	volumes              []*logicalVolume
	// closed disks get nothing new, and moving is what is being moved.
	closed map[*disk]bool
	moving *movement
	// torn is the generation of which half was left by a loss of power, 0 for none. The
	// rest is what was there before it.
	torn uint64
}

type logicalVolume struct {
	name, uuid string
	tags       []string
	role       []string
	layout     string // "" is linear
	extents    []extent
	// plugged is how often its disks had been plugged in when its table was loaded.
	plugged map[*disk]int
	// thin is set for volumes of the thin pool, and of them virtual is the size in extents.
	thin    *logicalVolume
	virtual int64
	// origin is what a snapshot was made of, as long as that is there.
	origin *logicalVolume
	// metadata of a thin pool, and its spare.
	metadata  []extent
	metaBytes int64
	// parts of a redundant thin pool: its metadata and its data, each with legs.
	parts []*logicalVolume
	// partOf is the pool that it is a part of.
	partOf string
	// spare is what lvm keeps of a group to repair the metadata of a redundant pool, none by
	// default.
	spare []extent
	// unmarked thin pools tell of nothing before they are full. Of a pool, or a thick snapshot,
	// that lags the kernel has less than lvm knows: lvm was killed while it extended it.
	unmarked, lags bool
	// failsWhenFull of a thin pool, and showsOldData of one that does not zero its chunks.
	failsWhenFull, showsOldData bool
	// below is the layout of what a thin pool of somebody else lies on.
	below string
	// heldRoot of a thin pool: a snapshot of its metadata is held.
	heldRoot uint64
	// legs of a volume with legs; extents are those of them that its bytes are in.
	legs []*leg
	// unfinished: lvm was killed while it made it.
	unfinished bool
	// suspended: its legs, or it itself, wait to be resumed.
	suspended bool
	// thickOf is the origin of a thick snapshot, lost is set when that was full, and most is
	// how many chunks it has kept.
	thickOf *logicalVolume
	lost    bool
	most    int
	// readOnly volumes cannot be wiped; a stale one has its former device below it.
	readOnly, stale bool
	// number of a thin volume in its pool.
	number int64
	// node is the file that stands for the device node, "" when inactive. Its size
	// may lag behind the metadata after a crash.
	node string
}

type extent struct {
	disk  *disk
	index int64
}

// dataStart is where a disk's extents begin: after the label and 64 MiB of
// metadata on a real disk. Nothing is stored there by the fake.
const dataStart = 1 << 20

// NewHost returns a host without disks. What it stores is in a directory of the
// test.
func NewHost(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t, dir: t.TempDir(), disks: map[string]*disk{}, held: map[string]bool{}, leftovers: map[string]bool{}, countdown: -1}
	h.journal = Journal{h: h, kept: map[string]lvm.Generation{}}
	return h
}

// AddDisk plugs a blank disk in, or one with a foreign signature ("ext4").
func (h *Host) AddDisk(path string, sizeBytes int64, signature string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	file := filepath.Join(h.dir, "disk"+strings.ReplaceAll(path, "/", "_"))
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Truncate(file, sizeBytes); err != nil {
		h.t.Fatal(err)
	}
	h.disks[path] = &disk{path: path, size: sizeBytes, file: file, content: signature}
}

// SetMissing unplugs a disk or plugs it in again.
func (h *Host) SetMissing(path string, missing bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[path]
	if d.missing && !missing {
		d.plugs++
		if h.isMember(d) {
			d.ghost = nil // lvm brings its metadata up to date
		}
	}
	if !d.missing && missing && d.group != nil {
		d.ghost = d.group.clone()
	}
	d.missing = missing
}

// Rename gives a disk another kernel name, as a reboot may.
func (h *Host) Rename(from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[from]
	delete(h.disks, from)
	d.path = to
	h.disks[to] = d
}

// SetAlias has lvm call a disk by another of its names.
func (h *Host) SetAlias(path, alias string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disks[path].alias = alias
}

// Signature returns what a disk holds: a foreign signature, "LVM2_member" or "".
func (h *Host) Signature(path string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[path]
	if d.pvUUID != "" {
		return "LVM2_member"
	}
	return d.content
}

// Edit changes a volume group behind everybody's back, as an operator does.
func (h *Host) Edit(groupName string, change func(*Editor)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groupNamed(groupName)
	if g == nil {
		h.t.Fatalf("no volume group %s", groupName)
	}
	g.seqno++
	change(&Editor{h: h, g: g})
}

// Activate is lvchange --activate y, as a host does when it boots.
func (h *Host) Activate(groupName, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groupNamed(groupName)
	h.activate(g, g.volume(name))
}

// Editor is what an operator does to a volume group.
type Editor struct {
	h *Host
	g *group
}

// SetUUID makes it another group of the same name.
func (e *Editor) SetUUID() { e.g.uuid = e.h.newUUID() }

// SameGeneration makes it vgcfgrestore in the place of the last change, by the file that lvm has kept
// of the group before that.
func (e *Editor) SameGeneration() { e.g.seqno-- }

// Rename is vgrename.
func (e *Editor) Rename(name string) { e.g.name = name }

// SetExported is vgexport.
func (e *Editor) SetExported(exported bool) { e.g.exported = exported }

// SetGroupTags are vgchange --addtag and --deltag.
func (e *Editor) SetGroupTags(tags ...string) { e.g.tags = tags }

// SetSystemID is vgchange --systemid.
func (e *Editor) SetSystemID(id string) { e.g.systemID = id }

// Replace makes another volume of the same name and size, with the same tags.
func (e *Editor) Replace(name string) {
	lv := e.g.volume(name)
	lv.uuid = e.h.newUUID()
}

// Remove is lvremove.
func (e *Editor) Remove(name string) { e.h.drop(e.g, e.g.volume(name)) }

// SetRole makes the volume an origin of a snapshot, or plain again.
func (e *Editor) SetRole(name string, role ...string) { e.g.volume(name).role = role }

// SetTags is lvchange --deltag and --addtag.
func (e *Editor) SetTags(name string, tags ...string) { e.g.volume(name).tags = tags }

// Add makes a volume that is not ours.
func (e *Editor) Add(name string, extents int) {
	free := e.g.free()
	e.g.volumes = append(e.g.volumes, &logicalVolume{
		name: name, uuid: e.h.newUUID(), role: []string{"public"}, extents: free[:extents],
	})
}

// AddThinPool makes an active thin pool that is not ours, on volumes of that layout, and
// returns its UUID.
func (e *Editor) AddThinPool(name string, extents int, below string) string {
	const metadata = 8
	free := e.g.free()
	pool := &logicalVolume{
		name: name, uuid: e.h.newUUID(), role: []string{"private"}, layout: "thin,pool", below: below,
		extents: free[:extents], metadata: free[extents : extents+2*metadata], metaBytes: metadata * e.g.extent,
	}
	e.g.volumes = append(e.g.volumes, pool)
	e.h.activate(e.g, pool)
	return pool.uuid
}

// AddThin makes an active thin volume that is not ours, or an active snapshot of one.
func (e *Editor) AddThin(pool, name string, extents int64, origin string) {
	lv := &logicalVolume{
		name: name, uuid: e.h.newUUID(), role: []string{"public"}, layout: "thin,sparse", thin: e.g.volume(pool), virtual: extents,
		number: e.g.nextNumber(e.g.volume(pool)), origin: e.g.volume(origin),
	}
	e.g.volumes = append(e.g.volumes, lv)
	e.h.activate(e.g, lv)
}

// ExtendThinPool is lvextend.
func (e *Editor) ExtendThinPool(name string, extents int) {
	pool := e.g.volume(name)
	pool.extents = append(slices.Clone(pool.extents), e.g.free()[:extents]...)
}

// Suspend is dmsetup suspend.
func (e *Editor) Suspend(name string) { e.g.volume(name).suspended = true }

// ShowOldData is lvchange --zero n for a thin pool.
func (e *Editor) ShowOldData(name string) { e.g.volume(name).showsOldData = true }

// RenameVolume is lvrename.
func (e *Editor) RenameVolume(from, to string) { e.g.volume(from).name = to }

// Unmark activates a thin pool as the host does by its own lvm.conf: without a low-water
// mark.
func (e *Editor) Unmark(name string) { e.g.volume(name).unmarked = true }

// Deactivate takes the device node away.
func (e *Editor) Deactivate(name string) { e.h.deactivate(e.g.volume(name)) }

// Processes returns how many programs were started so far.
func (h *Host) Processes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.processes
}

// Commands returns the command lines given to lvm so far, reports left out.
func (h *Host) Commands() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.commands)
}

// OnProcess calls f at the start of each process with its changing commands. The
// process waits for f.
func (h *Host) OnProcess(f func(commands []string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = f
}

// Reboot deactivates every volume, ends every process of the old boot, gives the
// power back, and lets go of everything held.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		for _, lv := range g.withParts() {
			h.deactivate(lv)
			lv.suspended = false
		}
		if g.moving != nil {
			g.moving.active = false
		}
	}
	if h.dead && h.tearing {
		h.tear()
	}
	h.boot++
	h.countdown, h.dead, h.faults = -1, false, nil
	h.held = map[string]bool{}
}

// SetBlind makes every observation fail.
func (h *Host) SetBlind(blind bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blind = blind
}

func (h *Host) groupNamed(name string) *group {
	i := slices.IndexFunc(h.groups, func(g *group) bool { return g.name == name })
	if i < 0 {
		return nil
	}
	return h.groups[i]
}

// newUUID makes UUIDs that are unique and alike in each run.
func (h *Host) newUUID() string {
	h.serial++
	text := fmt.Sprintf("%032d", h.serial)
	return strings.Join([]string{text[:6], text[6:10], text[10:14], text[14:18], text[18:22], text[22:26], text[26:]}, "-")
}

func (g *group) volume(name string) *logicalVolume {
	i := slices.IndexFunc(g.volumes, func(lv *logicalVolume) bool { return lv.name == name })
	if i < 0 {
		return nil
	}
	return g.volumes[i]
}

func (g *group) total() int64 {
	var n int64
	for _, d := range g.disks {
		n += d.extents
	}
	return n
}

// free returns the extents that no volume has.
func (g *group) free() []extent {
	used := map[extent]bool{}
	for _, lv := range g.withParts() {
		for _, e := range slices.Concat(lv.extents, lv.metadata, lv.spare, lv.extentsOfLegs()) {
			used[e] = true
		}
	}
	if g.moving != nil {
		for _, e := range g.moving.to {
			used[e] = true
		}
	}
	var free []extent
	for _, d := range g.disks {
		for i := range d.extents {
			if e := (extent{d, i}); !used[e] {
				free = append(free, e)
			}
		}
	}
	return free
}

// freeOn returns the extents of one disk that no volume has.
func (g *group) freeOn(d *disk) []extent {
	return slices.DeleteFunc(g.free(), func(e extent) bool { return e.disk != d })
}

func (lv *logicalVolume) layoutName() string { return cmp.Or(lv.layout, "linear") }

func (h *Host) drop(g *group, lv *logicalVolume) {
	for _, snapshot := range g.snapshotsOf(lv) {
		h.drop(g, snapshot)
	}
	h.deactivate(lv)
	h.forgetThin(lv)
	if !g.isPart(lv) {
		h.forgetRaid(g, lv)
	}
	g.volumes = slices.DeleteFunc(g.volumes, func(o *logicalVolume) bool { return o == lv })
}
