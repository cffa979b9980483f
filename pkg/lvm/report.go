// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
)

// errReport: what lvm printed is no complete report. It proves nothing, neither
// presence nor absence (I4).
var errReport = errors.New("lvm gave no complete report")

// Report is one complete and consistent look at the volume groups on the devices
// that a command was shown.
type Report struct {
	// Groups by UUID.
	Groups []*Group
	// Orphans are physical volumes without a volume group.
	Orphans []PhysicalVolume
	// Lost are physical volumes that say they are in use and of whose volume group lvm
	// found no metadata that it can read.
	Lost []PhysicalVolume
}

// Group is a volume group as one report shows it. It is never changed afterwards.
type Group struct {
	Name string
	UUID string
	// Seqno counts the changes of the group's metadata.
	Seqno uint64
	// SizeBytes, ExtentBytes: the group has Extents extents of ExtentBytes each.
	SizeBytes   int64
	ExtentBytes int64
	Extents     int64
	FreeExtents int64
	Tags        []string
	// SystemID is the host that the group belongs to, if it says so.
	SystemID string
	Exported bool
	// MissingPVs is how many physical volumes were not found on the devices shown.
	MissingPVs int
	// MetadataBytes and MetadataFreeBytes are the size of the smallest metadata area
	// and what is free in the fullest.
	MetadataBytes     int64
	MetadataFreeBytes int64
	PVs               []PhysicalVolume
	LVs               []LogicalVolume

	// hidden is true when lvm showed the group but not its logical volumes: it is
	// exported, or belongs to another host.
	hidden bool
	// duplicates is true when a physical volume was found on more than one device.
	duplicates bool
	pvCount    int
	lvCount    int
	// below are the data and the metadata of the group's own thin pool where they have legs;
	// lostSpare is the space that lvm keeps to repair such metadata, where its device is
	// missing. Only in a report with legs.
	below     []LogicalVolume
	lostSpare *LogicalVolume
	// segments of all devices, in a report that was asked for them.
	segments     []segment
	withSegments bool
	// adopted is the thin pool of somebody else that is used; nil for one of ours.
	adopted *ThinPoolID
	// names and uuids find the volumes; nil in a group that no report has shown.
	names, uuids map[string]*LogicalVolume
	// behind are the images that miss what was written while their device was away, by the
	// node's journal, as it is now; nil when nobody keeps one.
	behind *atomic.Pointer[[]string]
}

// PhysicalVolume is a device of a volume group.
type PhysicalVolume struct {
	UUID string
	// Path on the host right now; empty when the device is missing.
	Path string
	// ReturnedPath is where a device is that lvm still counts as missing, because the group
	// was changed while it was away; empty for all others.
	ReturnedPath string
	SizeBytes    int64
	// Extents of it, and how many of them are free.
	Extents, FreeExtents int64
	// Closed: nothing new is put on it (pvchange --allocatable n).
	Closed bool
}

// LogicalVolume is a volume of a volume group, as its metadata describes it.
type LogicalVolume struct {
	Name      string
	UUID      string
	SizeBytes int64
	// AreaBytes is the size of what a thick snapshot keeps, whose SizeBytes are its origin's;
	// 0 for others.
	AreaBytes int64
	Tags      []string
	Layout    []string
	Role      []string
	// PoolUUID is the thin pool of a thin volume, OriginUUID what a snapshot was made
	// of; empty for others.
	PoolUUID   string
	OriginUUID string
	// ThinNumber is what a thin pool knows its volume by; only in a report that was asked
	// for it, and 0 for others.
	ThinNumber int64
	// MetadataBytes is the size of a thin pool's metadata, 0 for others.
	MetadataBytes int64
	// FailsWhenFull is true for a thin pool whose writes fail when it is full.
	FailsWhenFull bool
	// ShowsOldData is true for a thin pool whose volumes show what was in a chunk before they
	// got it; only in a report that was asked for it.
	ShowsOldData bool
	// below are the layouts of what a thin pool lies on, in a report with legs.
	below [][]string
	// Legs of a volume of a redundant layout; only in a report that was asked for them.
	Legs []Leg
	// Unfinished: lvm has not come to the end of making it, or a part of it. It cannot be
	// activated.
	Unfinished bool

	groupUUID  string
	groupSeqno uint64
	// Only in a report with legs: the volume that it is a part of, whether it is hidden from
	// lvm's users, the devices that it lies on itself, the volumes that it lies on, in order,
	// and whether another device is missing.
	parent    string
	hidden    bool
	on        []string
	onVolumes []string
	partial   bool
	// segmented: the report has a row for each of its segments.
	segmented bool
	// ofPool: it is the data or the metadata of the group's own thin pool.
	ofPool bool
}

// Volume returns the logical volume of that name, or nil. The parts of a redundant thin pool
// are found by their names, too.
func (g *Group) Volume(name string) *LogicalVolume {
	if g.names != nil {
		return g.names[name]
	}
	return g.find(func(lv *LogicalVolume) bool { return lv.Name == name })
}

