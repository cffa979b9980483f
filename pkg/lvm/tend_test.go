// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

const thinMiB = 1 << 20

func tend(t *testing.T, b *lvm.Backend) *lvm.ThinState {
	t.Helper()
	state, err := b.Tend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func thinVolume(t *testing.T, b *lvm.Backend, n int, sizeBytes int64) volume.Location {
	t.Helper()
	spec := volume.Spec{ID: volumetest.ID(n), Name: "pvc", SizeBytes: sizeBytes, Access: volume.AccessBlock}
	rec, err := b.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), spec.ID, rec)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func fill(t *testing.T, loc volume.Location, bytes int64) {
	t.Helper()
	data := []byte(strings.Repeat("data", int(bytes/4)))
	if err := os.WriteFile(loc.Device, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(loc.Device, loc.SizeBytes); err != nil {
		t.Fatal(err)
	}
}

// A pool that fills grows by its policy until the group is full, and then admits nothing
// above its high-water mark; with a disk it goes on.
func TestThinPoolGrowsAsItFills(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 100*thinMiB+lvmtest.ThinMetadataBytes)
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 300, InitialPercent: 20, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	b := vg.Backend()
	if state := tend(t, b); state.DataBytes != 20*thinMiB || state.Grown {
		t.Fatalf("at first: %+v", state)
	}
	before := vg.Processes()
	if state := tend(t, b); state.Grown || vg.Processes() != before {
		t.Fatalf("without need: %+v, by %d processes", state, vg.Processes()-before)
	}
	loc := thinVolume(t, b, 1, 100*thinMiB)
	fill(t, loc, 17*thinMiB)
	if state := tend(t, b); state.DataBytes != 24*thinMiB || !state.Grown {
		t.Fatalf("above its threshold: %+v", state)
	}
	fill(t, loc, 97*thinMiB)
	if state := tend(t, b); state.DataBytes != 100*thinMiB || !state.Grown {
		t.Fatalf("nearly full: %+v", state)
	}
	c, err := b.Capacity(t.Context())
	if err != nil || c.FreeBytes != 0 || c.TotalBytes != 300*thinMiB {
		t.Fatalf("above the high-water mark: %+v, %v", c, err)
	}
	if _, err := b.Create(t.Context(), volume.Spec{ID: volumetest.ID(2), Name: "pvc", SizeBytes: thinMiB, Access: volume.AccessBlock}); !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("create above the high-water mark: %v", err)
	}
	vg.AddDisk("/dev/vdz", 51*thinMiB, "")
	vg.Devices = append(vg.Devices, "/dev/vdz")
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	if _, err := client.ExtendGroup(t.Context(), vg.UUID, lvm.GroupSpec{Name: vg.Name, PoolUID: lvmtest.PoolUID, Devices: []string{"/dev/vdz"}}); err != nil {
		t.Fatal(err)
	}
	if state := tend(t, b); state.DataBytes != 144*thinMiB || !state.Grown {
		t.Fatalf("with another disk: %+v", state)
	}
	thinVolume(t, b, 2, thinMiB)
}

// The metadata grow before lvm makes no volume any more.
func TestThinMetadataGrow(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	b := vg.Backend()
	vg.FillMetadata(1500) // of 2048
	state := tend(t, b)
	if state.MetadataBytes != 16*thinMiB || !state.Grown || state.DataBytes != 100*thinMiB {
		t.Fatalf("got %+v", state)
	}
	thinVolume(t, b, 1, thinMiB)
}

func TestThinPoolFollowsItsPolicy(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	b := vg.Backend()
	if state := tend(t, b); state.Usage.FailsWhenFull {
		t.Fatalf("at first: %+v", state)
	}
	vg.Thin.FailWhenFull = new(true)
	if state := tend(t, b); !state.Usage.FailsWhenFull {
		t.Fatalf("after it was changed: %+v", state)
	}
	vg.Thin.FailWhenFull = nil
	if state := tend(t, b); !state.Usage.FailsWhenFull {
		t.Fatalf("when nobody says how it should be: %+v", state)
	}
	vg.Thin.ThresholdPercent = 20
	if _, err := b.Tend(t.Context()); !errors.Is(err, volume.ErrInvalid) {
		t.Fatalf("a policy that is none: %v", err)
	}
}

func TestThinPoolInALittleGroup(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 20*thinMiB)
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	if _, err := vg.Backend().Tend(t.Context()); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
}

// A volume of the pool's name that is not ours stays as it is.
func TestForeignVolumeWithTheNameOfTheThinPool(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 200*thinMiB)
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Add("thin", 3) })
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	before := len(vg.Commands())
	if _, err := vg.Backend().Tend(t.Context()); !errors.Is(err, volume.ErrExists) {
		t.Errorf("got %v", err)
	}
	if said := vg.Commands()[before:]; len(said) > 0 {
		t.Errorf("lvm was told %q", said)
	}
}

// The thin pool goes with its group, but not while anything is in it.
func TestRemoveGroupWithThinPool(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	b := vg.Backend()
	thinVolume(t, b, 1, thinMiB)
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	if err := client.RemoveGroup(t.Context(), vg.UUID, lvmtest.PoolUID, nil); !errors.Is(err, volume.ErrInUse) {
		t.Fatalf("with a volume: %v", err)
	}
	if err := b.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeDiscard); err != nil {
		t.Fatal(err)
	}
	if err := client.RemoveGroup(t.Context(), vg.UUID, lvmtest.PoolUID, nil); err != nil {
		t.Fatal(err)
	}
	if got := vg.Signature(vg.Devices[0]); got != "" {
		t.Errorf("the disk holds %s", got)
	}
}

