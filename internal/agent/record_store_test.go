// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func recordOfPool(poolSet string) *poolRecord {
	return &poolRecord{
		PoolSet: poolSet, Kind: v1alpha1.PoolLVM, MachineID: machine, PoolUID: "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a11", VGName: "berth-" + poolSet,
	}
}

func TestRecordsAreReplacedWholeAndForgotten(t *testing.T) {
	t.Parallel()
	d := newPoolRecords(filepath.Join(t.TempDir(), "pools"))
	if r, err := d.load("fast"); err != nil || r != nil {
		t.Fatalf("never recorded: %+v, %v", r, err)
	}
	if keys, err := d.keys(); err != nil || len(keys) > 0 {
		t.Fatalf("never recorded: %v, %v", keys, err)
	}
	for _, uuid := range []string{"a longer one at first", "short"} {
		r := recordOfPool("fast")
		r.VGUUID = uuid
		if err := d.save(r); err != nil {
			t.Fatal(err)
		}
		if r, err := d.load("fast"); err != nil || r == nil || r.VGUUID != uuid || r.SchemaVersion != poolRecordVersion {
			t.Fatalf("read again as %+v, %v", r, err)
		}
	}
	// What is no record: of a write that never ended, and of somebody else.
	for _, name := range []string{".durable-123", "notes.txt", "Not A Name.json"} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := d.keys(); err != nil || !slices.Equal(keys, []string{"fast"}) {
		t.Errorf("the keys are %v, %v", keys, err)
	}
	if err := d.clean(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{".durable-123": false, "notes.txt": true, "Not A Name.json": true, "fast.json": true} {
		if _, err := os.Stat(filepath.Join(d.dir, name)); (err == nil) != want {
			t.Errorf("after it was cleaned, %s is there: %v, want %v", name, err == nil, want)
		}
	}
	for range 2 {
		if err := d.remove("fast"); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := d.load("fast"); err != nil || r != nil {
		t.Errorf("forgotten: %+v, %v", r, err)
	}
}

func TestDamageOfARecordIsNeverAbsence(t *testing.T) {
	t.Parallel()
	d := newPoolRecords(t.TempDir())
	if err := d.save(recordOfPool("fast")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.dir, "fast.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":                "",
		"cut":                  strings.TrimSuffix(string(good), "}\n"),
		"two in one":           string(good) + string(good),
		"of a newer version":   strings.Replace(string(good), `"schemaVersion": 1`, `"schemaVersion": 2`, 1),
		"with more than known": strings.Replace(string(good), "{", `{"more": true,`, 1),
		"of another pool":      strings.Replace(string(good), `"poolSet": "fast"`, `"poolSet": "slow"`, 1),
		"of nothing":           "{}",
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := d.load("fast"); err == nil || r != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %+v, %v; want an error that names the file", name, r, err)
		}
		if keys, err := d.keys(); err != nil || !slices.Equal(keys, []string{"fast"}) {
			t.Errorf("%s: the keys are %v, %v", name, keys, err)
		}
	}
	unreadable(t, path)
	if r, err := d.load("fast"); err == nil || r != nil || !strings.Contains(err.Error(), path) {
		t.Errorf("unreadable: %+v, %v; want an error that names the file", r, err)
	}
}

func TestAnInvalidRecordIsNotWritten(t *testing.T) {
	t.Parallel()
	d := newPoolRecords(t.TempDir())
	if err := d.save(recordOfPool("fast")); err != nil {
		t.Fatal(err)
	}
	bad := recordOfPool("fast")
	bad.PoolUID = ""
	if err := d.save(bad); err == nil || !strings.HasPrefix(err.Error(), "record pool fast: ") {
		t.Errorf("save: %v", err)
	}
	if r, err := d.load("fast"); err != nil || r.PoolUID == "" {
		t.Errorf("what was there before is %+v, %v", r, err)
	}
}

// unreadable puts something in a file's place that nobody can read as one, root neither.
func unreadable(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodePoolRecord(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":1,"poolSet":"fast","kind":"lvm","machineID":"m","poolUID":"u","vgName":"berth-fast"}`))
	f.Add([]byte(`{"schemaVersion":1,"poolSet":"dirs","kind":"hostpath","machineID":"m","poolUID":"u","path":"/srv/x","rootID":"r"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord[poolRecord](data)
		if err != nil {
			return
		}
		d := newPoolRecords(t.TempDir())
		if err := d.save(r); err != nil {
			t.Fatalf("accepted and not writable: %v", err)
		}
		if _, err := d.load(r.PoolSet); err != nil {
			t.Fatalf("not readable again: %v", err)
		}
	})
}
