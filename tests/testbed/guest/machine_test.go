// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// flagValues returns the values that a flag has in a command line.
func flagValues(argv []string, flag string) []string {
	var values []string
	for i, argument := range argv[:len(argv)-1] {
		if argument == flag {
			values = append(values, argv[i+1])
		}
	}
	return values
}

func TestArgvAttachesDisksInOrder(t *testing.T) {
	t.Parallel()
	root := Disk{Serial: "ROOT", Class: ClassRoot, Bus: BusVirtio, SizeBytes: 1 << 30, Image: "root.qcow2", Backing: "/base.img"}
	nvme := virtioDisk("M")
	nvme.Bus = BusNVMe
	scsi := virtioDisk("S")
	scsi.Bus, scsi.WWN = BusSCSI, 0x5000000000000101
	foreign := virtioDisk("F")
	foreign.Class = ClassForeign
	argv, err := Machine{
		Name: "node1", Accel: TCG, CPUs: 2, MemoryMiB: 512, Disks: []Disk{root, virtioDisk("B"), scsi, nvme, virtioDisk("A"), foreign},
		Tap: "tap1", MAC: "52:54:00:be:00:01", Seed: "/seed",
	}.Argv()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, value := range flagValues(argv, "-device") {
		var device struct{ Driver, Serial, Bus, Drive string }
		if json.Unmarshal([]byte(value), &device) == nil {
			got = append(got, fmt.Sprintf("%s %s at %q from %s", device.Driver, device.Serial, device.Bus, device.Drive))
		}
	}
	want := []string{
		`virtio-blk-pci ROOT at "" from blk-root`,
		`virtio-blk-pci B at "port0" from blk-b`,
		`scsi-hd S at "scsi0.0" from blk-s`,
		`nvme M at "port1" from blk-m`,
		`virtio-blk-pci A at "port2" from blk-a`,
		`virtio-blk-pci F at "port3" from blk-f`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("devices:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, value := range flagValues(argv, "-blockdev") {
		var node struct {
			Driver  string
			Discard string
			Detect  string `json:"detect-zeroes"`
			File    struct{ Filename, Discard string }
		}
		if err := json.Unmarshal([]byte(value), &node); err != nil {
			t.Fatal(err)
		}
		wantDriver := "qcow2"
		if node.File.Filename == "f.img" {
			wantDriver = "raw"
		}
		if node.Driver != wantDriver || node.Discard != "unmap" || node.File.Discard != "unmap" || node.Detect != "unmap" {
			t.Errorf("block node %s", value)
		}
	}
}

func TestArgvRefuses(t *testing.T) {
	t.Parallel()
	many := make([]Disk, 0, rootPorts+1)
	for n := range rootPorts + 1 {
		many = append(many, virtioDisk(fmt.Sprintf("D%d", n)))
	}
	for name, disks := range map[string][]Disk{
		"more disks than ports":  many,
		"a serial too long":      {virtioDisk(strings.Repeat("A", 21))},
		"a serial with a comma":  {virtioDisk("A,B")},
		"no serial":              {virtioDisk("")},
		"no size":                {{Serial: "A", Bus: BusVirtio}},
		"half a sector":          {{Serial: "A", Bus: BusVirtio, SizeBytes: 100}},
		"an unknown bus":         {{Serial: "A", Bus: "ide", SizeBytes: 512}},
		"a WWN on a virtio disk": {{Serial: "A", Bus: BusVirtio, SizeBytes: 512, WWN: 1}},
	} {
		if _, err := (Machine{Disks: disks}).Argv(); err == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}

func TestCreateDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := virtioDisk("A")
	if err := disk.Create(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if size, err := disk.ImageSizeBytes(t.Context(), dir); err != nil || size != disk.SizeBytes {
		t.Fatalf("the image holds a disk of %d bytes, %v", size, err)
	}
	if _, err := virtioDisk("B").ImageSizeBytes(t.Context(), dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image that is not there: %v", err)
	}
	path := filepath.Join(dir, "a.img")
	if err := os.WriteFile(path, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := disk.Create(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "data" {
		t.Errorf("an image that was there is now %q, %v", content, err)
	}
}
