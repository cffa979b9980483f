// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
)

// A report costs as much as the change before it, and more the more volumes a group has. What
// making, growing and removing plain volumes does to a group stands in its metadata, which are
// read from its devices below lvm, and are whole by their checksum: of a group that was known
// from a report before, the two texts tell how it is now. Where they tell anything else, lvm is
// asked.

// follow returns the group as it is with the metadata after, which was as g is with the metadata
// before; nil where the two differ in more than in plain volumes.
func (g *Group) follow(before, after *sections) *Group {
	if before.seqno != g.Seqno || before.head != after.head {
		return nil
	}
	var made, gone []plainVolume
	for name, section := range after.volumes {
		was := before.volumes[name]
		if was == section || samePool(was, section) {
			continue
		}
		v, ok := after.plain(name, g.ExtentBytes)
		if !ok {
			return nil
		}
		made = append(made, v)
	}
	for name, section := range before.volumes {
		is := after.volumes[name]
		if is == section || samePool(is, section) {
			continue
		}
		v, ok := before.plain(name, g.ExtentBytes)
		if known := g.Volume(name); !ok || known == nil || known.UUID != v.lv.UUID || !isPlain(known) {
			return nil
		}
		gone = append(gone, v)
	}
	next := g.with(made, gone, after)
	if next != nil {
		next.MetadataFreeBytes = max(0, g.MetadataFreeBytes+metadataFree(g.MetadataBytes, after.sizeBytes)-metadataFree(g.MetadataBytes, before.sizeBytes))
	}
	return next
}

// with returns the group without some volumes and with others; nil where that contradicts itself.
func (g *Group) with(made, gone []plainVolume, after *sections) *Group {
	next := *g
	next.Seqno = after.seqno
	next.segments, next.withSegments = nil, false // lvm is asked where volumes lie when it matters
	next.PVs = slices.Clone(g.PVs)
	next.LVs = slices.DeleteFunc(slices.Clone(g.LVs), func(lv LogicalVolume) bool {
		return slices.ContainsFunc(gone, func(v plainVolume) bool { return v.lv.UUID == lv.UUID })
	})
	for _, v := range made {
		if v.pool != "" {
			pool := g.Volume(v.pool)
			if pool == nil {
				return nil
			}
			v.lv.PoolUUID = pool.UUID
		}
		v.lv.own()
		v.lv.groupUUID = g.UUID
		next.LVs = append(next.LVs, v.lv)
		if !next.take(v, after, 1) {
			return nil
		}
	}
	for _, v := range gone {
		if !next.take(v, after, -1) {
			return nil
		}
	}
	for i := range next.LVs {
		next.LVs[i].groupSeqno = next.Seqno
	}
	slices.SortStableFunc(next.LVs, func(a, b LogicalVolume) int { return cmp.Compare(a.Name, b.Name) })
	next.lvCount += len(made) - len(gone)
	if len(next.LVs) != next.lvCount || !next.countsFree() {
		return nil
	}
	next.index()
	return &next
}

// own gives a volume its words for itself. They are parts of the text of the generation in which it
// was made, all of which would stay in memory as long as the volume is known, and so for each volume.
func (lv *LogicalVolume) own() {
	lv.Name, lv.UUID = strings.Clone(lv.Name), strings.Clone(lv.UUID)
	for i := range lv.Tags {
		lv.Tags[i] = strings.Clone(lv.Tags[i])
	}
}

// take counts the extents of a volume, by sign, as taken from the group's devices.
func (g *Group) take(v plainVolume, s *sections, sign int64) bool {
	for name, extents := range v.extents {
		i := slices.IndexFunc(g.PVs, func(pv PhysicalVolume) bool { return pv.UUID == s.devices[name] })
		if i < 0 {
			return false
		}
		g.PVs[i].FreeExtents -= sign * extents
		g.FreeExtents -= sign * extents
	}
	return true
}

// countsFree reports whether no device has more free extents than extents, or less than none.
func (g *Group) countsFree() bool {
	return g.FreeExtents >= 0 && g.FreeExtents <= g.Extents &&
		!slices.ContainsFunc(g.PVs, func(pv PhysicalVolume) bool { return pv.FreeExtents < 0 || pv.FreeExtents > pv.Extents })
}

// metadataFree is how much larger a text may become in an area, half of which must stay free for
// the next one (raw_write_mda_header and read_metadata_location_summary in
// lib/format_text/format-text.c). It ends with a zero byte.
func metadataFree(areaBytes, textBytes int64) int64 {
	return ((areaBytes-mdaHeaderBytes)/2 - sectorBytes - textBytes - 1) / sectorBytes * sectorBytes
}

