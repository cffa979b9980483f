// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseUevent(t *testing.T) {
	t.Parallel()
	message := "add@/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb\x00ACTION=add\x00" +
		"DEVPATH=/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb\x00SUBSYSTEM=block\x00MAJOR=254\x00MINOR=16\x00" +
		"DEVNAME=vdb\x00DEVTYPE=disk\x00DISKSEQ=7\x00SEQNUM=1234\x00"
	event, err := ParseUevent([]byte(message))
	want := Uevent{Action: "add", DevPath: "/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb", Subsystem: "block", Major: 254, Minor: 16, Sequence: 1234}
	if err != nil || event != want {
		t.Errorf("got %+v, %v, want %+v", event, err, want)
	}
	if event.KernelName() != "vdb" {
		t.Errorf("KernelName = %q", event.KernelName())
	}
	for name, message := range map[string]string{
		"empty":                 "",
		"of udevd":              "libudev\x00\xfe\xed\xca\xfe",
		"no path":               "add@",
		"relative path":         "add@devices/vdb",
		"another action inside": "add@/devices/vdb\x00ACTION=remove",
		"another path inside":   "add@/devices/vdb\x00DEVPATH=/devices/vdc",
		"number too large":      "add@/devices/vdb\x00MAJOR=99999999999",
	} {
		if event, err := ParseUevent([]byte(message)); err == nil {
			t.Errorf("%s: taken as %+v", name, event)
		}
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte("add@/devices/virtual/block/loop0\x00ACTION=add\x00DEVPATH=/devices/virtual/block/loop0\x00SUBSYSTEM=block\x00MAJOR=7\x00MINOR=0\x00SEQNUM=12\x00"))
	f.Add([]byte("libudev\x00\xfe\xed\xca\xfe"))
	f.Fuzz(func(t *testing.T, message []byte) {
		event, err := ParseUevent(message)
		if err == nil && (event.Action == "" || !strings.HasPrefix(event.DevPath, "/") || strings.Contains(event.KernelName(), "\x00")) {
			t.Errorf("took %q as %+v", message, event)
		}
	})
}

func FuzzParseUdevRecord(f *testing.F) {
	f.Add([]byte("S:disk/by-id/virtio-FAST\nI:1234\nE:ID_SERIAL=FAST\nE:ID_FS_LABEL_ENC=a\\x20b\nG:systemd\nV:1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		record := ParseUdevRecord(data)
		for _, link := range record.Links {
			if link == "" {
				t.Error("an empty link")
			}
		}
		record.content()
	})
}

func FuzzParseProbe(f *testing.F) {
	f.Add([]byte("DEVNAME=/dev/vdb\nLABEL=a\\ b\nUUID=x\nTYPE=ext4\nUSAGE=filesystem\n"))
	f.Add([]byte("PTTYPE=gpt\nPTUUID=y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := ParseProbe(data)
		if (c.Type != "" || c.PartitionTable != "" || c.UUID != "") && !c.Found {
			t.Errorf("content without Found: %+v", c)
		}
		for _, s := range []string{c.Type, c.UUID, c.Label, c.Kind, c.PartitionTable} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\x1b") {
				t.Errorf("%q must not get into an object", s)
			}
		}
	})
}

func FuzzParseSwaps(f *testing.F) {
	f.Add([]byte("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/vdb                                partition\t1048572\t\t0\t\t-2\n/a\\040b file 1 0 -3\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, path := range ParseSwaps(data) {
			if !strings.HasPrefix(path, "/") {
				t.Errorf("%q is not a path", path)
			}
		}
	})
}

func FuzzParseInotify(f *testing.F) {
	f.Add(make([]byte, 32))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, _ := ParseInotify(data)
		for _, event := range events {
			if number, ok := recordNumber(event.Name); ok && strings.ContainsAny(number, "/.") {
				t.Errorf("%q would leave the directory", number)
			}
		}
	})
}
