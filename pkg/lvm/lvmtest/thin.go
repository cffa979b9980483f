// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
)

// The bytes of a thin volume are in a sparse file of its own, and what it takes of its
// pool is what the file takes of the disk.

// chunkBytes is how much of the pool a first write takes.
const chunkBytes = 64 << 10

func (lv *logicalVolume) isThinPool() bool { return lv.metaBytes > 0 }

// size in extents.
func (lv *logicalVolume) size() int64 {
	if lv.thin != nil {
		return lv.virtual
	}
	if len(lv.parts) > 0 {
		lv = lv.data()
	}
	return int64(len(lv.extents))
}

func (lv *logicalVolume) poolUUID() string {
	if lv.thin == nil {
		return ""
	}
	return lv.thin.uuid
}

func (lv *logicalVolume) originUUID(g *group) string {
	if lv.thickOf != nil {
		return lv.thickOf.uuid
	}
	if lv.origin == nil {
		return ""
	}
	if there := g.volume(lv.origin.name); there == nil || there.uuid != lv.origin.uuid {
		return ""
	}
	return lv.origin.uuid
}

func (lv *logicalVolume) thinNumber() string {
	if lv.thin == nil {
		return ""
	}
	return strconv.FormatInt(lv.number, 10)
}

// nextNumber is the one that a new volume gets in its pool: lvm takes the one after the
// highest.
func (g *group) nextNumber(pool *logicalVolume) int64 {
	most := int64(0)
	for _, lv := range g.volumes {
		if lv.thin == pool {
			most = max(most, lv.number)
		}
	}
	return most + 1
}

func (lv *logicalVolume) metadataSize() string {
	if !lv.isThinPool() {
		return ""
	}
	return strconv.FormatInt(lv.metaBytes, 10)
}

func (lv *logicalVolume) whenFull() string {
	switch {
	case !lv.isThinPool():
		return ""
	case lv.failsWhenFull:
		return "error"
	}
	return "queue"
}

// zeroes is what lvm says of thin pools and their volumes.
func (lv *logicalVolume) zeroes() string {
	switch {
	case lv.thin != nil:
		return lv.thin.zeroes()
	case !lv.isThinPool():
		return "unknown"
	case lv.showsOldData:
		return ""
	}
	return "zero"
}

// poolParts are the rows of what lies below a thin pool, which lvs -a shows.
func (lv *logicalVolume) poolParts(g *group) (rows []map[string]string) {
	data := len(lv.metadata) / 2 //nolint:mnd // the other half is the spare
	for part, extents := range map[string][]extent{"data": lv.extents, "metadata": lv.metadata[:data]} {
		sub := &logicalVolume{
			name: "[" + lv.name + "_t" + strings.TrimSuffix(part, "data") + "]", uuid: lv.uuid[:len(lv.uuid)-6] + (part + "xx")[:6],
			role: []string{"private", "thin", "pool", part}, layout: lv.below, extents: extents,
		}
		for _, place := range g.places(extents) {
			fields := lvFields(g, sub)
			fields["lv_parent"], fields["devices"] = lv.name, place
			rows = append(rows, fields)
		}
	}
	return rows
}

// under are the extents that the volume stands on.
func (lv *logicalVolume) under() []extent {
	if lv.thin != nil {
		return lv.thin.under()
	}
	return slices.Concat(lv.extents, lv.metadata)
}

func (h *Host) thinFile(lv *logicalVolume) string { return filepath.Join(h.dir, "thin-"+lv.uuid) }

// activateThin activates a thin volume with its pool, or the pool alone, or gives its
// node the size of the metadata.
func (h *Host) activateThin(g *group, lv *logicalVolume) {
	if lv.thin == nil {
		lv.activateParts()
		lv.node, lv.lags = h.thinFile(lv), false
		return
	}
	h.activateThin(g, lv.thin)
	f, err := os.OpenFile(h.thinFile(lv), os.O_CREATE|os.O_RDWR, 0o600)
	h.must(err)
	defer h.close(f)
	h.truncate(f, lv.virtual*g.extent)
	lv.node = h.nodeFile(g, lv)
	h.link(h.thinFile(lv), lv.node)
}

func (h *Host) forgetThin(lv *logicalVolume) {
	if lv.thin == nil {
		return
	}
	if err := os.Remove(h.thinFile(lv)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.must(err)
	}
}

