// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/berth-dev/berth/pkg/volume"
)

// Options configure a Backend.
type Options struct {
	// GroupUUID is the volume group's identity; GroupName is how it is called in
	// messages, the report says how it is called now.
	GroupUUID string
	GroupName string
	// Devices returns the paths of the group's physical volumes right now; every
	// command sees only these. A nil answer leaves it to the host's lvm.conf and devices
	// file; an empty one says that none of them is there.
	Devices func() []string
	// Reserve returns how much of the group is never handed out. Nil reserves
	// nothing.
	Reserve func(totalBytes int64) int64
	// Layout of new volumes and of what volumes grow by; empty means LayoutLinear.
	Layout Layout
	// Thin returns the policy of the group's thin pool, in which all its volumes lie; it
	// may change from call to call. Nil means thick volumes.
	Thin func() ThinPolicy
	// ThinPool is a thin pool of somebody else, which is used as it is, with Thin for the
	// policy; nil means that Tend makes one.
	ThinPool *ThinPoolID
	// Snapshots returns how much room the snapshots of thick volumes get; it may change from
	// call to call. Nil means DefaultSnapshotPolicy.
	Snapshots func() SnapshotPolicy
	// Nodes finds device nodes; nil means HostNodes of Root.
	Nodes Nodes
	// Seqno reads a device's generation of metadata; nil means DiskSeqno of Root.
	Seqno SeqnoReader
	// Journal keeps the way back from a change of the metadata that a loss of power
	// cuts short; nil keeps none, and such a group is lost to lvm.
	Journal Journal
	// Metadata is the metadata on the devices; nil means DiskMetadata of Root.
	Metadata Metadata
	// RolledBack is told of each device on which such a change was undone, and of the
	// generation that is there again; it may be nil.
	RolledBack func(devicePath string, seqno uint64)
	// Instants takes group snapshots; nil means HostInstants of Root.
	Instants Instants
	// Resumed is told when devices of the group were found suspended, left so by a process
	// that was killed, and were resumed; it may be nil.
	Resumed func(devices int)
	// Root is where the host's /dev and /sys are seen; empty means "/".
	Root string
}

// Backend makes volumes of one volume group. It implements volume.Backend.
type Backend struct {
	group NodeID // without a volume
	nodes Nodes
	queue *queue
	// grouping has room for the one group snapshot that is being taken.
	grouping chan struct{}
	// current are the UUIDs of active volumes that were seen not to have begun from old legs.
	current sync.Map
	// fills are how full thick snapshots were when TendSnapshots was called last.
	fills map[string]fill
}

var (
	_ volume.Backend          = (*Backend)(nil)
	_ volume.Snapshotter      = (*Backend)(nil)
	_ volume.GroupSnapshotter = (*Backend)(nil)
)

// NewBackend returns the backend of a volume group that exists. It looks at
// nothing yet.
func NewBackend(client *Client, opts Options) (*Backend, error) {
	if err := ValidateGroupName(opts.GroupName); err != nil {
		return nil, err
	}
	if !validUUID(opts.GroupUUID) {
		return nil, fmt.Errorf("%w: %q is not the UUID of a volume group", volume.ErrInvalid, opts.GroupUUID)
	}
	if opts.Layout == "" {
		opts.Layout = LayoutLinear
	}
	if err := opts.Layout.Check(); err != nil {
		return nil, err
	}
	if err := opts.checkThinPool(); err != nil {
		return nil, err
	}
	if opts.Root == "" {
		opts.Root = "/"
	}
	if opts.Nodes == nil {
		opts.Nodes = HostNodes{Root: opts.Root}
	}
	if opts.Seqno == nil {
		opts.Seqno = DiskSeqno(opts.Root)
	}
	if opts.Metadata == nil {
		opts.Metadata = DiskMetadata{Root: opts.Root}
	}
	if opts.RolledBack == nil {
		opts.RolledBack = func(string, uint64) {}
	}
	if opts.Resumed == nil {
		opts.Resumed = func(int) {}
	}
	if opts.Instants == nil {
		opts.Instants = HostInstants{Root: opts.Root}
	}
	if opts.Snapshots == nil {
		opts.Snapshots = DefaultSnapshotPolicy
	}
	if opts.Devices == nil {
		opts.Devices = func() []string { return nil }
	}
	if opts.Reserve == nil {
		opts.Reserve = func(int64) int64 { return 0 }
	}
	return &Backend{
		group: NodeID{GroupName: opts.GroupName, GroupUUID: opts.GroupUUID},
		nodes: opts.Nodes, grouping: make(chan struct{}, 1),
		queue: &queue{
			client: client, groupName: opts.GroupName, groupUUID: opts.GroupUUID,
			devices: opts.Devices, reserve: opts.Reserve, layout: opts.Layout, thin: opts.Thin, pool: opts.ThinPool, snapshots: opts.Snapshots, nodes: opts.Nodes,
			seqno: opts.Seqno, unflushed: true, mayHang: true, instants: opts.Instants,
			journal: opts.Journal, metadata: opts.Metadata, rolledBack: opts.RolledBack, resumed: opts.Resumed,
		},
	}, nil
}

