// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

const uid1 = "11111111-2222-3333-4444-555555555555"

func entry(state ledger.State) ledger.Entry {
	e := ledger.Entry{
		UID: uid1, Name: "pvc-1", MachineID: "m1", State: state,
		Mode: volume.ModeLVM, Pool: "fast", Access: volume.AccessFilesystem, FSType: "ext4", FSUUID: uid1, Wipe: volume.WipeZero,
	}
	if state != ledger.Carving {
		e.Record = &volume.Record{
			Mode: volume.ModeLVM, SizeBytes: 1 << 30,
			LVM: &volume.LVMRecord{VGName: "vg", VGUUID: "vgu", LVName: "lv", LVUUID: "lvu"},
		}
	}
	return e
}

func open(t *testing.T, dir string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestEntriesSurviveReopening(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "ledger")
	l := open(t, dir)
	for _, s := range []ledger.State{ledger.Carving, ledger.Carved, ledger.Formatting, ledger.Ready, ledger.Ready, ledger.Deleting} {
		if err := l.Put(entry(s)); err != nil {
			t.Fatalf("put %s: %v", s, err)
		}
		again := open(t, dir)
		for _, from := range []*ledger.Ledger{l, again} {
			got, err := from.Get(uid1)
			if err != nil {
				t.Fatal(err)
			}
			want := entry(s)
			want.SchemaVersion = ledger.SchemaVersion
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			if byName, err := from.ByName("pvc-1"); err != nil || byName.UID != uid1 {
				t.Fatalf("by name: %+v, %v", byName, err)
			}
		}
	}
	if err := l.Remove(uid1); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(uid1); err != nil {
		t.Fatalf("repeated removal: %v", err)
	}
	for _, from := range []*ledger.Ledger{l, open(t, dir)} {
		if _, err := from.Get(uid1); !errors.Is(err, ledger.ErrNotFound) {
			t.Fatalf("get after removal: %v", err)
		}
		if _, err := from.ByName("pvc-1"); !errors.Is(err, ledger.ErrNotFound) {
			t.Fatalf("by name after removal: %v", err)
		}
	}
}

func TestOneWayDoors(t *testing.T) {
	t.Parallel()
	other := entry(ledger.Ready)
	other.Record.LVM.LVUUID = "another"
	moved := entry(ledger.Ready)
	moved.MachineID = "m2"
	forgotten := entry(ledger.Deleting)
	forgotten.Record = nil
	for name, tc := range map[string]struct{ from, to ledger.Entry }{
		"Ready is never formatted again": {entry(ledger.Ready), entry(ledger.Formatting)},
		"Ready is never made again":      {entry(ledger.Ready), entry(ledger.Carving)},
		"Deleting never comes back":      {entry(ledger.Deleting), entry(ledger.Ready)},
		"other storage":                  {entry(ledger.Ready), other},
		"other machine":                  {entry(ledger.Ready), moved},
		"record lost":                    {entry(ledger.Ready), forgotten},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t, t.TempDir())
			if err := l.Put(tc.from); err != nil {
				t.Fatal(err)
			}
			if err := l.Put(tc.to); err == nil {
				t.Fatalf("%s -> %s was allowed", tc.from.State, tc.to.State)
			}
			got, err := l.Get(uid1)
			if err != nil || got.State != tc.from.State {
				t.Fatalf("the old entry is not what stands: %+v, %v", got, err)
			}
		})
	}
}

func TestDamageIsNeverAbsence(t *testing.T) {
	t.Parallel()
	good, err := ledger.Encode(entry(ledger.Ready))
	if err != nil {
		t.Fatal(err)
	}
	text := string(good)
	for name, content := range map[string]string{
		"empty":           "",
		"cut":             text[:len(text)/2],
		"zeroes":          strings.Repeat("\x00", 4096),
		"two objects":     text + text,
		"unknown field":   strings.Replace(text, `"pool"`, `"pools"`, 1),
		"newer schema":    strings.Replace(text, `"schemaVersion": 1`, `"schemaVersion": 2`, 1),
		"other volume":    strings.ReplaceAll(text, uid1, "99999999-2222-3333-4444-555555555555"),
		"unknown state":   strings.Replace(text, `"Ready"`, `"Fine"`, 1),
		"weaker state":    strings.Replace(text, `"Ready"`, `"Carving"`, 1),
		"record of other": strings.Replace(text, `"lvm": {`, `"device": {`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, uid1+".json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, dir)
			_, byUID := l.Get(uid1)
			_, byName := l.ByName("pvc-1")
			for _, err := range []error{byUID, byName, l.Put(entry(ledger.Ready)), l.Remove(uid1)} {
				if !errors.Is(err, ledger.ErrCorrupt) || !strings.Contains(err.Error(), path) {
					t.Errorf("got %v; want ErrCorrupt that names %s", err, path)
				}
			}
			if len(l.Damaged()) != 1 {
				t.Errorf("damaged: %v", l.Damaged())
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != content {
				t.Errorf("the damaged file was changed: %v", err)
			}
		})
	}
}

func TestUnfinishedWriteNeverCounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, err := ledger.Encode(entry(ledger.Ready))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".durable-123"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir)
	if _, err := l.Get(uid1); !errors.Is(err, ledger.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Fatalf("left %v, %v", files, err)
	}
}

func TestNameOfADeletedAndAMadeAgainVolume(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	old := entry(ledger.Deleting)
	fresh := entry(ledger.Ready)
	fresh.UID = "99999999-2222-3333-4444-555555555555"
	for _, e := range []ledger.Entry{old, fresh} {
		if err := l.Put(e); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := l.ByName("pvc-1"); err != nil || got.UID != fresh.UID {
		t.Fatalf("got %+v, %v; want the one that lives", got, err)
	}
}

func TestCallersCannotChangeWhatIsRemembered(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	e := entry(ledger.Ready)
	e.Limits = &volume.Limits{ReadIOPS: 1}
	if err := l.Put(e); err != nil {
		t.Fatal(err)
	}
	e.Record.LVM.LVUUID, e.Limits.ReadIOPS = "changed", 2
	got, err := l.Get(uid1)
	if err != nil || got.Record.LVM.LVUUID != "lvu" || got.LimitsOrNone() != (volume.Limits{ReadIOPS: 1}) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	e := entry(ledger.Ready)
	for _, limits := range []*volume.Limits{{ReadIOPS: 1}, {WriteBytesPerSecond: 1 << 40, WriteIOPS: 7}, nil} {
		e.Limits = limits
		if err := l.Put(e); err != nil {
			t.Fatal(err)
		}
		got, err := open(t, dir).Get(uid1)
		if err != nil || !reflect.DeepEqual(got.Limits, limits) {
			t.Errorf("got %+v, %v, want %+v", got.Limits, err, limits)
		}
	}
	directory := entry(ledger.Carving)
	directory.Mode, directory.FSType, directory.FSUUID = volume.ModeHostpath, "", ""
	for name, bad := range map[string]struct {
		entry  ledger.Entry
		limits volume.Limits
	}{
		"that limit nothing": {e, volume.Limits{}},
		"below nothing":      {e, volume.Limits{ReadIOPS: 1, WriteBytesPerSecond: -1}},
		"of a directory":     {directory, volume.Limits{ReadIOPS: 1}},
	} {
		bad.entry.Limits = &bad.limits
		if _, err := ledger.Encode(bad.entry); err == nil || !strings.Contains(err.Error(), "limits") {
			t.Errorf("limits %s: %v", name, err)
		}
	}
}

// What was adopted is a whole disk or a directory, and is never wiped.
func TestAdopted(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	adopted := func(change func(*ledger.Entry)) ledger.Entry {
		e := entry(ledger.Carving)
		e.Mode, e.FSType, e.FSUUID, e.Wipe, e.Adopted = volume.ModeHostpath, "", "", volume.WipeNone, true
		change(&e)
		return e
	}
	disk := func(e *ledger.Entry) { e.Mode, e.Pool, e.FSType, e.FSUUID = volume.ModeDevice, "", "ext4", uid1 }
	for name, good := range map[string]func(*ledger.Entry){"a directory": func(*ledger.Entry) {}, "a disk": disk} {
		e := adopted(good)
		e.UID = strings.Replace(uid1, "1", fmt.Sprint(len(name)%10), 1)
		e.Name = name
		if err := l.Put(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string]func(*ledger.Entry){
		"that is wiped":    func(e *ledger.Entry) { e.Wipe = volume.WipeZero },
		"a logical volume": func(e *ledger.Entry) { e.Mode, e.FSType, e.FSUUID = volume.ModeLVM, "ext4", uid1 },
		"a block device":   func(e *ledger.Entry) { disk(e); e.Access, e.FSType, e.FSUUID = volume.AccessBlock, "", "" },
		"that is formatted": func(e *ledger.Entry) {
			disk(e)
			e.State = ledger.Formatting
			e.Record = &volume.Record{Mode: volume.ModeDevice, Device: &volume.DeviceRecord{Name: "bd"}}
		},
	} {
		if _, err := ledger.Encode(adopted(bad)); err == nil || !strings.Contains(err.Error(), "adopted") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// wholeDisk makes an entry that of a volume that has got a disk.
func wholeDisk(e *ledger.Entry) {
	e.Mode, e.Pool, e.State = volume.ModeDevice, "", ledger.Carved
	e.Record = &volume.Record{Mode: volume.ModeDevice, Device: &volume.DeviceRecord{Name: "bd"}}
}

// What is going to be made of a left-over says of which, as long as it is not made; and a disk also
// while it is about to be.
func TestLeftOver(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir())
	taking := func(change func(*ledger.Entry)) ledger.Entry {
		e := entry(ledger.Carving)
		e.LeftOver = &ledger.LeftOver{UID: strings.Replace(uid1, "1", "9", 1), Identity: "vg/lv"}
		change(&e)
		return e
	}
	if err := l.Put(taking(func(*ledger.Entry) {})); err != nil {
		t.Fatal(err)
	}
	got, err := l.Get(uid1)
	if err != nil || got.LeftOver == nil || got.LeftOver.Identity != "vg/lv" {
		t.Fatalf("read again as %+v, %v", got, err)
	}
	for name, good := range map[string]func(*ledger.Entry){
		"a disk":                   func(e *ledger.Entry) { e.Mode, e.Pool = volume.ModeDevice, "" },
		"a disk that it has":       wholeDisk,
		"one that was handed over": func(e *ledger.Entry) { wholeDisk(e); e.Adopted, e.Wipe = true, volume.WipeNone },
	} {
		if _, err := ledger.Encode(taking(good)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	got.LeftOver.Identity = "changed"
	if again, err := l.Get(uid1); err != nil || again.LeftOver.Identity != "vg/lv" {
		t.Fatalf("what was read is what is kept: %+v, %v", again, err)
	}
	for name, bad := range map[string]func(*ledger.Entry){
		"itself":           func(e *ledger.Entry) { e.LeftOver.UID = e.UID },
		"no UID":           func(e *ledger.Entry) { e.LeftOver.UID = "../1" },
		"no identity":      func(e *ledger.Entry) { e.LeftOver.Identity = "" },
		"one that is made": func(e *ledger.Entry) { made := entry(ledger.Ready); made.LeftOver = e.LeftOver; *e = made },
		"one that is carved": func(e *ledger.Entry) {
			made := entry(ledger.Carved)
			made.LeftOver = e.LeftOver
			*e = made
		},
		"one that was handed over": func(e *ledger.Entry) {
			e.Adopted, e.Mode, e.FSType, e.FSUUID, e.Wipe = true, volume.ModeHostpath, "", "", volume.WipeNone
		},
		"a disk that is ready": func(e *ledger.Entry) { wholeDisk(e); e.State = ledger.Ready },
		"an encrypted disk": func(e *ledger.Entry) {
			wholeDisk(e)
			e.Encryption = &ledger.Encryption{Format: volume.EncryptionLUKS2, UUID: uid1, Seal: ledger.Unsealed}
		},
	} {
		if _, err := ledger.Encode(taking(bad)); err == nil || !strings.Contains(err.Error(), "a left-over") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManyVolumesAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			e := entry(ledger.Carving)
			e.UID = fmt.Sprintf("%08x-0000-0000-0000-000000000000", i)
			e.Name = fmt.Sprintf("pvc-%d", i)
			if err := l.Put(e); err != nil {
				t.Error(err)
			}
			ready := entry(ledger.Ready)
			ready.UID, ready.Name = e.UID, e.Name
			if err := l.Put(ready); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := l.Remove(e.UID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(open(t, dir).All()); got != 25 {
		t.Fatalf("%d entries, want 25", got)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []ledger.State{ledger.Carving, ledger.Carved, ledger.Formatting, ledger.Ready, ledger.Deleting} {
		data, err := ledger.Encode(entry(s))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	limited := entry(ledger.Ready)
	limited.Limits = &volume.Limits{ReadIOPS: 100}
	data, err := ledger.Encode(limited)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ledger.Decode(data)
		if err != nil {
			return
		}
		// What is accepted can be written and means the same when read again.
		again, err := ledger.Encode(e)
		if err != nil {
			t.Fatalf("accepted and not encodable: %v", err)
		}
		e2, err := ledger.Decode(again)
		if err != nil || !reflect.DeepEqual(e, e2) {
			t.Fatalf("changed in a round trip: %+v, %+v, %v", e, e2, err)
		}
		if (e.State == ledger.Carved || e.State == ledger.Formatting || e.State == ledger.Ready) && e.Record == nil {
			t.Fatalf("state %s without a record", e.State)
		}
	})
}
