// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/berth-dev/berth/pkg/volume"
)

// controller is an NVMe controller of one disk, which is a file.
type controller struct {
	oacs              uint16
	fna, flbas, dps   byte
	active, allocated []uint32
	// erase is what Format NVM does to the disk; nil does nothing and says that it did.
	erase func()
	// failing commands, by opcode.
	failing byte

	formats []nvmeCommand
}

var errController = errors.New("status 0x4002")

func (c *controller) admin(command nvmeCommand, data []byte) error {
	switch {
	case command.Opcode == c.failing:
		return errController
	case command.Opcode == nvmeFormatNVM:
		c.formats = append(c.formats, command)
		if c.erase != nil {
			c.erase()
		}
		return nil
	case command.Opcode != nvmeIdentify || len(data) != identifyBytes:
		return errors.New("invalid opcode")
	}
	list := func(numbers []uint32) {
		for i, n := range numbers {
			binary.LittleEndian.PutUint32(data[4*i:], n)
		}
	}
	switch command.DW10 {
	case cnsNamespace:
		data[26], data[29] = c.flbas, c.dps
	case cnsController:
		binary.LittleEndian.PutUint16(data[256:], c.oacs)
		data[524] = c.fna
	case cnsActive:
		list(c.active)
	case cnsAllocated:
		list(c.allocated)
	}
	return nil
}

func TestStructOfNVMeCommand(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(nvmeCommand{}); size != 72 {
		t.Errorf("nvmeCommand has %d bytes, the kernel's has 72", size)
	}
}

func TestCryptoErasable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		controller controller
		says       string // empty: it can
		err        error
	}{
		"each namespace has its key": {controller: controller{oacs: 1 << 1, fna: 1 << 2, active: []uint32{1, 2}}},
		"one namespace for all":      {controller: controller{oacs: 1<<1 | 1<<3, fna: 7, active: []uint32{2}, allocated: []uint32{2}}},
		"no list of those that are not attached": {
			controller: controller{oacs: 1 << 1, fna: 6, active: []uint32{2}, allocated: []uint32{1, 2}},
		},
		"no format":                {controller: controller{fna: 1 << 2}, says: "no cryptographic erase"},
		"no cryptographic erase":   {controller: controller{oacs: 1 << 1, fna: 3}, says: "no cryptographic erase"},
		"another one is erased":    {controller: controller{oacs: 1 << 1, fna: 6, active: []uint32{1, 2}}, says: "namespace 1 beside 2"},
		"another one is formatted": {controller: controller{oacs: 1 << 1, fna: 5, active: []uint32{2, 3}}, says: "namespace 3 beside 2"},
		"another host's is erased": {
			controller: controller{oacs: 1<<1 | 1<<3, fna: 6, active: []uint32{2}, allocated: []uint32{2, 9}}, says: "namespace 9 beside 2",
		},
		"it does not answer": {controller: controller{failing: nvmeIdentify}, err: errController},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := cryptoErasable(2, c.controller.admin)
			switch {
			case c.err != nil:
				if !errors.Is(err, c.err) || errors.Is(err, ErrCryptoEraseUnsupported) {
					t.Errorf("%v, want %v", err, c.err)
				}
			case c.says == "":
				if err != nil {
					t.Error(err)
				}
			case !errors.Is(err, ErrCryptoEraseUnsupported) || !strings.Contains(err.Error(), c.says):
				t.Errorf("%v, want ErrCryptoEraseUnsupported with %q", err, c.says)
			}
		})
	}
}

