// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// adoptRig is a thin pool as its owner made it, with a volume and a snapshot of it, on two
// disks that mirror it.
type adoptRig struct {
	t       *testing.T
	client  *lvm.Client
	options lvm.Options
}

func newAdoptRig(t *testing.T) *adoptRig {
	t.Helper()
	disks := testDisks()
	if len(disks) < 2 || os.Geteuid() != 0 {
		t.Skipf("needs root, and disks to destroy, named by %s: 2", testDiskEnv)
	}
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &adoptRig{t: t, client: lvm.NewClient(host, lvm.DiskFlusher("/"))}
	r.owner("vgcreate", "customer", disks[0], disks[1])
	t.Cleanup(func() {
		r.owner("vgremove", "--yes", "--force", "customer")
		r.owner("pvremove", disks[0], disks[1])
		_ = host.Close()
	})
	r.owner("lvcreate", "--yes", "--type", "raid1", "--mirrors", "1", "--nosync", "--size", "256m", "--name", "tank", "customer")
	r.owner("lvcreate", "--yes", "--type", "raid1", "--mirrors", "1", "--nosync", "--size", "8m", "--name", "meta", "customer")
	r.owner("lvconvert", "--yes", "--type", "thin-pool", "--poolmetadata", "customer/meta", "customer/tank")
	r.owner("lvcreate", "--yes", "--virtualsize", "32m", "--thinpool", "customer/tank", "--name", "books")
	if err := os.WriteFile("/dev/customer/books", bytes.Repeat([]byte("somebody's data "), 32<<20/16), 0); err != nil {
		t.Fatal(err)
	}
	r.owner("lvcreate", "--yes", "--snapshot", "--name", "monday", "customer/books")
	r.options = lvm.Options{
		GroupName: "customer", GroupUUID: r.owner("vgs", "--noheadings", "-o", "vg_uuid", "customer"),
		Devices:  func() []string { return disks[:2] },
		ThinPool: &lvm.ThinPoolID{Name: "tank", UUID: r.owner("lvs", "--noheadings", "-o", "lv_uuid", "customer/tank")},
		Thin: func() lvm.ThinPolicy {
			return lvm.ThinPolicy{OverprovisionPercent: 200, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 90, FailWhenFull: new(true)}
		},
	}
	return r
}

// owner runs a command as its owner does, who knows nothing of Berth.
func (r *adoptRig) owner(args ...string) string {
	r.t.Helper()
	// As rig.lvm does.
	args = append([]string{args[0], "--config", "activation{udev_sync=0 udev_rules=0}"}, args[1:]...)
	out, err := exec.Command("lvm", args...).Output()
	if err != nil {
		r.t.Fatalf("lvm %s: %v: %s", strings.Join(args, " "), err, err.(*exec.ExitError).Stderr) //nolint:errorlint // exec returns no other
	}
	return strings.TrimSpace(string(out))
}

// state is all that is the owner's.
func (r *adoptRig) state() string {
	r.t.Helper()
	books, err := os.Open("/dev/customer/books")
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = books.Close() }()
	digest := sha256.New()
	if _, err := io.Copy(digest, books); err != nil {
		r.t.Fatal(err)
	}
	table, err := dm.Control{Root: "/"}.Table(r.layer())
	if err != nil {
		r.t.Fatal(err)
	}
	return r.owner("lvs", "-a", "--noheadings", "--units", "b", "-o",
		"lv_name,lv_uuid,lv_size,lv_tags,lv_layout,lv_role,lv_metadata_size,lv_when_full,discards,zero,seg_monitor,chunk_size", "customer") + "\n" +
		r.owner("vgs", "--noheadings", "-o", "vg_name,vg_uuid,vg_tags,vg_free_count,pv_count,lv_count", "customer") + "\n" +
		table[0].Status + "\n" + string(digest.Sum(nil))
}

func (r *adoptRig) layer() string {
	plain := strings.NewReplacer("-", "")
	return "LVM-" + plain.Replace(r.options.GroupUUID) + plain.Replace(r.options.ThinPool.UUID) + "-tpool"
}