// Create implements volume.Backend. It costs one lvm process at most as long as
// nobody else changes the group, however many calls wait.
func (b *Backend) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	if err := spec.Validate(); err != nil {
		return volume.Record{}, err
	}
	if spec.Source != nil {
		if b.queue.thin == nil {
			return b.fill(ctx, spec)
		}
		return b.clone(ctx, spec)
	}
	op := &operation{
		verb: verbCreate, name: spec.ID, sizeBytes: spec.SizeBytes, tag: TagVolume + tagText(spec.Name),
	}
	g, err := b.queue.do(ctx, op)
	if errors.Is(err, errUnfinished) {
		if err := b.removeUnfinished(ctx, spec.ID); err != nil {
			return volume.Record{}, err
		}
		op = &operation{verb: verbCreate, name: spec.ID, sizeBytes: op.sizeBytes, tag: op.tag}
		g, err = b.queue.do(ctx, op)
	}
	if err != nil {
		return volume.Record{}, err
	}
	lv := g.Volume(spec.ID)
	loc, err := b.node(ctx, g, lv)
	if err != nil {
		return volume.Record{}, err
	}
	if op.made || spec.Fresh {
		if err := b.nodes.Clear(ctx, loc); err != nil {
			return volume.Record{}, fmt.Errorf("clear the new volume %s/%s: %w", g.Name, spec.ID, err)
		}
	}
	return record(g, lv), nil
}

// removeUnfinished removes a volume of which lvm was killed while it made it. Nothing can
// be on it, for lvm commits a new volume with legs before it has cleared their metadata,
// shows these as long as that lasts, and activates the volume afterwards only (lv_extend
// in lib/metadata/lv_manip.c).
func (b *Backend) removeUnfinished(ctx context.Context, id string) error {
	g, lv, err := b.look(ctx, id, id, nil)
	if err != nil || lv == nil || !lv.Unfinished {
		return err
	}
	node := NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID}
	_, active, err := b.nodes.Find(ctx, node)
	if err != nil {
		return fmt.Errorf("find the device of %s: %w", node, err)
	}
	if active {
		return fmt.Errorf("remove %s: %w: %w, and yet it is active", node, volume.ErrIdentity, errUnfinished)
	}
	_, err = b.queue.do(ctx, &operation{verb: verbRemove, name: id, uuid: lv.UUID})
	return err
}

// Absent reports whether the volume group is seen to hold no volume of that ID. It
// costs no process as long as nobody else changes the group. An error says nothing.
func (b *Backend) Absent(ctx context.Context, id string) (bool, error) {
	if err := volume.ValidateID(id); err != nil {
		return false, err
	}
	_, lv, err := b.look(ctx, id, id, nil)
	return err == nil && lv == nil, err
}

