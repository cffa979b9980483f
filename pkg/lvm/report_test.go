// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"embed"
	"io/fs"
	"path"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
)

// Reports of the real lvm (2.03.16, on loop devices; those with legs 2.03.31, on a node of
// the testbed). The role of the volume
// "origin" was written in by hand: snapshots need device-mapper.
//
//go:embed testdata/*.report
var reports embed.FS

func readReport(t testing.TB, name string) string {
	t.Helper()
	data, err := fs.ReadFile(reports, path.Join("testdata", name+".report"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestParseReport(t *testing.T) {
	t.Parallel()
	report, err := lvm.ParseReport([]byte(readReport(t, "volumes")))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Groups) != 1 {
		t.Fatalf("%d groups", len(report.Groups))
	}
	g := report.Groups[0]
	if g.Name == "" || g.ExtentBytes != 4<<20 || g.Extents == 0 || g.FreeExtents >= g.Extents || g.Seqno == 0 || len(g.PVs) != 1 || len(g.LVs) != 3 {
		t.Errorf("the group is read as %+v", g)
	}
	lv := g.Volume("11111111-0000-4000-8000-000000000001")
	if lv == nil || lv.SizeBytes != 8<<20 || !reflect.DeepEqual(lv.Layout, []string{"linear"}) ||
		!reflect.DeepEqual(lv.Role, []string{"public"}) || !reflect.DeepEqual(lv.Tags, []string{"berth.dev/volume=pvc-1"}) {
		t.Errorf("the volume is read as %+v", lv)
	}
	if origin := g.Volume("origin"); origin == nil || reflect.DeepEqual(origin.Role, []string{"public"}) {
		t.Errorf("the origin of a snapshot is read as %+v", origin)
	}
}

func TestParseReportStates(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]lvm.State{
		"empty-group": lvm.StateReady, "partial": lvm.StatePartial, "exported": lvm.StateExported, "foreign": lvm.StateForeign,
	} {
		report, err := lvm.ParseReport([]byte(readReport(t, name)))
		if err != nil || len(report.Groups) != 1 {
			t.Errorf("%s: %+v, %v", name, report, err)
			continue
		}
		if got := report.Groups[0].State(); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	report, err := lvm.ParseReport([]byte(readReport(t, "orphan")))
	if err != nil || len(report.Groups) != 0 || len(report.Orphans) != 1 || report.Orphans[0].Path == "" {
		t.Errorf("orphan: %+v, %v", report, err)
	}
	if report, err := lvm.ParseReport(nil); err != nil || len(report.Groups)+len(report.Orphans) != 0 {
		t.Errorf("a host without lvm volumes: %+v, %v", report, err)
	}
}

// A report that is not whole is none: not one character may be missing.
func TestParseReportIncomplete(t *testing.T) {
	t.Parallel()
	whole := readReport(t, "volumes")
	trimmed := len(strings.TrimRight(whole, "\n"))
	for n := 1; n < trimmed; n++ {
		if report, err := lvm.ParseReport([]byte(whole[:n])); err == nil && strings.TrimSpace(whole[:n]) != "" {
			t.Fatalf("the first %d of %d bytes are taken for a report: %+v", n, trimmed, report)
		}
	}
	lines := strings.SplitAfter(strings.TrimRight(whole, "\n"), "\n")
	for i := range lines {
		var rest strings.Builder
		for j, line := range lines {
			if j != i {
				rest.WriteString(line)
			}
		}
		if report, err := lvm.ParseReport([]byte(rest.String())); err == nil {
			t.Errorf("the report without line %d is taken: %+v", i, report)
		}
	}
	for name, change := range map[string][2]string{
		"another generation":   {"LVM2_VG_SEQNO='", "LVM2_VG_SEQNO='9"},
		"a negative number":    {"LVM2_VG_FREE_COUNT='", "LVM2_VG_FREE_COUNT='-"},
		"no number":            {"LVM2_LV_SIZE='", "LVM2_LV_SIZE='x"},
		"a number too large":   {"LVM2_LV_SIZE='", "LVM2_LV_SIZE='99999999999999999999"},
		"a broken UUID":        {"LVM2_LV_UUID='", "LVM2_LV_UUID='x"},
		"another field":        {"LVM2_LV_TAGS", "LVM2_LV_TAG"},
		"no prefix":            {"LVM2_LV_TAGS", "LV_TAGS"},
		"more free than total": {"LVM2_VG_FREE_COUNT='", "LVM2_VG_FREE_COUNT='99999"},
	} {
		text := strings.Replace(whole, change[0], change[1], 1)
		if text == whole {
			t.Fatalf("%s: nothing changed", name)
		}
		if report, err := lvm.ParseReport([]byte(text)); err == nil {
			t.Errorf("%s is taken: %+v", name, report)
		}
	}
}

// The fake prints what the real one prints.
func TestFakeReport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fake, err := lvm.ParseReport(w.Report())
	if err != nil {
		t.Fatal(err)
	}
	if g := fake.Group(w.UUID); g == nil || len(g.LVs) != 2 || g.ExtentBytes != lvmtest.ExtentBytes {
		t.Fatalf("the fake's report is read as %+v", g)
	}
	theirs := strings.Split(readReport(t, "volumes"), "\n")
	ours := strings.Split(string(w.Report()), "\n")
	if got, want := keys(ours[0]), keys(theirs[0]); got != want {
		t.Errorf("a row of lvs has %s, lvm prints %s", got, want)
	}
	if got, want := keys(ours[2]), keys(theirs[3]); got != want {
		t.Errorf("a row of pvs has %s, lvm prints %s", got, want)
	}
}

// keys returns the names of a row's fields.
func keys(row string) string {
	var names []string
	for field := range strings.SplitSeq(row, "' ") {
		name, _, _ := strings.Cut(strings.TrimSpace(field), "=")
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// Whatever lvm prints, the reader returns a consistent report or an error.
func FuzzParseReport(f *testing.F) {
	names, err := fs.Glob(reports, "testdata/*.report")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		data, err := fs.ReadFile(reports, name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := lvm.ParseReport(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, g := range report.Groups {
			if g.ExtentBytes <= 0 || g.FreeExtents < 0 || g.FreeExtents > g.Extents || seen[g.UUID] {
				t.Errorf("the report contains %+v", g)
			}
			seen[g.UUID] = true
			for _, lv := range g.LVs {
				if lv.SizeBytes < 0 || lv.Name == "" && lv.UUID == "" {
					t.Errorf("the report contains %+v", lv)
				}
			}
		}
	})
}

const (
	mirrored = "11111111-0000-4000-8000-000000000001"
	parity   = "11111111-0000-4000-8000-000000000002"
	third    = "11111111-0000-4000-8000-000000000003"
)

// Reports with legs of the real lvm (2.03.31, on a node of the testbed).
func TestParseReportWithLegs(t *testing.T) {
	t.Parallel()
	parse := func(text string) *lvm.Group {
		t.Helper()
		report, err := lvm.ParseReport([]byte(text))
		if err != nil || len(report.Groups) != 1 {
			t.Fatalf("got %+v, %v", report, err)
		}
		return report.Groups[0]
	}
	g := parse(readReport(t, "raid"))
	if len(g.LVs) != 3 || g.Volume("theirs") == nil || g.State() != lvm.StateReady {
		t.Errorf("the group is read as %+v", g)
	}
	m := g.Volume(mirrored)
	if m == nil || m.SizeBytes != 60<<20 || len(m.Legs) != 4 || m.Unfinished || !reflect.DeepEqual(m.Layout, []string{"raid", "raid1"}) {
		t.Fatalf("the mirror is read as %+v", m)
	}
	for i, want := range []lvm.Leg{
		{Name: mirrored + "_rimage_0", Devices: []string{"/dev/vdk"}},
		{Name: mirrored + "_rimage_1", Devices: []string{"/dev/vdl"}},
		{Name: mirrored + "_rmeta_0", Devices: []string{"/dev/vdk"}, Metadata: true},
		{Name: mirrored + "_rmeta_1", Devices: []string{"/dev/vdl"}, Metadata: true},
	} {
		got := m.Legs[i]
		if got.Name != want.Name || got.Metadata != want.Metadata || got.Missing || !reflect.DeepEqual(got.Devices, want.Devices) || got.UUID == "" {
			t.Errorf("leg %d is read as %+v", i, got)
		}
	}
	if p := g.Volume(parity); p == nil || len(p.Legs) != 6 {
		t.Errorf("the raid5 is read as %+v", p)
	}

	partial := parse(readReport(t, "raid-partial"))
	missing := 0
	for _, leg := range partial.Volume(parity).Legs {
		if leg.Missing {
			missing++
		}
	}
	if partial.State() != lvm.StatePartial || missing != 2 || partial.MissingPVs != 1 {
		t.Errorf("without a disk: %s, %d of the legs of %+v", partial.State(), missing, partial.Volume(parity))
	}
	returned := parse(readReport(t, "raid-returned"))
	back := ""
	for _, pv := range returned.PVs {
		back += pv.ReturnedPath
	}
	if returned.State() != lvm.StatePartial || back != "/dev/disk/by-id/virtio-R2" || len(returned.PVs) != 4 {
		t.Errorf("when it is back: %s, %q of %+v", returned.State(), back, returned.PVs)
	}

	// As lvm shows it between the two changes by which it makes a volume; it is gone too
	// fast to be recorded.
	text := readReport(t, "raid-new")
	if v := parse(text).Volume(third); v == nil || v.Unfinished || len(v.Legs) != 4 {
		t.Errorf("a new volume is read as %+v", v)
	}
	cut := strings.NewReplacer("["+third+"_rmeta_0]", third+"_rmeta_0", "["+third+"_rmeta_1]", third+"_rmeta_1", "LVM2_LV_COUNT='4'", "LVM2_LV_COUNT='6'").Replace(text)
	g = parse(cut)
	if v := g.Volume(third); v == nil || !v.Unfinished || len(v.Legs) != 4 || len(g.LVs) != 4 {
		t.Errorf("half of it is read as %+v in %+v", v, g)
	}
	for name, change := range map[string][2]string{
		"one leg is shown, and not counted": {"[" + third + "_rmeta_0]", third + "_rmeta_0"},
		"a leg of nobody":                   {"LVM2_LV_PARENT='" + third + "'", "LVM2_LV_PARENT='nobody'"},
		"no place":                          {"LVM2_DEVICES='/dev/vdk(", "LVM2_DEVICES='/dev/vdk"},
		"another size of the same":          {"LVM2_LV_SIZE='62914560'", "LVM2_LV_SIZE='1'"},
	} {
		if report, err := lvm.ParseReport([]byte(strings.Replace(text, change[0], change[1], 2))); err == nil {
			t.Errorf("%s: %+v", name, report.Groups[0])
		}
	}
}
