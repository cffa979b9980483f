// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestCounters(t *testing.T) {
	t.Parallel()
	f := newTree(t)
	f.device("/devices/pci0/host0/target0:0:0/0:0:0:0/block/sda", "8:0", 1<<30, attributes{"device/ioerr_cnt": "0x1f", "device/iotmo_cnt": "0x2"})
	f.device("/devices/pci0/host0/target0:0:1/0:0:1:0/block/sdb", "8:16", 1<<30, attributes{"device/ioerr_cnt": "0xa"}) // before Linux 5.18
	f.device("/devices/pci0/nvme/nvme0/nvme0n1", "259:0", 1<<30, nil)
	f.device("/devices/pci0/host0/target0:0:2/0:0:2:0/block/sdc", "8:32", 1<<30, attributes{"device/ioerr_cnt": "many"})
	for kernelName, want := range map[string]struct {
		counters block.Counters
		ok       bool
	}{
		"sda":     {block.Counters{Errors: 31, Timeouts: 2}, true},
		"sdb":     {block.Counters{Errors: 10}, true},
		"nvme0n1": {},
	} {
		if got, ok, err := f.sysfs().Counters(t.Context(), kernelName); err != nil || ok != want.ok || got != want.counters {
			t.Errorf("%s: %+v, %v, %v", kernelName, got, ok, err)
		}
	}
	if _, ok, err := f.sysfs().Counters(t.Context(), "sdc"); err == nil || ok {
		t.Errorf("no number: %v, %v", ok, err)
	}
	if _, _, err := f.sysfs().Counters(t.Context(), "sdd"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("no device: %v, want ErrNotFound", err)
	}
}

func TestUnder(t *testing.T) {
	t.Parallel()
	f := newTree(t)
	f.device("/devices/pci0/virtio1/block/vda", "254:0", 1<<30, nil)
	f.partition("/devices/pci0/virtio1/block/vda/vda2", "254:2", 2, 1<<29)
	f.device("/devices/pci0/virtio2/block/vdb", "254:16", 1<<30, nil)
	f.device("/devices/virtual/block/dm-0", "253:0", 1<<30, nil)
	f.stack("dm-0", "vda2")
	f.stack("dm-0", "vdb")
	// A directory of the test's own filesystem stands for one on dm-0.
	var st unix.Stat_t
	if err := unix.Stat(f.root, &st); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	f.link("sys/dev/block/"+number, "../../devices/virtual/block/dm-0")
	if err := os.MkdirAll(filepath.Join(f.root, "pool/volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := f.sysfs().Under(t.Context(), "/pool/volume")
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []string{"dm-0", "vda", "vda2", "vdb"}) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := f.sysfs().Under(t.Context(), "/pool/other"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("no such path: %v, want ErrNotFound", err)
	}
	if err := os.Remove(filepath.Join(f.root, "sys/dev/block", number)); err != nil {
		t.Fatal(err)
	}
	if got, err := f.sysfs().Under(t.Context(), "/pool/volume"); err != nil || got != nil {
		t.Errorf("a filesystem without a device: %q, %v", got, err)
	}
}