// Locate implements volume.Backend. It costs no process when the volume is active.
func (b *Backend) Locate(ctx context.Context, id string, rec volume.Record) (volume.Location, error) {
	if err := b.checkRecord(id, rec); err != nil {
		return volume.Location{}, err
	}
	loc, ok, err := b.nodes.Find(ctx, NodeID{
		GroupName: rec.LVM.VGName, GroupUUID: rec.LVM.VGUUID, Name: rec.LVM.LVName, UUID: rec.LVM.LVUUID,
	})
	if err != nil {
		return volume.Location{}, fmt.Errorf("locate %s/%s: %w", b.group.GroupName, id, err)
	}
	// One that has another name was deleted, or is somebody else's by now. One that has old legs
	// may have been activated from them by the host's own lvm.
	_, current := b.current.Load(rec.LVM.LVUUID)
	if ok && loc.SizeBytes >= rec.SizeBytes && strings.HasSuffix(loc.Device, dmName(rec.LVM.VGName, rec.LVM.LVName)) && (current || !b.queue.mayBeBehind()) {
		gone, err := b.onGone(ctx, loc)
		if err != nil {
			return volume.Location{}, fmt.Errorf("locate %s/%s: %w", b.group.GroupName, id, err)
		}
		if !gone {
			return loc, nil
		}
	}
	b.current.Delete(rec.LVM.LVUUID)
	g, lv, err := b.look(ctx, id, id, &rec)
	if err != nil {
		return volume.Location{}, err
	}
	if lv == nil {
		return volume.Location{}, fmt.Errorf("locate %s/%s: %w in the volume group's metadata", b.group.GroupName, id, volume.ErrNotFound)
	}
	if lv.SizeBytes < rec.SizeBytes {
		return volume.Location{}, fmt.Errorf("locate %s/%s: %w: it has %d bytes, recorded are %d",
			b.group.GroupName, id, volume.ErrIdentity, lv.SizeBytes, rec.SizeBytes)
	}
	if err := g.requireCurrent(lv); err != nil {
		return volume.Location{}, fmt.Errorf("locate %s/%s: %w", b.group.GroupName, id, err)
	}
	if loc, err = b.node(ctx, g, lv); err == nil {
		b.current.Store(rec.LVM.LVUUID, true)
	}
	return loc, err
}

// Grow implements volume.Backend.
func (b *Backend) Grow(ctx context.Context, id string, rec volume.Record, sizeBytes int64) (volume.Record, error) {
	if err := b.checkRecord(id, rec); err != nil {
		return volume.Record{}, err
	}
	g, err := b.queue.do(ctx, &operation{verb: verbGrow, name: id, uuid: rec.LVM.LVUUID, sizeBytes: sizeBytes})
	if err != nil {
		return volume.Record{}, err
	}
	lv := g.Volume(id)
	if _, err := b.node(ctx, g, lv); err != nil {
		return volume.Record{}, err
	}
	return record(g, lv), nil
}

// List implements volume.Backend.
func (b *Backend) List(ctx context.Context) ([]volume.Found, error) {
	g, err := b.ready(ctx)
	if err != nil {
		return nil, err
	}
	var found []volume.Found
	for i := range g.LVs {
		if lv := &g.LVs[i]; ownedVolume(lv) {
			found = append(found, volume.Found{ID: lv.Name, Record: record(g, lv)})
		}
	}
	return found, nil
}

// Capacity implements volume.Backend.
func (b *Backend) Capacity(ctx context.Context) (volume.Capacity, error) {
	g, err := b.ready(ctx)
	if err != nil {
		return volume.Capacity{}, err
	}
	t, err := b.queue.terms(ctx, g)
	if err != nil {
		return volume.Capacity{}, err
	}
	return g.capacity(t), nil
}

// Group returns how the volume group looks, also in a condition in which it cannot
// be changed. volume.ErrPoolUnavailable: it was not found on its devices.
func (b *Backend) Group(ctx context.Context) (*Group, error) {
	return b.queue.do(ctx, &operation{verb: verbObserve})
}

func (b *Backend) ready(ctx context.Context) (*Group, error) {
	g, err := b.Group(ctx)
	if err != nil {
		return nil, err
	}
	return g, g.usable()
}

