// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/volume"
)

// Every message of the table, as lvm prints it.
func TestClassify(t *testing.T) {
	t.Parallel()
	used := map[int]bool{}
	for _, test := range []struct {
		stderr string
		want   error
	}{
		{`  Thin pool berth--fast-thin-tpool (253:2) transaction_id is 8, while expected 7.`, ErrThinTransaction},
		{`  Volume group "bt" has insufficient free space (254 extents): 1024 required.`, volume.ErrNoSpace},
		{`  Insufficient free space: 25 extents needed, but only 14 available`, volume.ErrNoSpace},
		{`  Insufficient suitable allocatable extents for logical volume bt/a: 12 more required`, volume.ErrNoSpace},
		{`  Cannot create new thin volume, free space in thin pool data/tank reached threshold.`, volume.ErrNoSpace},
		{`  VG bt 512 metadata on /dev/vdb (523800 bytes) too large for circular buffer (1044480 bytes with 522000 used)`, volume.ErrNoSpace},
		{`  Logical Volume "a" already exists in volume group "bt"`, volume.ErrExists},
		{`  A volume group called bt already exists.`, volume.ErrExists},
		{`  Physical volume '/dev/vdb' is already in volume group 'bt'`, volume.ErrExists},
		{`  Logical volume bt/a in use.`, volume.ErrInUse},
		{`  Logical volume bt/a contains a filesystem in use.`, volume.ErrInUse},
		{`  Logical volume bt/a is used by another device.`, volume.ErrInUse},
		{`  Can't open /dev/vdb exclusively.  Mounted filesystem?`, volume.ErrInUse},
		{"WARNING: ext4 signature detected on /dev/vdb at offset 1080. Wipe it? [y/n]: [n]\n  Aborted wiping of ext4.\n  1 existing signature left on the device.", volume.ErrNotBlank},
		{`  Cannot use /dev/vdb: device is partitioned`, volume.ErrNotBlank},
		{`  Cannot use /dev/vdb: device is an md component`, volume.ErrNotBlank},
		{`  Cannot use /dev/vdb: device is rejected by filter config`, volume.ErrPoolUnavailable},
		{`  Cannot change VG bt while PVs are missing.`, volume.ErrPoolUnavailable},
		{`  Cannot update volume group bt with duplicate PV devices.`, volume.ErrPoolUnavailable},
		{`  Cannot access VG bt with system ID other with unknown local system ID.`, volume.ErrPoolUnavailable},
		{`  Cannot access VG bt with lock type sanlock that requires lvmlockd.`, volume.ErrPoolUnavailable},
		{`  Volume group bt is exported`, volume.ErrPoolUnavailable},
		{`  Multiple VGs found with the same name: skipping bt`, volume.ErrPoolUnavailable},
		{"  Volume group \"bt\" not found\n  Cannot process volume group bt", volume.ErrPoolUnavailable},
		{`  Can't get lock for bt`, volume.ErrBusy},
		{`  Failed to convert pvmove LV to mirrored.`, volume.ErrNoSpace},
		{`  Can't resize locked logical volume bt/v1.`, volume.ErrBusy},
		{`  Can't remove locked logical volume bt/v1.`, volume.ErrBusy},
		{`  Please supply an LVM command.`, volume.ErrToolMissing},
		{`  Internal error: Failed command did not use log_error`, nil},
		{"  WARNING: Failed to connect to lvmetad.", nil},
		{"", nil},
	} {
		if got := classify([]byte(test.stderr)); !errors.Is(got, test.want) || got != nil && test.want == nil {
			t.Errorf("classify(%q) = %v, want %v", test.stderr, got, test.want)
		}
		for i, m := range messages {
			if m.pattern.MatchString(test.stderr) {
				used[i] = true
			}
		}
	}
	for i, m := range messages {
		if !used[i] {
			t.Errorf("no sample of %s", m.pattern)
		}
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	for _, stderr := range []string{
		"  WARNING: Not using device /dev/loop3 for PV yTNT26-Epjf-gDuG-HGaI-q8Ph-iuaE-O7vJAF.\n  WARNING: PV yTNT26-Epjf-gDuG-HGaI-q8Ph-iuaE-O7vJAF prefers device /dev/vdb because device is used by LV.",
		"  WARNING: PV yTNT26-Epjf-gDuG-HGaI-q8Ph-iuaE-O7vJAF on /dev/loop3 was already found on /dev/vdb.",
	} {
		if !duplicates([]byte(stderr))["yTNT26-Epjf-gDuG-HGaI-q8Ph-iuaE-O7vJAF"] {
			t.Errorf("no duplicate is seen in %q", stderr)
		}
	}
	if d := duplicates([]byte("  WARNING: Device /dev/vdb has size of 1 sectors")); len(d) != 0 {
		t.Errorf("duplicates are seen: %v", d)
	}
}

func TestPVUUID(t *testing.T) {
	t.Parallel()
	const pool, other = "b0000000-0000-4000-8000-00000000b001", "b0000000-0000-4000-8000-00000000b002"
	first, second := newPVUUID(pool), newPVUUID(pool)
	if first == second || !validUUID(first) || !validUUID(second) {
		t.Errorf("two physical volumes are called %s and %s", first, second)
	}
	if !preparedFor(first, pool) || preparedFor(first, other) || preparedFor("", pool) {
		t.Error("the pool of a physical volume is not told by its UUID")
	}
}

func TestScriptRefuses(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"a b", "a\nlvremove", "'a", `"a`, "#a", "", "a;b", "$HOME", "a\x00", "ä"} {
		if input, err := script(session{}, [][]string{{"lvcreate", word}}); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("script with %q = %q, %v, want ErrInvalid", word, input, err)
		}
	}
	for _, path := range []string{"/dev/vdb,/dev/vdc", "vdb", "/etc/passwd", "/dev/../etc/passwd", "/dev/v b", "--force"} {
		if input, err := script(session{devices: []string{path}}, nil); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("script with device %q = %q, %v, want ErrInvalid", path, input, err)
		}
	}
}