func (r *adoptRig) backend() *lvm.Backend {
	r.t.Helper()
	b, err := lvm.NewBackend(r.client, r.options)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func TestKernelAdoptedThinPool(t *testing.T) {
	r := newAdoptRig(t)
	before := r.state()
	if _, err := r.client.AdoptThinPool(t.Context(), "customer", r.options.GroupUUID, *r.options.ThinPool); err != nil {
		t.Fatal(err)
	}
	b := r.backend()
	c, err := b.Capacity(t.Context())
	if err != nil || c.TotalBytes != 512*mib || c.AllocatedBytes != 64*mib || c.FreeBytes != 448*mib || c.Volumes != 0 {
		t.Fatalf("Capacity = %+v, %v", c, err)
	}
	rec, err := b.Create(t.Context(), spec(1, 32*mib))
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("data of a volume"), 16<<20/16)
	if err := os.WriteFile(loc.Device, data, 0); err != nil {
		t.Fatal(err)
	}
	snap, err := b.Snapshot(t.Context(), volume.SnapshotSpec{ID: id(2), Name: "snap", VolumeID: id(1), Volume: rec})
	if err != nil {
		t.Fatal(err)
	}
	copied := spec(3, 48*mib)
	copied.Source = &volume.Source{ID: id(2), Record: snap, Snapshot: true}
	copyRec, err := b.Create(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	if loc, err = b.Locate(t.Context(), id(3), copyRec); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if f, err := os.Open(loc.Device); err != nil {
		t.Fatal(err)
	} else if _, err := io.ReadFull(f, got); err != nil || f.Close() != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy differs (%v)", err)
	}
	if rec, err = b.Grow(t.Context(), id(1), rec, 64*mib); err != nil {
		t.Fatal(err)
	}
	group := volume.GroupSnapshotSpec{Name: "group", Snapshots: []volume.SnapshotSpec{{ID: id(4), Name: "g1", VolumeID: id(1), Volume: rec}, {ID: id(5), Name: "g2", VolumeID: id(3), Volume: copyRec}}}
	if _, err := b.SnapshotGroup(t.Context(), group); err != nil {
		t.Fatal(err)
	}
	state, err := b.Tend(t.Context())
	if err != nil || state.DataBytes != 256*mib || state.Grown || state.Usage.Mode != dm.ThinPoolWritable || state.Usage.DataPercent() < 18 {
		t.Errorf("Tend = %+v, %v", state, err)
	}
	found, err := b.List(t.Context())
	if err != nil || len(found) != 2 {
		t.Errorf("List = %+v, %v", found, err)
	}
	for _, n := range []int{2, 4, 5} {
		if err := b.DeleteSnapshot(t.Context(), id(n), nil); err != nil {
			t.Error(err)
		}
	}
	for i, wipe := range []volume.WipePolicy{volume.WipeDiscard, volume.WipeZero} {
		if err := b.Delete(t.Context(), found[i].ID, &found[i].Record, wipe); err != nil {
			t.Error(err)
		}
	}
	if after := r.state(); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
	if after, err := b.Capacity(t.Context()); err != nil || after != c {
		t.Errorf("Capacity = %+v (%v), was %+v", after, err, c)
	}

	// What its owner does is seen at the next look.
	r.owner("lvextend", "--size", "+64m", "customer/tank")
	if c, err := b.Capacity(t.Context()); err != nil || c.TotalBytes != 640*mib {
		t.Errorf("Capacity = %+v, %v", c, err)
	}
	for _, spoil := range [][][]string{
		{{"lvrename", "customer", "tank", "lake"}, {"lvrename", "customer", "lake", "tank"}},
		{{"lvchange", "--yes", "--zero", "n", "customer/tank"}, {"lvchange", "--yes", "--zero", "y", "customer/tank"}},
	} {
		r.owner(spoil[0]...)
		if _, err := b.Create(t.Context(), spec(6, 4*mib)); !errors.Is(err, volume.ErrPoolUnavailable) {
			t.Errorf("after %q: Create = %v", spoil[0], err)
		}
		r.owner(spoil[1]...)
	}
	if _, err := b.Create(t.Context(), spec(6, 4*mib)); err != nil {
		t.Error(err)
	}
}

// A pool that is not active stays so until a volume in it is asked for; it is watched then as
// its owner has it.
func TestKernelInactiveAdoptedThinPool(t *testing.T) {
	r := newAdoptRig(t)
	rec, err := r.backend().Create(t.Context(), spec(1, 32*mib))
	if err != nil {
		t.Fatal(err)
	}
	watched := r.owner("lvs", "--noheadings", "-o", "seg_monitor", "customer/tank")
	r.owner("vgchange", "--activate", "n", "customer")
	b := r.backend()
	if _, err := b.Tend(t.Context()); !errors.Is(err, volume.ErrPoolUnavailable) || !strings.Contains(err.Error(), "not active") {
		t.Errorf("Tend = %v", err)
	}
	if _, err := b.Create(t.Context(), spec(2, 32*mib)); !errors.Is(err, volume.ErrPoolUnavailable) {
		t.Errorf("Create = %v", err)
	}
	if found, _ := filepath.Glob("/dev/mapper/customer-*"); len(found) > 0 {
		t.Errorf("active are %q", found)
	}
	if _, err := b.Locate(t.Context(), id(1), rec); err != nil {
		t.Fatal(err)
	}
	if now := r.owner("lvs", "--noheadings", "-o", "seg_monitor", "customer/tank"); now != watched {
		t.Errorf("it is %q and was %q", now, watched)
	}
	if _, err := os.Lstat("/dev/mapper/customer-books"); err == nil {
		t.Error("a volume of its owner's was activated")
	}
	if _, err := b.Tend(t.Context()); err != nil {
		t.Error(err)
	}
}