func (g *Group) volumeByUUID(uuid string) *LogicalVolume {
	if g.uuids != nil {
		return g.uuids[uuid]
	}
	return g.find(func(lv *LogicalVolume) bool { return lv.UUID == uuid })
}

// index lets the volumes be found, of which there may be thousands. They do not move any more.
func (g *Group) index() {
	g.names, g.uuids = make(map[string]*LogicalVolume, len(g.LVs)), make(map[string]*LogicalVolume, len(g.LVs))
	for lv := range g.each() {
		g.names[lv.Name], g.uuids[lv.UUID] = lv, lv
	}
}

// device returns the physical volume with that UUID, or nil.
func (g *Group) device(uuid string) *PhysicalVolume {
	if i := slices.IndexFunc(g.PVs, func(pv PhysicalVolume) bool { return pv.UUID == uuid }); i >= 0 {
		return &g.PVs[i]
	}
	return nil
}

func (g *Group) find(match func(*LogicalVolume) bool) *LogicalVolume {
	for lv := range g.each() {
		if match(lv) {
			return lv
		}
	}
	return nil
}

// each yields the volumes, and then the parts of a redundant thin pool.
func (g *Group) each() iter.Seq[*LogicalVolume] {
	return func(yield func(*LogicalVolume) bool) {
		for _, volumes := range [][]LogicalVolume{g.LVs, g.below} {
			for i := range volumes {
				if !yield(&volumes[i]) {
					return
				}
			}
		}
	}
}

// Group returns the group with that UUID, or nil.
func (r *Report) Group(uuid string) *Group {
	if i := slices.IndexFunc(r.Groups, func(g *Group) bool { return g.UUID == uuid }); i >= 0 {
		return r.Groups[i]
	}
	return nil
}

// unknownGroup is what lvm shows as a group's name when it cannot read any of its
// metadata (_pvs_single and _vgname_disp in lib/report/report.c). No group can have it.
const unknownGroup = "[unknown]"

// The fields that are asked for. None of them makes lvm ask device-mapper, so a
// report costs little also with thousands of volumes.
const (
	volumeFields = "vg_uuid,vg_seqno,lv_uuid,lv_name,lv_size,lv_tags,lv_layout,lv_role,pool_lv_uuid,origin_uuid,lv_metadata_size,lv_when_full"
	// legFields are asked for in addition where volumes have legs.
	legFields = "lv_parent,devices"
	// thinFields are asked for in addition where volumes are thin.
	thinFields = "thin_id"
	// poolFields are asked for in addition where a thin pool is somebody else's.
	poolFields   = "zero"
	deviceFields = "pv_uuid,pv_name,pv_missing,pv_allocatable,dev_size,pv_pe_count,pv_pe_alloc_count,vg_uuid,vg_name,vg_seqno,vg_size,vg_extent_size,vg_extent_count," +
		"vg_free_count,vg_tags,vg_systemid,vg_exported,vg_missing_pv_count,pv_count,lv_count,vg_mda_size,vg_mda_free"
)

// ParseReport reads what the report commands of a Client print: a row per
// logical volume and then one per physical volume with the fields of its group,
// as KEY='value' pairs (--nameprefixes, lib/report in libdevmapper:
// _output_field). It returns an error unless the rows are complete and
// contradict each other nowhere. A third report may follow, of segments.
func ParseReport(out []byte) (*Report, error) {
	var volumes volumeRows
	var segments []segment
	var row row
	report := &Report{}
	for line := range bytes.Lines(out) {
		text := strings.TrimSpace(string(line))
		if text == "" {
			continue
		}
		err := row.read(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errReport, err)
		}
		_, ofVolume := row.field("LV_UUID")
		_, ofSegment := row.field("PVSEG_START")
		switch {
		case ofSegment:
			segments = append(segments, row.segment())
		case ofVolume:
			err = volumes.add(row.volume())
		default:
			report.addDevice(&row)
		}
		if err := errors.Join(row.err, err); err != nil {
			return nil, fmt.Errorf("%w: %w", errReport, err)
		}
	}
	if len(report.Groups) == 0 && len(volumes.all) > 0 {
		return nil, fmt.Errorf("%w: volumes without a volume group", errReport)
	}
	if err := errors.Join(report.complete(volumes.all), report.attachSegments(segments)); err != nil {
		return nil, fmt.Errorf("%w: %w", errReport, err)
	}
	return report, nil
}

// volumeRows are the volumes of a report in the order of its rows.
type volumeRows struct {
	all []LogicalVolume
	// at is where a volume is that may have further rows, by its UUID.
	at map[string]int
}

