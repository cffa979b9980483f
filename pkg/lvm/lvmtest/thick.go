// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// A thick snapshot has a file of what it shows, which is all of its origin as it was. What it
// keeps, and what that takes of its extents, is told by comparing the two; it gets into the
// extents when the snapshot is made a plain volume.

const (
	thickChunk     = 4 << 10
	thickException = 16
	sectorBytes    = 512
)

func (h *Host) shownFile(lv *logicalVolume) string { return filepath.Join(h.dir, "shown-"+lv.uuid) }

// snapshotsOf are the thick snapshots of a volume.
func (g *group) snapshotsOf(origin *logicalVolume) (snapshots []*logicalVolume) {
	for _, lv := range g.volumes {
		if lv.thickOf == origin {
			snapshots = append(snapshots, lv)
		}
	}
	return snapshots
}

// roleOf is lv_role (lv_layout_and_role in lib/metadata/lv.c).
func (g *group) roleOf(lv *logicalVolume) []string {
	switch n := len(g.snapshotsOf(lv)); {
	case lv.thickOf != nil:
		return []string{"public", "snapshot", "thicksnapshot"}
	case n > 1:
		return []string{"public", "origin", "thickorigin", "multithickorigin"}
	case n > 0:
		return []string{"public", "origin", "thickorigin"}
	}
	return lv.role
}

// most is how many extents a snapshot of so many can use.
func (g *group) mostCow(origin *logicalVolume) int {
	chunks := origin.size() * g.extent / thickChunk
	sizeBytes := (1 + chunks + (chunks+255)/256) * thickChunk
	return int((sizeBytes + g.extent - 1) / g.extent)
}

func (p *process) createThickSnapshot(c command, within func() error) (string, error) {
	groupName, of, _ := strings.Cut(c.args[0], "/")
	g, refused := p.writable(c, groupName)
	if refused != "" {
		return refused, nil
	}
	origin, name := g.volume(of), c.value("--name")
	extents, _ := strconv.Atoi(c.value("--extents"))
	switch {
	case origin == nil:
		return fmt.Sprintf("Failed to find logical volume \"%s/%s\"", groupName, of), nil
	case g.volume(name) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, g.name), nil
	case origin.thickOf != nil:
		return "Snapshots of snapshots are not supported.", nil
	case g.isMoving(origin):
		return fmt.Sprintf("Can't create snapshot of locked logical volume %s/%s.", g.name, of), nil
	case extents <= 0:
		return "Unable to create new logical volume with no extents.", nil
	}
	found, refused := g.place(c, min(extents, g.mostCow(origin)))
	if refused != "" {
		return refused, nil
	}
	lv := &logicalVolume{name: name, uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"public"}, extents: found, readOnly: true}
	// It is a plain volume at first.
	g.volumes = append(g.volumes, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, origin)
	p.h.copyFile(origin.node, p.h.shownFile(lv))
	lv.thickOf = origin
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, origin)
	return "", nil
}

