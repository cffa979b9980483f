// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testdata/torn.img.gz is the beginning of a physical volume of a node whose power was
// cut while lvcreate committed generation 66: the header leads to a text of which only
// the first 1024 bytes came to the disk. Generation 65 is before it.
const (
	tornGroup = "BdzGhu-j1r6-1Wmt-yAZB-ql0L-BljM-4Fz7B2"
	tornPV    = "e3ECUCpDmrHD9cOZmROV54UWAENg3DRK"
	tornArea  = 4096
	// text of generation 65, from the area's beginning.
	before, beforeSize = 128512 - tornArea, 1268
)

// tornDisk returns a root with the disk under /dev, and what led to generation 65.
func tornDisk(t *testing.T) (root string, kept Generation) {
	t.Helper()
	packed, err := os.Open("testdata/torn.img.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	image, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	for _, dir := range []string{"dev", "run/lock"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "dev/vdb"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	sector := bytes.Clone(image[tornArea : tornArea+mdaHeaderBytes])
	text := image[tornArea+before:][:beforeSize]
	lead(sector, before, beforeSize, checksum(text))
	return root, Generation{GroupUUID: tornGroup, Seqno: 65, Headers: []AreaHeader{{PVUUID: tornPV, OffsetBytes: tornArea, Sector: sector}}}
}

// lead makes a header lead to another text.
func lead(sector []byte, text, size uint64, sum uint32) {
	binary.LittleEndian.PutUint64(sector[mdaTextAt:], text)
	binary.LittleEndian.PutUint64(sector[mdaTextSizeAt:], size)
	binary.LittleEndian.PutUint32(sector[mdaTextSumAt:], sum)
	binary.LittleEndian.PutUint32(sector[mdaSumAt:], checksum(sector[mdaMagicAt:]))
}

func onDisk(t *testing.T, root string) []byte {
	t.Helper()
	image, err := os.ReadFile(filepath.Join(root, "dev/vdb"))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestRollBackATornChange(t *testing.T) {
	t.Parallel()
	root, kept := tornDisk(t)
	m := DiskMetadata{Root: root}
	was := onDisk(t, root)
	if headers, err := m.Headers("/dev/vdb", tornGroup, 66); err != nil || len(headers) > 0 {
		t.Errorf("half a text was taken for generation 66: %+v, %v", headers, err)
	}
	changed, err := m.RollBack("/dev/vdb", "berth-fast", kept)
	if err != nil || !changed {
		t.Fatalf("RollBack = %v, %v", changed, err)
	}
	uuid, seqno, ok, err := DiskSeqno(root)("/dev/vdb")
	if err != nil || !ok || uuid != tornGroup || seqno != 65 {
		t.Errorf("on the disk is generation %d of %s, %v, %v", seqno, uuid, ok, err)
	}
	headers, err := m.Headers("/dev/vdb", tornGroup, 65)
	if err != nil || len(headers) != 1 || headers[0].PVUUID != tornPV || !bytes.Equal(headers[0].Sector, kept.Headers[0].Sector) {
		t.Errorf("Headers = %+v, %v", headers, err)
	}
	for seqno, group := range map[uint64]string{66: tornGroup, 64: tornGroup, 65: "other"} {
		if headers, err := m.Headers("/dev/vdb", group, seqno); err != nil || len(headers) > 0 {
			t.Errorf("generation 65 was taken for %d of %s: %+v, %v", seqno, group, headers, err)
		}
	}
	is := onDisk(t, root)
	copy(was[tornArea:], kept.Headers[0].Sector)
	if !bytes.Equal(is, was) {
		t.Error("more than the header was written")
	}
	if changed, err := m.RollBack("/dev/vdb", "berth-fast", kept); err != nil || changed {
		t.Errorf("again: %v, %v", changed, err)
	}
}

func TestRollBackLeavesAlone(t *testing.T) {
	t.Parallel()
	header := func(edit func(sector []byte)) func(*Generation, []byte) {
		return func(g *Generation, _ []byte) { edit(g.Headers[0].Sector) }
	}
	cases := []struct {
		name   string
		change func(kept *Generation, image []byte)
		want   string
	}{
		{"nothing was kept of that device", func(g *Generation, _ []byte) { g.Headers[0].PVUUID = strings.Repeat("x", 32) }, "was not kept"},
		{"nothing was kept of that area", func(g *Generation, _ []byte) { g.Headers[0].OffsetBytes = 8192 }, "was not kept"},
		{"half a header was kept", func(g *Generation, _ []byte) { g.Headers[0].Sector = g.Headers[0].Sector[:100] }, "was not kept"},
		{"the header that was kept is damaged", header(func(s []byte) { s[100] ^= 1 }), "damaged"},
		{"it leads elsewhere", header(func(s []byte) { lead(s, before+512, beforeSize, 0) }), "not there"},
		{"it leads nowhere", header(func(s []byte) { lead(s, 0, 0, 0) }), "another metadata area"},
		{"the text before is damaged", func(_ *Generation, image []byte) { image[tornArea+before+700] ^= 1 }, "not there"},
		{"another generation was kept", func(g *Generation, _ []byte) { g.Seqno = 64 }, "generation 65"},
		{"another group was kept", func(g *Generation, _ []byte) { g.GroupUUID = "other" }, "other"},
		{"somebody else's change came between", func(_ *Generation, image []byte) {
			lead(image[tornArea:][:mdaHeaderBytes], before+4096, 2000, 1)
		}, "other changes came between"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root, kept := tornDisk(t)
			image := onDisk(t, root)
			c.change(&kept, image)
			if err := os.WriteFile(filepath.Join(root, "dev/vdb"), image, 0o600); err != nil {
				t.Fatal(err)
			}
			changed, err := DiskMetadata{Root: root}.RollBack("/dev/vdb", "berth-fast", kept)
			if changed || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("RollBack = %v, %v, want %q", changed, err, c.want)
			}
			if !bytes.Equal(onDisk(t, root), image) {
				t.Error("the disk was written to")
			}
		})
	}
}

