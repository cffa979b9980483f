// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// run runs a program that is about a mounted filesystem.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mounted mounts a volume until the test ends.
func (r *rig) mounted(t *testing.T, b *lvm.Backend, n int, rec volume.Record) (dir, device string) {
	t.Helper()
	loc, err := b.Locate(t.Context(), id(n), rec)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	run(t, "mount", loc.Device, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir, loc.Device
}

// The real kernel keeps what is overwritten in a mounted volume, and what is restored is whole.
// The snapshot gets more room, and is lost when nobody looks after it.
func TestKernelThickSnapshots(t *testing.T) {
	r := newRig(t)
	r.snapshots = lvm.DefaultSnapshotPolicy()
	b := r.backend(t, 0)
	rec, err := b.Create(t.Context(), spec(1, 96*mib))
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", loc.Device)
	dir, _ := r.mounted(t, b, 1, rec)
	content := make([]byte, 30*mib)
	_, _ = rand.Read(content)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, content, 0o600); err != nil { // and not synced: it is the snapshot that has to
		t.Fatal(err)
	}
	takeThick := func(n int) volume.Record {
		t.Helper()
		snap, err := b.Snapshot(t.Context(), volume.SnapshotSpec{ID: id(n), Name: "snap", VolumeID: id(1), Volume: rec, Wipe: volume.WipeZero})
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	snap := takeThick(5)
	overwrite := func() {
		t.Helper()
		more := make([]byte, 15*mib)
		_, _ = rand.Read(more)
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.Write(more)
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	overwrite()
	states, next, err := b.TendSnapshots(t.Context())
	if err != nil || len(states) != 1 || !states[0].Extended || states[0].Lost || states[0].AreaBytes != 32*mib || next != time.Second {
		t.Fatalf("TendSnapshots: %+v after %s, %v", states, next, err)
	}
	restored, err := b.Create(t.Context(), copySpec(2, 128*mib, volume.Source{ID: id(5), Record: snap, Snapshot: true}))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := b.Locate(t.Context(), id(2), restored)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "e2fsck", "-fn", copied.Device)
	there, _ := r.mounted(t, b, 2, restored)
	if got, err := os.ReadFile(filepath.Join(there, "file")); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("what was restored is another (%d bytes, %v)", len(got), err)
	}

	takeThick(6)
	for range 3 {
		overwrite()
		run(t, "cp", file, filepath.Join(dir, "other"))
		run(t, "sync", "-f", dir)
		run(t, "rm", filepath.Join(dir, "other"))
	}
	lost := map[string]bool{}
	for range 2 {
		states, _, err = b.TendSnapshots(t.Context())
		if err != nil || len(states) != 2 {
			t.Fatalf("TendSnapshots: %+v, %v", states, err)
		}
		for _, s := range states {
			lost[s.ID] = s.Lost
		}
		if !lost[id(6)] {
			t.Fatalf("it is not lost: %+v", states)
		}
		for _, mounted := range []string{dir, there} {
			_ = unix.Unmount(mounted, 0)
		}
		r.lvm(t, "vgchange", "--activate", "n", r.group.Name)
		r.lvm(t, "vgchange", "--activate", "y", r.group.Name)
	}
	loc, err = b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "e2fsck", "-fn", loc.Device)
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{5, 6} {
		if err := b.DeleteSnapshot(t.Context(), id(n), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, _, err := b.Deleted(t.Context()); all != 0 || err != nil {
		t.Fatalf("%d are left (%v)", all, err)
	}
	if out := run(t, "dmsetup", "ls"); strings.Contains(out, "cow") || strings.Contains(out, "deleted") {
		t.Errorf("devices are left: %s", out)
	}
	if err := b.Delete(t.Context(), id(2), &restored, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
}

// A disk is emptied of a volume and of what its snapshot keeps. It takes a second disk.
func TestKernelEvacuateThickSnapshot(t *testing.T) {
	disks := testDisks()
	r := newRig(t)
	if len(disks) < 2 {
		t.Skipf("needs a disk more: %v", disks)
	}
	b := r.backend(t, 0)
	rec, err := b.Create(t.Context(), spec(1, 32*mib))
	if err != nil {
		t.Fatal(err)
	}
	snap, err := b.Snapshot(t.Context(), volume.SnapshotSpec{ID: id(5), Name: "snap", VolumeID: id(1), Volume: rec})
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loc.Device, bytes.Repeat([]byte{'x'}, 8*mib), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := lvm.NewClient(r.host, lvm.DiskFlusher("/")).ExtendGroup(t.Context(), r.group.UUID, lvm.GroupSpec{
		Name: r.group.Name, PoolUID: realUID, PoolSet: "test", Devices: disks[1:2],
	}); err != nil {
		t.Fatal(err)
	}
	empty := r.disks[0]
	r.disks = append(r.disks, disks[1])
	t.Cleanup(func() { _ = exec.Command("pvremove", "--yes", empty).Run() })
	for deadline := time.Now().Add(5 * time.Minute); ; {
		states, err := b.Evacuate(t.Context(), lvm.EvacuateOptions{Empty: []string{empty}})
		if err != nil || states[0].Waiting != "" || time.Now().After(deadline) {
			t.Fatalf("got %+v, %v", states, err)
		}
		if states[0].Out {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	r.disks = r.disks[1:]
	restored, err := b.Create(t.Context(), copySpec(2, 32*mib, volume.Source{ID: id(5), Record: snap, Snapshot: true}))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := b.Locate(t.Context(), id(2), restored)
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]byte{loc.Device: 'x', copied.Device: 0} {
		f, err := os.Open(device)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 8*mib)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{want}, 8*mib)) && want != 0 || want == 0 && bytes.Contains(got, []byte("xxxxxxxx")) {
			t.Errorf("%s holds %q (%v)", device, got[:8], err)
		}
		_ = f.Close()
	}
}