// After a reboot nothing is active; the pool is, as soon as it is looked after.
func TestThinPoolAfterReboot(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	fill(t, thinVolume(t, vg.Backend(), 1, 50*thinMiB), 20*thinMiB)
	vg.Reboot()
	state := tend(t, vg.Backend())
	if got := state.Usage.DataPercent(); got < 20 || got > 22 {
		t.Errorf("%d %% are in use", got)
	}
}

// A pool that the host activated tells of nothing in time; it is made to, once.
func TestThinPoolGetsItsLowWaterMark(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	b := vg.Backend()
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Unmark("thin") })
	before := len(vg.Commands())
	if state := tend(t, b); state.Usage.LowWaterBlocks == 0 {
		t.Errorf("got %+v", state)
	}
	tend(t, b)
	if said := vg.Commands()[before:]; len(said) != 1 || !strings.Contains(said[0], "--refresh") || !strings.Contains(said[0], "thin_pool_autoextend_threshold=95") {
		t.Errorf("lvm was told %q", said)
	}
}

// One that cannot grow, and into which volumes are let until it is full, gets none: lvm would
// give it none, however often it is asked. When it can grow again, it gets one.
func TestThinPoolWithoutLowWaterMark(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 100*thinMiB)
	vg.Thin = &lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 1, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 100}
	vg.Edit(vg.Name, func(e *lvmtest.Editor) { e.Unmark("thin") })
	b := vg.Backend()
	before := len(vg.Commands())
	tend(t, b)
	if said := vg.Commands()[before:]; len(said) > 0 {
		t.Errorf("lvm was told %q", said)
	}
	vg.AddDisk("/dev/vdz", 101*thinMiB, "")
	vg.Devices = append(vg.Devices, "/dev/vdz")
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	if _, err := client.ExtendGroup(t.Context(), vg.UUID, lvm.GroupSpec{Name: vg.Name, PoolUID: lvmtest.PoolUID, Devices: []string{"/dev/vdz"}}); err != nil {
		t.Fatal(err)
	}
	before = len(vg.Commands())
	if state := tend(t, b); state.Usage.LowWaterBlocks == 0 {
		t.Errorf("got %+v", state)
	}
	if said := vg.Commands()[before:]; len(said) != 1 || !strings.Contains(said[0], "--refresh") || !strings.Contains(said[0], "thin_pool_autoextend_threshold=80") {
		t.Errorf("lvm was told %q", said)
	}
}

// A pool that was extended by an lvm that was killed before the kernel had that has in the end
// what lvm's metadata say.
func TestThinPoolThatLags(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewThinVG(t, 50*thinMiB)
	b := vg.Backend()
	tend(t, b)
	vg.AddDisk("/dev/vdz", 101*thinMiB, "")
	vg.Devices = append(vg.Devices, "/dev/vdz")
	client := lvm.NewClient(vg.Runner(), vg.Flush)
	if _, err := client.ExtendGroup(t.Context(), vg.UUID, lvm.GroupSpec{Name: vg.Name, PoolUID: lvmtest.PoolUID, Devices: []string{"/dev/vdz"}}); err != nil {
		t.Fatal(err)
	}
	vg.Inject(lvmtest.Fault{Command: "lvextend", Mode: lvmtest.DieWithin})
	_, _ = b.Tend(t.Context())
	if left := vg.Faults(); len(left) > 0 {
		t.Fatalf("it was not extended: %+v", left)
	}
	state := tend(t, b)
	if u := state.Usage; state.DataBytes <= 50*thinMiB || int64(u.DataBlocks*u.ChunkBytes) != state.DataBytes {
		t.Errorf("the kernel has %d chunks of %d bytes, lvm knows of %d bytes", u.DataBlocks, u.ChunkBytes, state.DataBytes)
	}
	before := vg.Processes()
	if tend(t, b); vg.Processes() != before {
		t.Errorf("to look again took %d processes", vg.Processes()-before)
	}
}

// A pool whose metadata are of another transaction than lvm expects is left as it is, is said
// to be so after one attempt, and goes on when somebody has mended it.
func TestThinPoolOfAnotherTransaction(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	w.VG.LosePower(0)
	w.VG.Reboot()
	w.VG.SetOtherTransaction(true)
	w.backend = w.VG.Backend()
	for range 3 {
		processes := w.VG.Processes()
		_, err := w.backend.Tend(t.Context())
		if !errors.Is(err, lvm.ErrThinTransaction) || !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "transaction_id is 8, while expected 7") {
			t.Errorf("got %v", err)
		}
		if n := w.VG.Processes() - processes; n > 2 {
			t.Errorf("it cost %d processes", n)
		}
	}
	for _, command := range w.VG.Commands() {
		if strings.HasPrefix(command, "vgcfgrestore") || strings.Contains(command, "--force") {
			t.Errorf("it ran %s", command)
		}
	}
	w.VG.SetOtherTransaction(false)
	tend(t, w.backend)
	w.device(t, id(2), w.rec)
}