// look finds a volume or a snapshot by the name of its logical volume in the metadata. Nil
// is proven absent.
func (b *Backend) look(ctx context.Context, id, name string, rec *volume.Record) (*Group, *LogicalVolume, error) {
	g, err := b.queue.do(ctx, &operation{verb: verbObserve, name: name})
	if err != nil {
		return nil, nil, err
	}
	lv := g.Volume(name)
	if rec == nil {
		if lv == nil || isDeleted(lv) {
			return g, nil, g.usable()
		}
		return g, lv, nil
	}
	byUUID := g.volumeByUUID(rec.LVM.LVUUID)
	switch {
	case lv == nil && byUUID == nil, byUUID != nil && isDeleted(byUUID) && isDeletedOf(byUUID, id):
		return g, nil, g.usable()
	case byUUID == nil:
		return nil, nil, fmt.Errorf("volume %s/%s: %w: its UUID is %s, recorded is %s",
			g.Name, id, volume.ErrIdentity, lv.UUID, rec.LVM.LVUUID)
	case lv != byUUID:
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the volume with the recorded UUID %s is called %s",
			g.Name, id, volume.ErrIdentity, byUUID.UUID, byUUID.Name)
	}
	return g, lv, nil
}

// node returns the device of a volume, active and as large as the metadata says.
func (b *Backend) node(ctx context.Context, g *Group, lv *LogicalVolume) (volume.Location, error) {
	id := NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: lv.Name, UUID: lv.UUID}
	var said string
	for tried := false; ; tried = true {
		loc, active, err := b.nodes.Find(ctx, id)
		if err != nil {
			return volume.Location{}, fmt.Errorf("find the device of %s: %w", id, err)
		}
		gone := false
		if active && !lv.isThickSnapshot() {
			if gone, err = b.onGone(ctx, loc); err != nil {
				return volume.Location{}, err
			}
		}
		switch {
		case gone && tried:
			return volume.Location{}, fmt.Errorf("%w: %s was active when its disk was pulled out, and that is not back; lvm said %q", volume.ErrPoolUnavailable, id, said)
		case gone:
			if err := b.requireUnused(ctx, id); err != nil {
				return volume.Location{}, err
			}
		case active && loc.SizeBytes >= lv.SizeBytes:
			return loc, nil
		}
		op := &operation{verb: verbActivate, name: lv.Name, uuid: lv.UUID}
		if origin := g.volumeByUUID(lv.OriginUUID); lv.isThickSnapshot() && origin != nil {
			// They are active together. Where only the origin is, lvm was killed after it had made
			// the snapshot, which begins when the origin is refreshed.
			op.name, op.uuid = origin.Name, origin.UUID
			if _, active, err = b.nodes.Find(ctx, NodeID{GroupName: g.Name, GroupUUID: g.UUID, Name: origin.Name, UUID: origin.UUID}); err != nil {
				return volume.Location{}, fmt.Errorf("find the device of %s: %w", origin.Name, err)
			}
		}
		if active {
			op.verb = verbRefresh
		}
		if tried {
			return volume.Location{}, fmt.Errorf("%s %s: the device has %d of %d bytes; lvm said %q", op.verb, id, loc.SizeBytes, lv.SizeBytes, said)
		}
		if _, err := b.queue.do(ctx, op); err != nil {
			return volume.Location{}, err
		}
		said = op.said
	}
}

// checkRecord returns volume.ErrIdentity for a record that is not of this volume
// in this group.
func (b *Backend) checkRecord(id string, rec volume.Record) error {
	return b.checkRecordOf(id, id, rec)
}

func (b *Backend) checkRecordOf(id, name string, rec volume.Record) error {
	if err := volume.ValidateID(id); err != nil {
		return err
	}
	if rec.LVM != nil && ValidateGroupName(rec.LVM.VGName) != nil {
		return fmt.Errorf("volume %s/%s: %w: the record names a volume group %q", b.group.GroupName, id, volume.ErrIdentity, rec.LVM.VGName)
	}
	if rec.Mode != volume.ModeLVM || rec.LVM == nil || rec.LVM.LVName != name ||
		rec.LVM.VGUUID != b.group.GroupUUID || !validUUID(rec.LVM.LVUUID) {
		return fmt.Errorf("volume %s/%s: %w: the record is of another volume", b.group.GroupName, id, volume.ErrIdentity)
	}
	return nil
}

func record(g *Group, lv *LogicalVolume) volume.Record {
	return volume.Record{
		Mode:      volume.ModeLVM,
		SizeBytes: lv.SizeBytes,
		LVM:       &volume.LVMRecord{VGName: g.Name, VGUUID: g.UUID, LVName: lv.Name, LVUUID: lv.UUID},
	}
}
