// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/berth-dev/berth/pkg/block"
)

// FuzzDevice reads a disk whose firmware says anything: nothing that cannot stand in an
// object may come out, and no size or identity that was not understood.
func FuzzDevice(f *testing.F) {
	f.Add("254:16", "2097152", "0", "FAST-1", "", uint8(0), []byte(nil))
	f.Add("8:16", "9223372036854775807", "1", "", "naa.5000c500a1b2c3d4", uint8(1), []byte("\x00\x80\x00\x04ABCD"))
	f.Add("8", "-1", "2", "\x1b[31m", "t10.ATA     x", uint8(1), []byte("\x00\x80"))
	f.Add("259:1", "0x10", "", "\xff\xfe", "eui.0025385b71b0dcb2", uint8(2), []byte{})
	f.Fuzz(func(t *testing.T, number, sectors, ro, serial, wwid string, kind uint8, page []byte) {
		name := []string{"vdb", "sdb", "nvme0n1"}[kind%3] // the kernel's own choice
		tree := newTree(t)
		path := "/devices/pci0000:00/0000:00:05.0/virtio2/block/" + name
		tree.device(path, number, 0, attributes{
			"size": sectors, "ro": ro, "serial": serial, "device/serial": serial, "device/wwid": wwid, "nguid": wwid, "device/vpd_pg80": string(page),
		})
		d, err := tree.sysfs().Device(t.Context(), name)
		if err != nil {
			return
		}
		for _, said := range []string{d.Serial, d.WWN, d.NGUID, d.Vendor, d.Model, block.Identify(&d).Value} {
			if !utf8.ValidString(said) || len(said) > 1024 || strings.ContainsFunc(said, unicode.IsControl) {
				t.Errorf("it says %q of itself", said)
			}
		}
		if d.Err != nil {
			return
		}
		if want, parseErr := strconv.ParseInt(strings.TrimSpace(sectors), 10, 64); d.SizeBytes < 0 || parseErr == nil && want >= 0 && want < 1<<53 && d.SizeBytes != want*512 {
			t.Errorf("%q sectors are %d bytes", sectors, d.SizeBytes)
		}
	})
}
