// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"os"
	"strings"
	"testing"
)

// What lvm 2.03.31 printed while it moved a volume from /dev/vdk to /dev/vdm; a thin pool and
// the leg of a mirrored volume are still on the disk.
func TestReportOfAMove(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/moved.report")
	if err != nil {
		t.Fatal(err)
	}
	report, err := ParseReport(text)
	if err != nil {
		t.Fatal(err)
	}
	g := report.Groups[0]
	m := g.move()
	if m == nil || m.name != "pvmove0" || m.from != "/dev/vdk" || m.extents != 15 || g.device(m.fromUUID).Path != m.from {
		t.Errorf("what is moved: %+v", m)
	}
	from := g.deviceAt("/dev/vdk")
	if !from.Closed || g.deviceAt("/dev/vdl").Closed || g.deviceAt("/dev/vdm").Closed {
		t.Errorf("closed: %+v", g.PVs)
	}
	if open := g.openExtents(); open != g.FreeExtents-from.Extents {
		t.Errorf("%d extents can be handed out, of %d free ones", open, g.FreeExtents)
	}
	var lies []string
	for _, s := range g.on(from.UUID) {
		lies = append(lies, s.name)
	}
	const want = "lvol0_pmspare thin_tdata thin_tmeta pvmove0_mimage_0 11111111-0000-4000-8000-000000000002_rmeta_0 11111111-0000-4000-8000-000000000002_rimage_0"
	if got := strings.Join(lies, " "); got != want {
		t.Errorf("on the disk are %s", got)
	}
	// The leg goes with its metadata, and not to where the other leg is.
	for _, s := range g.on(from.UUID) {
		runs, to := g.moveOf(from, s)
		if s.isLeg() && (len(runs) != 2 || len(to) != 1 || to[0] != "/dev/vdm") {
			t.Errorf("%s: %v to %v", s.name, runs, to)
		}
		if s.name == "thin_tdata" && (len(runs) != 1 || runs[0].extents != 25 || len(to) != 2) {
			t.Errorf("%s: %v to %v", s.name, runs, to)
		}
	}
	for name, change := range map[string][2]string{
		"a segment less":       {"LVM2_PVSEG_SIZE='25'", "LVM2_PVSEG_SIZE='24'"},
		"another generation":   {"LVM2_VG_SEQNO='9' LVM2_PV_UUID", "LVM2_VG_SEQNO='8' LVM2_PV_UUID"},
		"of a group not shown": {"LVM2_VG_UUID='" + g.UUID + "' LVM2_VG_SEQNO='9' LVM2_PV_UUID", "LVM2_VG_UUID='000000-0000-0000-0000-0000-0000-000000' LVM2_VG_SEQNO='9' LVM2_PV_UUID"},
	} {
		broken := strings.Replace(string(text), change[0], change[1], 1)
		if broken == string(text) {
			t.Fatalf("%s: nothing changed", name)
		}
		if report, err := ParseReport([]byte(broken)); err == nil {
			t.Errorf("%s is taken: %+v", name, report)
		}
	}
}