func (p *process) createThinPool(g *group, c command, within func() error) (string, error) {
	data, _ := strconv.Atoi(c.value("--extents"))
	where, refused := g.place(c, data)
	metaBytes, _ := strconv.ParseInt(strings.TrimSuffix(c.value("--poolmetadatasize"), "b"), 10, 64)
	meta := int((metaBytes + g.extent - 1) / g.extent)
	free := g.free()
	switch {
	case g.volume(c.value("--name")) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", c.value("--name"), g.name), nil
	case c.value("--zero") != "y":
		return "lvmtest: a pool that does not zero its chunks shows the data of others", nil
	case data <= 0 || meta <= 0 || data+2*meta > len(free):
		return fmt.Sprintf("Volume group %q has insufficient free space (%d extents): %d required.", g.name, len(free), data+2*meta), nil
	case refused != "":
		return refused, nil
	}
	free = slices.DeleteFunc(free, func(e extent) bool { return slices.Contains(where, e) })
	pool := &logicalVolume{
		name: c.value("--name"), uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"private"}, layout: "thin,pool",
		extents: where, metadata: slices.Clone(free[:2*meta]), metaBytes: int64(meta) * g.extent,
	}
	g.volumes = append(g.volumes, pool)
	g.seqno += 2
	if err := within(); err != nil {
		return "", err
	}
	p.h.activate(g, pool)
	return "", nil
}

func (p *process) createThin(g *group, c command, within func() error) (string, error) {
	pool, name := g.volume(c.value("--thinpool")), c.value("--name")
	bytes, _ := strconv.ParseInt(strings.TrimSuffix(c.value("--virtualsize"), "b"), 10, 64)
	switch {
	case pool == nil || !pool.isThinPool():
		return fmt.Sprintf("Thin pool %s/%s not found.", g.name, c.value("--thinpool")), nil
	case g.volume(name) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, g.name), nil
	case bytes <= 0 || bytes%g.extent != 0:
		return fmt.Sprintf("Rounding up size to full physical extent %d", bytes), nil
	}
	p.h.activate(g, pool)
	if used, threshold := p.h.thinUsage(g, pool).DataPercent(), p.threshold(c); used > threshold {
		return fmt.Sprintf("Free space in pool %s/%s is above threshold, new volumes are not allowed.", g.name, pool.name), nil
	}
	lv := &logicalVolume{
		name: name, uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"public"}, layout: "thin,sparse",
		thin: pool, virtual: bytes / g.extent, number: g.nextNumber(pool),
	}
	g.volumes = append(g.volumes, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	g.seqno++
	p.h.activate(g, lv)
	return "", nil
}

// createCopy makes a snapshot of a thin volume, which is a thin volume.
func (p *process) createCopy(c command, within func() error) (string, error) {
	groupName, of, _ := strings.Cut(c.args[0], "/")
	g, refused := p.writable(c, groupName)
	if refused != "" {
		return refused, nil
	}
	origin, name := g.volume(of), c.value("--name")
	switch {
	case origin == nil:
		return fmt.Sprintf("Failed to find logical volume \"%s/%s\"", groupName, of), nil
	case g.volume(name) != nil:
		return fmt.Sprintf("Logical Volume %q already exists in volume group %q", name, g.name), nil
	case origin.thin == nil:
		return "Please specify either size or extents with snapshots.", nil
	}
	p.h.activate(g, origin.thin)
	if used, threshold := p.h.thinUsage(g, origin.thin).DataPercent(), p.threshold(c); used > threshold {
		return fmt.Sprintf("Free space in pool %s/%s is above threshold, new volumes are not allowed.", g.name, origin.thin.name), nil
	}
	lv := &logicalVolume{
		name: name, uuid: p.h.newUUID(), tags: c.flags["--addtag"], role: []string{"public", "snapshot", "thinsnapshot"}, layout: "thin,sparse",
		thin: origin.thin, virtual: origin.virtual, origin: origin, number: g.nextNumber(origin.thin),
	}
	if origin.suspended {
		return "lvmtest: the pool's transactions would differ from lvm's, for the origin is suspended already", nil
	}
	origin.suspended = origin.node != ""
	p.h.copyThin(g, origin, lv)
	// As lv_layout_and_role in lib/metadata/lv.c says it.
	switch {
	case !slices.Contains(origin.role, "thinorigin"):
		origin.role = append(slices.Clone(origin.role), "origin", "thinorigin")
	case !slices.Contains(origin.role, "multithinorigin"):
		origin.role = append(slices.Clone(origin.role), "multithinorigin")
	}
	g.volumes = append(g.volumes, lv)
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	origin.suspended = false
	g.seqno++
	if c.value("--activate") == "y" {
		p.h.activate(g, lv)
	}
	return "", nil
}