// TestRollBackOfABatch: of several changes in one process it was written down before
// that there may be several.
func TestRollBackOfABatch(t *testing.T) {
	t.Parallel()
	root, kept := tornDisk(t)
	image := onDisk(t, root)
	lead(image[tornArea:][:mdaHeaderBytes], before+4096, 2000, 1)
	if err := os.WriteFile(filepath.Join(root, "dev/vdb"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	kept.Acting = true
	if changed, err := (DiskMetadata{Root: root}).RollBack("/dev/vdb", "berth-fast", kept); err != nil || !changed {
		t.Errorf("RollBack = %v, %v", changed, err)
	}
}

// TestRollBackWaitsForLVM: while a command of lvm holds the group's lock nothing is
// written.
func TestRollBackWaitsForLVM(t *testing.T) {
	t.Parallel()
	root, kept := tornDisk(t)
	unlock, err := lockGroup(root, "berth-fast")
	if err != nil {
		t.Fatal(err)
	}
	was := onDisk(t, root)
	done := make(chan error, 1)
	go func() {
		_, err := DiskMetadata{Root: root}.RollBack("/dev/vdb", "berth-fast", kept)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("RollBack did not wait: %v", err)
	case <-t.Context().Done():
	case <-time.After(4 * lockInterval):
	}
	if !bytes.Equal(onDisk(t, root), was) {
		t.Error("the disk was written to")
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLockOfAFileThatIsRemoved(t *testing.T) {
	t.Parallel()
	root, _ := tornDisk(t)
	path := filepath.Join(root, lockDirectory, "V_berth-fast")
	unlock, err := lockGroup(root, "berth-fast")
	if err != nil {
		t.Fatal(err)
	}
	// As lvm does when it is done (lib/misc/lvm-flock.c).
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	unlock()
	unlock, err = lockGroup(root, "berth-fast")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the lock is on another file: %v", err)
	}
}

// The place of the next text, in the cases of _vg_write_raw.
func TestNextText(t *testing.T) {
	t.Parallel()
	const size = 64 << 10
	for _, c := range []struct{ text, textSize, want int64 }{
		{512, 1, 1024},
		{512, 512, 1024},
		{512, 513, 1536},
		{before, beforeSize, 130048 - tornArea},
		{size - 512, 512, 512},  // ends with the ring
		{size - 512, 300, 512},  // ends in the last sector
		{size - 512, 600, 1024}, // goes on at the ring's beginning
		{size - 1024, 1024 + 512, 1024},
	} {
		a := area{text: c.text, textSize: c.textSize, sizeBytes: size}
		if c.text == before {
			a.sizeBytes = 68153344
		}
		if got := a.next(); got != c.want {
			t.Errorf("after %d bytes at %d: %d, want %d", c.textSize, c.text, got, c.want)
		}
	}
}

func FuzzRollBack(f *testing.F) {
	packed, err := os.Open("testdata/torn.img.gz")
	if err != nil {
		f.Fatal(err)
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		f.Fatal(err)
	}
	image, err := io.ReadAll(unpacked)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image[:8192], image[tornArea:][:mdaHeaderBytes], true)
	f.Fuzz(func(t *testing.T, disk, sector []byte, acting bool) {
		to := Generation{GroupUUID: tornGroup, Seqno: 65, Acting: acting, Headers: []AreaHeader{{PVUUID: tornPV, OffsetBytes: tornArea, Sector: sector}}}
		was := slices.Clone(disk)
		back, err := wayBack(bytes.NewReader(disk), to)
		if err != nil && len(back) > 0 {
			t.Errorf("%d headers with %v", len(back), err)
		}
		if !bytes.Equal(disk, was) {
			t.Error("the disk was changed")
		}
	})
}
