// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package dm

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// answer builds what the kernel leaves in the buffer.
func answer(texts ...string) []byte {
	buffer := make([]byte, 16<<10)
	at := 0
	for i, text := range texts {
		spec := buffer[at:]
		binary.NativeEndian.PutUint64(spec[0:], uint64(i)*2048)
		binary.NativeEndian.PutUint64(spec[8:], 2048)
		kind, status, _ := strings.Cut(text, " ")
		copy(spec[24:40], kind)
		copy(spec[40:], status)
		next := at + unix.SizeofDmTargetSpec + len(status) + 1
		next = (next + 7) &^ 7
		binary.NativeEndian.PutUint32(spec[20:], uint32(next))
		at = next
	}
	return buffer[:at+1]
}

func TestParseTargets(t *testing.T) {
	t.Parallel()
	got, err := parseTargets(answer("thin-pool 1 2/3", "linear"), 0, 2)
	want := []Target{{0, 2048, "thin-pool", "1 2/3"}, {2048, 2048, "linear", ""}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	whole := answer("thin-pool 1 2/3")
	back := answer("linear", "linear")
	binary.NativeEndian.PutUint32(back[20:], 0)
	for name, bad := range map[string]struct {
		buffer       []byte
		start, count int
	}{
		"begins behind its end":  {whole, len(whole) + 1, 1},
		"ends within a target":   {whole[:20], 0, 1},
		"ends within a status":   {whole[:43], 0, 1},
		"more targets are said":  {whole, 0, 2},
		"goes back to the first": {back, 0, 2},
	} {
		if got, err := parseTargets(bad.buffer, bad.start, bad.count); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func FuzzParseTargets(f *testing.F) {
	f.Add(answer("thin-pool 1 2/3", "linear"), 0, 2)
	f.Add([]byte{}, 0, 1)
	f.Fuzz(func(t *testing.T, buffer []byte, start, count int) {
		targets, err := parseTargets(buffer, start, min(count, 1000))
		if err == nil && len(targets) > 0 && len(targets) != min(count, 1000) {
			t.Errorf("%d targets of %d", len(targets), count)
		}
	})
}

var aTable = []Target{{Type: "thin-pool", Status: "253:1 253:2 128 0 0"}}

func TestThinPoolOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, status    string
		want            ThinPool
		data, metadata  int
		wantErrContains string
	}{
		{
			"new, of Linux 6.12", "0 11/1024 0/160 - rw discard_passdown queue_if_no_space - 1024 ",
			ThinPool{Mode: ThinPoolWritable, MetadataUsed: 11, MetadataBlocks: 1024, DataBlocks: 160},
			0, 2, "",
		},
		{
			"one chunk of many is taken", "7 11/1024 1/163840 - rw no_discard_passdown error_if_no_space - 256",
			ThinPool{Mode: ThinPoolWritable, TransactionID: 7, MetadataUsed: 11, MetadataBlocks: 1024, DataUsed: 1, DataBlocks: 163840, FailsWhenFull: true},
			1, 2, "",
		},
		{
			"full", "3 20/1024 160/160 - out_of_data_space discard_passdown error_if_no_space - 1024",
			ThinPool{Mode: ThinPoolOutOfData, TransactionID: 3, MetadataUsed: 20, MetadataBlocks: 1024, DataUsed: 160, DataBlocks: 160, FailsWhenFull: true},
			100, 2, "",
		},
		{
			"to be repaired", "3 1024/1024 20/160 - ro discard_passdown queue_if_no_space needs_check 256",
			ThinPool{Mode: ThinPoolReadOnly, TransactionID: 3, MetadataUsed: 1024, MetadataBlocks: 1024, DataUsed: 20, DataBlocks: 160, NeedsCheck: true},
			13, 100, "",
		},
		{
			"held root, of a kernel before needs_check", "3 20/1024 20/160 17 rw discard_passdown queue_if_no_space",
			ThinPool{Mode: ThinPoolWritable, TransactionID: 3, MetadataUsed: 20, MetadataBlocks: 1024, DataUsed: 20, DataBlocks: 160, HeldRoot: 17},
			13, 2, "",
		},
		{"failed", "Fail", ThinPool{Mode: ThinPoolFailed}, 0, 0, ""},
		{"cannot be asked", "Error", ThinPool{Mode: ThinPoolFailed}, 0, 0, ""},
		{"short", "0 1/2 3/4", ThinPool{}, 0, 0, "3 words"},
		{"empty", "", ThinPool{}, 0, 0, "0 words"},
		{"no number", "x 11/1024 0/160 - rw discard_passdown queue_if_no_space - 1024", ThinPool{}, 0, 0, "invalid syntax"},
		{"no fraction", "0 11 0/160 - rw discard_passdown queue_if_no_space - 1024", ThinPool{}, 0, 0, "invalid syntax"},
		{"more than all", "0 11/10 0/160 - rw discard_passdown queue_if_no_space - 1024", ThinPool{}, 0, 0, "11 of 10"},
		{"no root", "0 11/1024 0/160 x rw discard_passdown queue_if_no_space - 1024", ThinPool{}, 0, 0, "the root that is held"},
		{"another mode", "0 1/10 0/160 - wr discard_passdown queue_if_no_space - 1024", ThinPool{}, 0, 0, `"wr" is unknown`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ThinPoolOf([]Target{{Type: "thin-pool", Status: tt.status}}, aTable)
			tt.want.ChunkBytes = 64 << 10
			if tt.wantErrContains != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErrContains) {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			if err != nil || got != tt.want || got.DataPercent() != tt.data || got.MetadataPercent() != tt.metadata {
				t.Errorf("got %+v (%d %%, %d %%), %v", got, got.DataPercent(), got.MetadataPercent(), err)
			}
		})
	}
	good := []Target{{Type: "thin-pool", Status: "0 11/1024 0/160 - rw discard_passdown queue_if_no_space - 1024"}}
	marked, err := ThinPoolOf(good, []Target{{Type: "thin-pool", Status: "253:1 253:2 128 1280 0"}})
	if err != nil || marked.LowWaterBlocks != 1280 {
		t.Errorf("got %+v, %v", marked, err)
	}
	for name, bad := range map[string][2][]Target{
		"a linear device":         {{{Type: "linear"}}, aTable},
		"a device without status": {nil, aTable},
		"a device without table":  {good, nil},
		"another device's table":  {good, {{Type: "linear", Status: "253:1 0"}}},
		"half a table":            {good, {{Type: "thin-pool", Status: "253:1 253:2 128"}}},
		"a mark in words":         {good, {{Type: "thin-pool", Status: "253:1 253:2 128 low"}}},
		"chunks in words":         {good, {{Type: "thin-pool", Status: "253:1 253:2 small 1280"}}},
	} {
		if got, err := ThinPoolOf(bad[0], bad[1]); err == nil {
			t.Errorf("%s is taken for a thin pool: %+v", name, got)
		}
	}
}