// copyThin copies what a thin volume holds, and leaves holes where it has some.
func (h *Host) copyThin(g *group, from, to *logicalVolume) {
	out := h.create(h.thinFile(to))
	defer h.close(out)
	h.truncate(out, to.virtual*g.extent)
	in, err := os.Open(h.thinFile(from))
	if errors.Is(err, fs.ErrNotExist) {
		return // it was never active
	}
	h.must(err)
	defer h.close(in)
	for i := range from.virtual {
		h.copyExtent(out, i*g.extent, in, i*g.extent, g.extent)
	}
}

// threshold is the one that the command is told, or lvm's default.
func (p *process) threshold(c command) int {
	for _, word := range strings.FieldsFunc(c.value("--config"), func(r rune) bool { return strings.ContainsRune(" {}", r) }) {
		if value, ok := strings.CutPrefix(word, "thin_pool_autoextend_threshold="); ok {
			n, err := strconv.Atoi(value)
			p.h.must(err)
			return n
		}
	}
	return 100
}

func (p *process) extendThin(g *group, lv *logicalVolume, c command, within func() error) (string, error) {
	if lv.thin != nil {
		extents, _ := strconv.ParseInt(c.value("--extents"), 10, 64)
		if extents <= lv.virtual {
			return fmt.Sprintf("New size given (%d extents) not larger than existing size (%d extents)", extents, lv.virtual), nil
		}
		lv.virtual = extents
	} else {
		bytes, _ := strconv.ParseInt(strings.TrimSuffix(c.value("--poolmetadatasize"), "b"), 10, 64)
		if len(lv.parts) > 0 {
			return p.extendMetadata(g, lv, c, bytes, within)
		}
		more := int((bytes - lv.metaBytes + g.extent - 1) / g.extent)
		free := g.free()
		if more <= 0 || 2*more > len(free) {
			return fmt.Sprintf("Insufficient free space: %d extents needed, but only %d available", 2*more, len(free)), nil
		}
		lv.metadata = append(lv.metadata, free[:2*more]...)
		lv.metaBytes += int64(more) * g.extent
	}
	g.seqno++
	if err := within(); err != nil {
		return "", err
	}
	if lv.node != "" {
		p.h.activateThin(g, lv)
	}
	return "", nil
}

func (h *Host) thinUsage(g *group, pool *logicalVolume) dm.ThinPool {
	const metadataBlock = 4096
	u := dm.ThinPool{
		Mode: dm.ThinPoolWritable, FailsWhenFull: pool.failsWhenFull,
		MetadataUsed: 10, MetadataBlocks: uint64(pool.metaBytes / metadataBlock),
		DataBlocks: uint64(pool.size() * g.extent / chunkBytes),
		HeldRoot:   pool.heldRoot, ChunkBytes: chunkBytes,
	}
	if pool.lags {
		u.DataBlocks /= 2
	}
	if !pool.unmarked {
		u.LowWaterBlocks = max(1, u.DataBlocks/5)
	}
	for _, lv := range g.volumes {
		if lv.thin != pool {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(h.thinFile(lv), &st); err == nil {
			u.DataUsed += (uint64(st.Blocks)*512 + chunkBytes - 1) / chunkBytes
			u.MetadataUsed++
		}
	}
	if u.DataUsed >= u.DataBlocks {
		u.DataUsed, u.Mode = u.DataBlocks, dm.ThinPoolOutOfData
	}
	u.MetadataUsed = min(u.MetadataBlocks, u.MetadataUsed+h.moreMetadata)
	return u
}

// ThinPool implements lvm.Nodes.
func (n nodes) ThinPool(ctx context.Context, id lvm.NodeID) (dm.ThinPool, bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return dm.ThinPool{}, false, err
	}
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			if g.uuid == id.GroupUUID && lv.uuid == id.UUID && lv.node != "" {
				return n.h.thinUsage(g, lv), true, nil
			}
		}
	}
	return dm.ThinPool{}, false, nil
}

// FillMetadata lets thin pools say that many more blocks of their metadata are in use.
func (h *Host) FillMetadata(blocks uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moreMetadata = blocks
}
