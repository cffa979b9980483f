// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// A disk was pulled out while its volume was active, and is another device when it is back.
func TestDiskIsGoneAndBack(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 20*lvmtest.ExtentBytes)
	b := vg.Backend()
	id := volumetest.ID(1)
	rec, err := b.Create(t.Context(), volume.Spec{ID: id, Name: "pvc", SizeBytes: lvmtest.ExtentBytes, Access: volume.AccessBlock})
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id, rec)
	if err != nil {
		t.Fatal(err)
	}
	release := vg.Hold(loc.Device)
	problems := func(want string) {
		t.Helper()
		found, err := b.Problems(t.Context(), id, rec)
		got := ""
		if len(found) == 1 && found[0].Inaccessible {
			got = found[0].Reason
		}
		if err != nil || got != want {
			t.Errorf("problems: %+v, %v, want %q", found, err, want)
		}
	}
	problems("")
	disk := vg.Devices[0]
	vg.SetMissing(disk, true)
	problems(lvm.ReasonDiskGone)
	vg.SetMissing(disk, false)
	problems(lvm.ReasonDiskGone)
	for range 2 {
		if loc, err := b.Locate(t.Context(), id, rec); !errors.Is(err, volume.ErrGone) || !errors.Is(err, volume.ErrInUse) {
			t.Fatalf("while somebody has it open: %+v, %v", loc, err)
		}
	}
	release()
	if _, err := b.Locate(t.Context(), id, rec); err != nil {
		t.Fatal(err)
	}
	problems("")
	before := vg.Processes()
	if _, err := b.Locate(t.Context(), id, rec); err != nil || vg.Processes() != before {
		t.Errorf("again: %v, by %d processes", err, vg.Processes()-before)
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(h *host, block string)
		gone   bool
	}{
		"there":                      {func(*host, string) {}, false},
		"unplugged":                  {func(h *host, block string) { h.must(os.RemoveAll(filepath.Join(block, "sda"))) }, true},
		"another one has its number": {func(h *host, block string) { h.must(os.Remove(filepath.Join(block, "sda/holders/dm-2"))) }, true},
		"the table is another one":   {func(h *host, block string) { h.must(os.Remove(filepath.Join(block, "dm-2/slaves/sda"))) }, false},
	} {
		h := newHost(t)
		block := filepath.Join(h.root, "sys/block")
		h.add(1, wantDM, 16)
		h.add(2, wantDM+"-real", 16)
		h.must(os.MkdirAll(filepath.Join(block, "sda/holders/dm-2"), 0o755))
		h.must(os.WriteFile(filepath.Join(block, "sda/dev"), []byte("8:0\n"), 0o600))
		h.must(os.Symlink("../../block/sda", filepath.Join(h.root, "sys/dev/block/8:0")))
		for above, below := range map[string]string{"dm-1": "dm-2", "dm-2": "sda"} {
			h.must(os.MkdirAll(filepath.Join(block, above, "slaves"), 0o755))
			h.must(os.Symlink("../../"+below, filepath.Join(block, above, "slaves", below)))
			h.must(os.MkdirAll(filepath.Join(block, below, "holders", above), 0o755))
		}
		tt.change(h, block)
		gone, err := lvm.HostNodes{Root: h.root}.Gone(t.Context(), volume.Location{Device: "/dev/dm-1"})
		if err != nil || gone != tt.gone {
			t.Errorf("%s: gone %v, %v", name, gone, err)
		}
	}
}