// pvs crashes in a process that was given --select, whatever it is asked for.
func TestNoDevicesReportAfterSelect(t *testing.T) {
	t.Parallel()
	selecting := [][]string{changeCommand("g", "v", "--activate", "y"), {"lvcreate", "--yes"}}
	for _, s := range []session{{}, {segments: true}, {segments: true, legs: true}, {segments: true, thin: true, foreignPool: true}} {
		input, err := script(s, append(slices.Clone(selecting), reports(s, selecting)...))
		if err != nil {
			t.Fatal(err)
		}
		if text := "\n" + string(input); strings.Contains(text, "\npvs") || !strings.Contains(text, "\nvgs") {
			t.Errorf("%+v: lvm is told %s", s, input)
		}
		if input, err = script(s, append(slices.Clone(selecting[1:]), reports(s, selecting[1:])...)); err != nil || strings.Contains(string(input), " --segments ") != s.segments {
			t.Errorf("%+v: lvm is told %s, %v", s, input, err)
		}
	}
}

func TestOnlyDevices(t *testing.T) {
	t.Parallel()
	got := onlyDevices([]string{"/dev/vdb", "/dev/disk/by-id/a.b+c"})
	want := `devices{filter=["a|^/dev/vdb$|","a|^/dev/disk/by-id/a[.]b[+]c$|","r|.*|"]use_devicesfile=0}`
	if got != want {
		t.Errorf("onlyDevices = %s, want %s", got, want)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	if got, want := dmName("berth-fast", "a0-b1"), "berth--fast-a0--b1"; got != want {
		t.Errorf("dmName = %s, want %s", got, want)
	}
	if got, want := dmUUID("rKzSh7-H9Bl-Xy8o-AASh-1QjQ-BCN2-PANzHA", "gOts7a-ptQ4-KNPc-rs1r-YH6L-Cp42-dNgjZN"),
		"LVM-rKzSh7H9BlXy8oAASh1QjQBCN2PANzHAgOts7aptQ4KNPcrs1rYH6LCp42dNgjZN"; got != want {
		t.Errorf("dmUUID = %s, want %s", got, want)
	}
	for _, name := range []string{"", ".", "..", "-a", "a b", "a/b", "a;b", "ä", ".hidden"} {
		if err := ValidateGroupName(name); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("ValidateGroupName(%q) = %v, want ErrInvalid", name, err)
		}
	}
	if got := tagText("a claim: with 'quotes' & spaces"); !wordPattern.MatchString(got) {
		t.Errorf("tagText = %q", got)
	}
}

// lvm that is interrupted says why it could not go on.
func TestExplainOfWhatWasKilled(t *testing.T) {
	t.Parallel()
	const words = "  Interrupted...\n  Failed to convert pvmove LV to mirrored.\n"
	for name, tc := range map[string]struct {
		cause error
		final bool
	}{
		"its own end":      {&hostexec.ExitError{ExitCode: 5, Stderr: words}, true},
		"the deadline":     {&hostexec.ExitError{ExitCode: 5, TimedOut: true, Stderr: words}, false},
		"a signal":         {&hostexec.ExitError{ExitCode: -1, Stderr: words}, false},
		"stuck":            {&hostexec.ExitError{ExitCode: -1, Stuck: true, Stderr: words}, false},
		"wrapped":          {fmt.Errorf("move: %w", &hostexec.ExitError{ExitCode: 5, TimedOut: true, Stderr: words}), false},
		"no process ended": {nil, true},
	} {
		err := explain([]byte(words), tc.cause)
		if errors.Is(err, volume.ErrNoSpace) != tc.final || tc.cause != nil && !errors.Is(err, tc.cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