// isPlain reports whether a report says nothing of a volume that is not in its own section.
func isPlain(lv *LogicalVolume) bool {
	return len(lv.Role) == 1 && lv.Role[0] == "public" && lv.OriginUUID == "" && len(lv.Legs) == 0 &&
		(slices.Equal(lv.Layout, []string{"linear"}) || slices.Equal(lv.Layout, []string{"striped"}) || lv.PoolUUID != "")
}

// followable reports whether all that the plan does is done to plain volumes.
func (p *plan) followable(s *sections) bool {
	for _, op := range p.acting {
		switch op.verb {
		case verbCreate, verbGrow, verbRemove, verbHandOut, verbActivate, verbRefresh:
		default:
			return false
		}
		if lv := p.group.Volume(op.name); lv != nil {
			if _, ok := s.plain(op.name, p.group.ExtentBytes); !ok || !isPlain(lv) {
				return false
			}
		}
	}
	return true
}

// sectionsBefore returns the metadata of a group that is about to be changed; nil where only a
// report can say what becomes of it.
func (q *queue) sectionsBefore(p *plan, g *Group) *sections {
	if q.layout.Redundant() || q.pool != nil || q.segmented.Load() || q.seqno == nil || g.State() != StateReady {
		return nil
	}
	s := q.text
	if s == nil || s.seqno != g.Seqno {
		if s = q.readSections(g, g.Seqno); s == nil || !s.agrees(g) {
			return nil
		}
		q.text = s
	}
	if !p.followable(s) {
		return nil
	}
	return s
}

// agrees reports whether a group is as its metadata say, as far as its plain volumes go, and has all
// volumes that these have. What is followed from then on rests on both. The generation alone does not
// tell: what vgcfgrestore has put in the place of the last change has the same (backup_restore_vg in
// lib/format_text/archiver.c adds one to that of the file).
func (s *sections) agrees(g *Group) bool {
	for i := range g.LVs {
		lv := &g.LVs[i]
		if !strings.Contains(s.volumes[lv.Name], "\nid = \""+lv.UUID+"\"\n") {
			return false
		}
		if v, ok := s.plain(lv.Name, g.ExtentBytes); ok && isPlain(lv) && (v.lv.SizeBytes != lv.SizeBytes || !slices.Equal(v.lv.Layout, lv.Layout)) {
			return false
		}
	}
	for name := range s.volumes {
		if _, ok := s.plain(name, g.ExtentBytes); ok && g.Volume(name) == nil {
			return false
		}
	}
	return len(s.devices) == len(g.PVs) && !slices.ContainsFunc(slices.Collect(maps.Values(s.devices)), func(uuid string) bool { return g.device(uuid) == nil })
}

// readSections reads a generation of the metadata from the group's devices.
func (q *queue) readSections(g *Group, seqno uint64) *sections {
	for _, pv := range g.PVs {
		text, err := q.metadata.Text(pv.Path, g.UUID, seqno)
		if err != nil || text == nil {
			continue
		}
		if s, err := parseSections(text); err == nil && s.seqno == seqno {
			return s
		}
	}
	return nil
}

// actAndFollow is act without a report.
func (q *queue) actAndFollow(ctx context.Context, p *plan, before *sections) (*Group, []byte, error) {
	q.known, q.text = nil, nil
	stderr, err := q.client.run(ctx, q.session(p.settings()), p.commands)
	if err != nil {
		return q.afterwards(ctx, stderr, err)
	}
	if len(duplicates(stderr)) == 0 {
		if next := q.followed(p, before); next != nil {
			q.known = next
			if q.compare != nil {
				q.compare(next)
			}
			return next, stderr, nil
		}
	}
	next, err := q.observe(ctx)
	return next, stderr, err
}

// followed returns how the group is now; nil where only a report can say it.
func (q *queue) followed(p *plan, before *sections) *Group {
	g := p.group
	var seqno uint64
	for _, pv := range g.PVs {
		uuid, found, ok, err := q.seqno(pv.Path)
		if err != nil || ok && (uuid != g.UUID || seqno != 0 && found != seqno) {
			return nil
		}
		if ok {
			seqno = found
		}
	}
	if seqno == g.Seqno && !slices.ContainsFunc(p.acting, (*operation).inMetadata) {
		q.text = before
		return g
	}
	if seqno <= g.Seqno {
		return nil // lvm has refused something: perhaps the group is not as it was taken to be
	}
	after := q.readSections(g, seqno)
	if after == nil {
		return nil
	}
	next := g.follow(before, after)
	if next != nil {
		q.text = after
	}
	return next
}