// The format stays as it is: it belongs to what the disk's owner has set up.
func TestFormatNamespaceKeepsTheFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flbas, dps byte
		want       uint32
	}{
		{0, 0, 2 << 9},
		{4, 0, 4 | 2<<9},
		{0x13, 0x0B, 3 | 1<<4 | 3<<5 | 1<<8 | 2<<9}, // metadata after the data, protection 3 at its start
		{0x65, 0x01, 5 | 1<<5 | 2<<9 | 3<<12},       // format 0x35
	} {
		k := controller{flbas: c.flbas, dps: c.dps}
		if err := formatNamespace(7, k.admin, eraseCrypto); err != nil {
			t.Fatal(err)
		}
		if len(k.formats) != 1 || k.formats[0].NamespaceID != 7 || k.formats[0].DW10 != c.want {
			t.Errorf("FLBAS %#x, DPS %#x: %+v, want %#x in dword 10", c.flbas, c.dps, k.formats, c.want)
		}
	}
}

func TestCryptoErase(t *testing.T) {
	t.Parallel()
	const size = 4*EdgeBytes + 8192
	able := func() *controller { return &controller{oacs: 1 << 1, fna: 1 << 2, active: []uint32{1}} }
	data := bytes.Repeat([]byte("secret42"), size/8)
	fill := func(b byte, file string) func() {
		return func() { _ = os.WriteFile(file, bytes.Repeat([]byte{b}, size), 0o600) }
	}
	for _, tt := range []struct {
		name      string
		prepare   func(c *controller, file string)
		want      error
		unchanged bool
	}{
		{name: "what was there is noise", prepare: func(c *controller, file string) { c.erase = fill(0x5A, file) }},
		{name: "what was there is zeroes", prepare: func(c *controller, file string) { c.erase = fill(0, file) }},
		{name: "it only says so", prepare: func(*controller, string) {}, want: volume.ErrNotBlank},
		{name: "it leaves the end", prepare: func(c *controller, file string) {
			c.erase = func() {
				f, err := os.OpenFile(file, os.O_WRONLY, 0)
				if err != nil {
					return
				}
				defer f.Close()
				_, _ = f.WriteAt(make([]byte, size-64<<10), 0)
			}
		}, want: volume.ErrNotBlank},
		{name: "it gets another size", prepare: func(c *controller, file string) { c.erase = func() { _ = os.Truncate(file, size/2) } }, want: volume.ErrIdentity},
		{name: "it refuses", prepare: func(c *controller, _ string) { c.failing = nvmeFormatNVM }, want: errController},
		{name: "it cannot", prepare: func(c *controller, _ string) { c.fna = 0 }, want: ErrCryptoEraseUnsupported, unchanged: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c := able()
			tt.prepare(c, file)
			if err := cryptoErase(f, size, 1, c.admin); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			now, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if tt.unchanged && (!slices.Equal(now, data) || len(c.formats) > 0) {
				t.Error("a disk that cannot was changed")
			}
		})
	}
}

// TestRealNVMe formats a disk that may be destroyed, without the cryptographic erase
// that emulated disks do not have:
//
//	BERTH_TEST_NVME=/dev/nvme0n1 go test ./pkg/block -run RealNVMe
func TestRealNVMe(t *testing.T) {
	path := os.Getenv("BERTH_TEST_NVME")
	if path == "" {
		t.Skip("BERTH_TEST_NVME names no NVMe disk to destroy")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := SizeBytes(f)
	if err != nil {
		t.Fatal(err)
	}
	nsid, admin, err := nvmeNamespace(f)
	if err != nil || nsid == 0 {
		t.Fatalf("namespace %d, %v", nsid, err)
	}
	t.Logf("namespace %d of %d bytes: %v", nsid, size, cryptoErasable(nsid, admin))
	marks, err := writeMarks(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := marks.requireGone(f); !errors.Is(err, volume.ErrNotBlank) {
		t.Fatalf("before the format: %v", err)
	}
	const eraseUserData = 1
	if err := formatNamespace(nsid, admin, eraseUserData); err != nil {
		t.Fatal(err)
	}
	if err := marks.requireGone(f); err != nil {
		t.Error(err)
	}
	if err := requireSize(f, size); err != nil {
		t.Error(err)
	}
}