// split makes a snapshot a plain volume of what it has kept. Its device stays.
func (p *process) split(c command, within func() error) (string, error) {
	groupName, name, _ := strings.Cut(c.args[0], "/")
	g, refused := p.writable(c, groupName)
	if refused != "" {
		return refused, nil
	}
	lv := g.volume(name)
	switch {
	case lv == nil:
		return fmt.Sprintf("Failed to find logical volume \"%s/%s\"", groupName, name), nil
	case lv.thickOf == nil:
		return fmt.Sprintf("Command on LV %s/%s does not accept LV type linear.", groupName, name), nil
	case lv.node != "" && p.h.held[lv.node]:
		return fmt.Sprintf("Logical volume %s/%s in use.", g.name, lv.name), nil
	}
	p.h.makePlain(g, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	lv.stale = true
	return "", nil
}

// makePlain puts what a snapshot has kept into its extents.
func (h *Host) makePlain(g *group, lv *logicalVolume) {
	kept := h.kept(lv)
	lv.node, lv.thickOf = "", nil
	h.activate(g, lv)
	f := h.open(lv.node)
	defer h.close(f)
	at := int64(2 * thickChunk)
	for _, chunk := range kept {
		if at+thickChunk > int64(len(lv.extents))*g.extent {
			break
		}
		_, err := f.WriteAt(chunk, at)
		h.must(err)
		at += thickChunk
	}
}

// kept are the chunks of which a snapshot has the former content.
func (h *Host) kept(lv *logicalVolume) (chunks [][]byte) {
	if lv.thickOf == nil || lv.thickOf.node == "" {
		return nil
	}
	shown, err := os.Open(h.shownFile(lv))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	h.must(err)
	defer h.close(shown)
	now := h.open(lv.thickOf.node)
	defer h.close(now)
	info, err := shown.Stat()
	h.must(err)
	// Compared by much more than a chunk, for this runs with every command.
	const step = 256 << 10
	before, after := make([]byte, step), make([]byte, step)
	for at := h.nextData(info.Size(), 0, shown, now); at < info.Size(); at = h.nextData(info.Size(), at+step, shown, now) {
		at -= at % step
		length := min(step, info.Size()-at)
		_, err := shown.ReadAt(before[:length], at)
		h.must(err)
		_, err = now.ReadAt(after[:length], at)
		h.must(err)
		if bytes.Equal(before[:length], after[:length]) {
			continue
		}
		for chunk := int64(0); chunk < length; chunk += thickChunk {
			if old := before[chunk : chunk+thickChunk]; !bytes.Equal(old, after[chunk:chunk+thickChunk]) {
				chunks = append(chunks, bytes.Clone(old))
			}
		}
	}
	return chunks
}

// settle finds the snapshots that have become full.
func (h *Host) settle() {
	for _, g := range h.groups {
		for _, lv := range g.volumes {
			if lv.thickOf != nil && !lv.lost {
				status := h.snapshotStatus(g, lv)
				lv.lost = status.UsedSectors > status.TotalSectors
			}
		}
	}
}

func (h *Host) snapshotStatus(g *group, lv *logicalVolume) dm.Snapshot {
	if lv.lost {
		return dm.Snapshot{Lost: true}
	}
	chunks := len(h.kept(lv))
	lv.most = max(lv.most, chunks)
	tables := 2 + lv.most*thickException/thickChunk
	extents := int64(len(lv.extents))
	if lv.lags {
		extents--
	}
	return dm.Snapshot{
		UsedSectors:     uint64((tables + lv.most) * thickChunk / sectorBytes),
		TotalSectors:    uint64(extents * g.extent / sectorBytes),
		MetadataSectors: uint64(tables * thickChunk / sectorBytes),
	}
}

func (h *Host) copyFile(from, to string) {
	in := h.open(from)
	defer h.close(in)
	out := h.create(to)
	defer h.close(out)
	info, err := in.Stat()
	h.must(err)
	h.truncate(out, info.Size())
	const step = 1 << 20
	for at := int64(0); at < info.Size(); at += step {
		h.copyExtent(out, at, in, at, min(step, info.Size()-at))
	}
}

// rename is lvrename.
func (p *process) rename(c command, within func() error) (string, error) {
	g, refused := p.writable(c, c.args[0])
	if refused != "" {
		return refused, nil
	}
	from, to := c.args[1], c.args[2]
	lv := g.volume(from)
	switch {
	case lv == nil:
		return fmt.Sprintf("Existing logical volume %q not found in volume group %q", from, g.name), nil
	case g.volume(to) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", to, g.name), nil
	case g.isMoving(lv):
		return fmt.Sprintf("Can't rename locked logical volume %s/%s.", g.name, lv.name), nil
	}
	lv.name = to
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	if lv.node != "" {
		node := p.h.nodeFile(g, lv)
		p.h.must(os.Rename(lv.node, node))
		p.h.held[node] = p.h.held[lv.node]
		lv.node = node
	}
	return "", nil
}

func (n nodes) lv(id lvm.NodeID) (*group, *logicalVolume) {
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			if g.uuid == id.GroupUUID && lv.uuid == id.UUID && lv.node != "" {
				return g, lv
			}
		}
	}
	return nil, nil
}

// Snapshot implements lvm.Nodes.
func (n nodes) Snapshot(ctx context.Context, id lvm.NodeID) (dm.Snapshot, bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return dm.Snapshot{}, false, err
	}
	n.h.settle()
	g, lv := n.lv(id)
	switch {
	case lv == nil:
		return dm.Snapshot{}, false, nil
	case lv.thickOf == nil:
		return dm.Snapshot{}, false, fmt.Errorf("lvmtest: %s is no snapshot", lv.name)
	}
	return n.h.snapshotStatus(g, lv), true, nil
}

// OnCopy has f called in the middle of each copy, without the lock.
func (h *Host) OnCopy(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onCopy = f
}

// Copy implements lvm.Nodes.
func (n nodes) Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return err
	}
	n.h.settle()
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			if lv.node == from.Device && lv.lost {
				return fmt.Errorf("read %s: %w", from.Device, unix.EIO)
			}
		}
	}
	if n.h.held[to.Device] {
		return fmt.Errorf("open %s: %w", to.Device, volume.ErrInUse)
	}
	if err := n.h.step(); err != nil {
		return err
	}
	n.h.held[to.Device], n.h.held[from.Device] = true, true
	half, onCopy, boot := from.SizeBytes/2, n.h.onCopy, n.h.boot
	n.h.mu.Unlock()
	progress(half)
	if onCopy != nil {
		onCopy()
	}
	n.h.mu.Lock()
	if boot == n.h.boot {
		delete(n.h.held, to.Device)
		delete(n.h.held, from.Device)
	}
	if err := n.h.alive(ctx, n.boot); err != nil {
		return err
	}
	in := n.h.open(from.Device)
	defer n.h.close(in)
	out := n.h.open(to.Device)
	defer n.h.close(out)
	if err := block.Copy(ctx, in, out, from.SizeBytes, to.SizeBytes, progress); err != nil {
		return err
	}
	return n.h.step()
}

// OnWipe has f called at the start of each wipe.
func (h *Host) OnWipe(f func(policy volume.WipePolicy)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.onWipe = f
}

// DiskHolds reports whether a disk, or an active volume, holds those bytes.
func (h *Host) DiskHolds(content []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.disks {
		data, err := os.ReadFile(d.file)
		h.must(err)
		if bytes.Contains(data, content) {
			return true
		}
	}
	return false
}