func FuzzThinPool(f *testing.F) {
	f.Add("0 11/1024 0/160 - rw discard_passdown queue_if_no_space - 1024")
	f.Add("Fail")
	f.Fuzz(func(t *testing.T, status string) {
		p, err := parseThinPool(status)
		if err == nil && (p.DataUsed > p.DataBlocks || p.MetadataUsed > p.MetadataBlocks || p.Mode == "") {
			t.Errorf("%q is %+v", status, p)
		}
	})
}

// Where the kernel has no device-mapper there is no device.
func TestStatusWithoutDeviceMapper(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	status := func() error { _, err := Control{Root: root}.Status("LVM-x"); return err }
	if err := status(); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("without sysfs, which proves nothing: %v", err)
	}
	classes := filepath.Join(root, "sys/class/misc")
	if err := os.MkdirAll(classes, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := status(); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("the kernel has none: %v", err)
	}
	if err := os.Mkdir(filepath.Join(classes, "device-mapper"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := status(); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("the kernel has one, and its file is missing: %v", err)
	}
	if _, err := (Control{Root: "/"}).Status(strings.Repeat("x", 200)); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a UUID that none can have: %v", err)
	}
}

// On a machine with device-mapper a device that is not there is proven not to be.
func TestStatusOfNothing(t *testing.T) {
	t.Parallel()
	c := Control{Root: "/"}
	file, err := c.open()
	if err != nil {
		t.Skip("this machine has no device-mapper")
	}
	file.Close()
	_, err = c.Status("LVM-00000000000000000000000000000000nothing")
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		t.Skipf("device-mapper does not answer here: %v", err)
	}
	if !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want that it is not there", err)
	}
}

func TestParseDevice(t *testing.T) {
	t.Parallel()
	header := &unix.DmIoctl{Dev: unix.Mkdev(253, 7), Open_count: 2, Flags: unix.DM_ACTIVE_PRESENT_FLAG | unix.DM_SUSPEND_FLAG}
	copy(header.Name[:], "berth-x")
	copy(header.Uuid[:], "CRYPT-LUKS2-abc-berth-x")
	want := Device{Name: "berth-x", UUID: "CRYPT-LUKS2-abc-berth-x", Major: 253, Minor: 7, OpenCount: 2, Active: true, Suspended: true}
	if got := parseDevice(header); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	header.Flags = 0
	if got := parseDevice(header); got.Active || got.Suspended {
		t.Errorf("without flags: %+v", got)
	}
}

func TestDeviceRefusesNames(t *testing.T) {
	t.Parallel()
	c := Control{Root: t.TempDir()}
	for _, name := range []string{"", strings.Repeat("x", unix.DM_NAME_LEN)} {
		if _, err := c.Device(name); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("Device(%q) = %v, want ErrInvalid", name, err)
		}
	}
	// Nothing says that there is no device-mapper: neither its file nor sysfs is there.
	if _, err := c.Device("berth-x"); err == nil || errors.Is(err, volume.ErrNotFound) {
		t.Errorf("without sysfs: %v, want an error that proves nothing", err)
	}
	if err := os.MkdirAll(filepath.Join(c.Root, "sys/class/misc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Device("berth-x"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("without device-mapper: %v, want ErrNotFound", err)
	}
	if err := c.Suspend(""); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("Suspend of nothing: %v, want ErrInvalid", err)
	}
}