// add adds a row. A report with legs or thin numbers has a row for each piece of a volume.
func (r *volumeRows) add(lv LogicalVolume) error {
	if len(lv.on) == 0 && !lv.partial && !lv.segmented {
		r.all = append(r.all, lv)
		return nil
	}
	i, shown := r.at[lv.UUID]
	if !shown {
		if r.at == nil {
			r.at = map[string]int{}
		}
		r.at[lv.UUID] = len(r.all)
		r.all = append(r.all, lv)
		return nil
	}
	known := &r.all[i]
	if known.Name != lv.Name || known.SizeBytes != lv.SizeBytes || known.groupSeqno != lv.groupSeqno || known.ThinNumber != lv.ThinNumber {
		return fmt.Errorf("volume %s is shown as two", lv.Name)
	}
	known.addSegment(lv.on, lv.partial)
	return nil
}

// complete attaches the volumes to their groups and proves that nothing is
// missing: the counts that lvm keeps agree with the rows, and all rows show the
// same generation of the metadata.
func (r *Report) complete(volumes []LogicalVolume) error {
	type key struct {
		group *Group
		what  string
	}
	names, uuids := make(map[key]bool, len(volumes)), make(map[key]bool, len(volumes))
	for i := range volumes {
		lv := &volumes[i]
		g := r.Group(lv.groupUUID)
		switch name, uuid := (key{g, lv.Name}), (key{g, lv.UUID}); {
		case g == nil:
			return fmt.Errorf("volume %s belongs to a volume group that is not shown", lv.Name)
		case g.Seqno != lv.groupSeqno:
			return fmt.Errorf("volume group %s changed from %d to %d while it was read", g.Name, lv.groupSeqno, g.Seqno)
		case names[name] || uuids[uuid]:
			return fmt.Errorf("volume %s/%s is shown twice", g.Name, lv.Name)
		default:
			names[name], uuids[uuid] = true, true
		}
		g.LVs = append(g.LVs, *lv)
	}
	for _, g := range r.Groups {
		if len(g.PVs) != g.pvCount {
			return fmt.Errorf("volume group %s has %d physical volumes, %d are shown", g.Name, g.pvCount, len(g.PVs))
		}
		g.hidden = g.Exported || g.SystemID != "" && g.lvCount > 0 && len(g.LVs) == 0
		shown := 0
		for i := range g.LVs {
			if !g.LVs[i].hidden {
				shown++
			}
		}
		if shown != g.lvCount && !g.hidden {
			return fmt.Errorf("volume group %s has %d volumes, %d are shown", g.Name, g.lvCount, shown)
		}
		if err := g.attachLegs(); err != nil {
			return err
		}
		g.sizeSnapshots()
	}
	return nil
}

func (r *Report) addDevice(row *row) {
	pv := PhysicalVolume{UUID: row.uuid("PV_UUID"), Path: row.text("PV_NAME"), SizeBytes: row.number("DEV_SIZE")}
	pv.Extents = row.number("PV_PE_COUNT")
	if pv.FreeExtents = pv.Extents - row.number("PV_PE_ALLOC_COUNT"); pv.FreeExtents < 0 {
		row.fail("%s has %d extents and %d more in use", pv.Path, pv.Extents, -pv.FreeExtents)
	}
	// A field that was not asked for says nothing.
	allocatable, asked := row.field("PV_ALLOCATABLE")
	pv.Closed = asked && allocatable == ""
	if row.text("PV_MISSING") != "" {
		if strings.HasPrefix(pv.Path, "/") {
			pv.ReturnedPath = pv.Path
		}
		pv.Path, pv.SizeBytes = "", 0
	}
	switch row.text("VG_NAME") {
	case "":
		r.Orphans = append(r.Orphans, pv)
		return
	case unknownGroup:
		r.Lost = append(r.Lost, pv)
		return
	}
	g := &Group{
		Name:              row.text("VG_NAME"),
		UUID:              row.uuid("VG_UUID"),
		Seqno:             uint64(row.number("VG_SEQNO")),
		SizeBytes:         row.number("VG_SIZE"),
		ExtentBytes:       row.number("VG_EXTENT_SIZE"),
		Extents:           row.number("VG_EXTENT_COUNT"),
		FreeExtents:       row.number("VG_FREE_COUNT"),
		Tags:              row.list("VG_TAGS"),
		SystemID:          row.text("VG_SYSTEMID"),
		Exported:          row.text("VG_EXPORTED") != "",
		MissingPVs:        int(row.number("VG_MISSING_PV_COUNT")),
		MetadataBytes:     row.number("VG_MDA_SIZE"),
		MetadataFreeBytes: row.number("VG_MDA_FREE"),
		pvCount:           int(row.number("PV_COUNT")),
		lvCount:           int(row.number("LV_COUNT")),
	}
	if row.err == nil && (g.ExtentBytes == 0 || g.FreeExtents > g.Extents) {
		row.err = fmt.Errorf("volume group %s has %d free of %d extents of %d bytes", g.Name, g.FreeExtents, g.Extents, g.ExtentBytes)
	}
	known := r.Group(g.UUID)
	switch {
	case known == nil:
		known = g
		r.Groups = append(r.Groups, g)
	case known.Seqno != g.Seqno || known.Name != g.Name:
		row.err = fmt.Errorf("volume group %s is shown as two", g.Name)
	}
	known.PVs = append(known.PVs, pv)
}
