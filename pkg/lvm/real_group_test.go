// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// groupRig is a thin pool with two volumes that are mounted and written to.
type groupRig struct {
	*rig

	backend *lvm.Backend
	records map[int]volume.Record
	files   map[int]*os.File
	mounts  map[int]string
}

func newGroupRig(t *testing.T) *groupRig {
	t.Helper()
	r := newRig(t)
	r.thin = true
	g := &groupRig{rig: r, records: map[int]volume.Record{}, files: map[int]*os.File{}, mounts: map[int]string{}}
	g.backend = r.tend(t, r.backend(t, 0))
	for n := 1; n <= 2; n++ {
		rec, err := g.backend.Create(t.Context(), spec(n, 32*mib))
		if err != nil {
			t.Fatal(err)
		}
		g.records[n] = rec
		g.mounts[n] = g.mount(t, n, rec, true)
		if g.files[n], err = os.OpenFile(filepath.Join(g.mounts[n], "counter"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.files[n].Close() })
	}
	return g
}

// mount mounts a volume, after it was given a filesystem or checked, until the test ends.
func (g *groupRig) mount(t *testing.T, n int, rec volume.Record, fresh bool) string {
	t.Helper()
	loc, err := g.backend.Locate(t.Context(), id(n), rec)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("e2fsck", "-fn", loc.Device)
	if fresh {
		command = exec.Command("mkfs.ext4", "-q", loc.Device)
	}
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", command.Args, err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(loc.Device, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir
}

// count writes a counter to the first volume and then to the second, each synced, until it is
// told to end. It returns how far it came.
func (g *groupRig) count(ctx context.Context) (uint64, error) {
	for i := uint64(1); ; i++ {
		select {
		case <-ctx.Done():
			return i - 1, nil
		default:
		}
		for n := 1; n <= 2; n++ {
			if _, err := g.files[n].WriteAt(binary.LittleEndian.AppendUint64(nil, i), 0); err != nil {
				return i, err
			}
			if err := g.files[n].Sync(); err != nil {
				return i, err
			}
		}
	}
}

func (g *groupRig) spec(first int) volume.GroupSnapshotSpec {
	spec := volume.GroupSnapshotSpec{Name: "group"}
	for n := 1; n <= 2; n++ {
		spec.Snapshots = append(spec.Snapshots, volume.SnapshotSpec{ID: id(first + n), Name: fmt.Sprintf("snap-%d", first+n), VolumeID: id(n), Volume: g.records[n]})
	}
	return spec
}

// wantOneInstant restores both snapshots and compares the counters.
func (g *groupRig) wantOneInstant(t *testing.T, first int, group volume.GroupSnapshot) uint64 {
	t.Helper()
	counters := map[int]uint64{}
	for n := 1; n <= 2; n++ {
		of := spec(first+10+n, 32*mib)
		of.Source = &volume.Source{ID: id(first + n), Record: group.Records[n-1], Snapshot: true}
		rec, err := g.backend.Create(t.Context(), of)
		if err != nil {
			t.Fatal(err)
		}
		dir := g.mount(t, first+10+n, rec, false)
		content, err := os.ReadFile(filepath.Join(dir, "counter"))
		if err != nil {
			t.Fatal(err)
		}
		counters[n] = binary.LittleEndian.Uint64(content)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		if err := g.backend.Delete(t.Context(), of.ID, &rec, volume.WipeNone); err != nil {
			t.Fatal(err)
		}
	}
	if counters[1] < counters[2] || counters[1]-counters[2] > 1 {
		t.Errorf("the snapshots are of two instants: the first was at %d and the second at %d", counters[1], counters[2])
	}
	return counters[1]
}

func (g *groupRig) wantNoneSuspended(t *testing.T) {
	t.Helper()
	for n := 1; n <= 2; n++ {
		uuid := "LVM-" + strings.ReplaceAll(g.group.UUID+g.records[n].LVM.LVUUID, "-", "")
		if still, err := (dm.Control{Root: "/"}).Suspended(uuid); err != nil || still {
			t.Errorf("volume %d stands still: %v, %v", n, still, err)
		}
	}
}

// Two filesystems that are written to in turn are copied at one instant, and are whole.
func TestKernelGroupSnapshot(t *testing.T) {
	g := newGroupRig(t)
	ctx, stop := context.WithCancel(t.Context())
	type outcome struct {
		counted uint64
		err     error
	}
	counted := make(chan outcome, 1)
	go func() {
		n, err := g.count(ctx)
		counted <- outcome{n, err}
	}()
	last := uint64(0)
	for round := range 2 {
		first := 100 * (round + 1)
		began := time.Now()
		group, err := g.backend.SnapshotGroup(t.Context(), g.spec(first))
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		again, err := g.backend.SnapshotGroup(t.Context(), g.spec(first))
		if err != nil || !again.TakenAt.Equal(group.TakenAt) {
			t.Errorf("again: %+v, %v; first it was %+v", again, err, group)
		}
		at := g.wantOneInstant(t, first, group)
		t.Logf("taken in %s at %d", took, at)
		if at < last {
			t.Errorf("it was at %d before, and is at %d", last, at)
		}
		last = at
		for n := 1; n <= 2; n++ {
			if err := g.backend.DeleteSnapshot(t.Context(), id(first+n), &group.Records[n-1]); err != nil {
				t.Fatal(err)
			}
		}
		g.wantNoneSuspended(t)
	}
	stop()
	end := <-counted
	if end.err != nil || last == 0 || end.counted < last {
		t.Errorf("it counted to %d, %v; the last snapshot is of %d", end.counted, end.err, last)
	}
}

// One who is killed in the instant leaves volumes standing still, and a snapshot without a
// volume in the pool. The next one makes them go on, and takes the group anew; and where
// nobody does, what is left can be deleted.
func TestKernelGroupSnapshotKilled(t *testing.T) {
	g := newGroupRig(t)
	group, err := g.backend.SnapshotGroup(t.Context(), g.spec(100))
	if err != nil {
		t.Fatal(err)
	}
	control := dm.Control{Root: "/"}
	number, pool := "", "LVM-"+strings.ReplaceAll(g.group.UUID+g.poolUUID(t), "-", "")+"-tpool"
	for n := 1; n <= 2; n++ {
		uuid := "LVM-" + strings.ReplaceAll(g.group.UUID+g.records[n].LVM.LVUUID, "-", "")
		if err := control.Suspend(uuid); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("lvs", "--noheadings", "-o", "thin_id", g.group.Name+"/"+group.Records[n-1].LVM.LVName).Output()
		if err != nil {
			t.Fatal(err)
		}
		number = strings.TrimSpace(string(out))
		if err := control.Message(pool, "delete "+number); err != nil {
			t.Fatal(err)
		}
	}
	if err := control.Message(pool, "delete "+number); !errors.Is(err, unix.ENODATA) {
		t.Errorf("what is gone is deleted: %v", err)
	}
	g.backend = g.rig.backend(t, 0)
	if _, err := g.backend.Group(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.wantNoneSuspended(t)
	for _, n := range []int{1, 2} {
		if _, err := g.files[n].WriteAt([]byte("goes on"), 100); err != nil {
			t.Fatal(err)
		}
		if err := g.files[n].Sync(); err != nil {
			t.Fatal(err)
		}
		if err := g.backend.DeleteSnapshot(t.Context(), id(100+n), &group.Records[n-1]); err != nil {
			t.Fatal(err)
		}
	}
	if group, err = g.backend.SnapshotGroup(t.Context(), g.spec(200)); err != nil {
		t.Fatal(err)
	}
	g.wantOneInstant(t, 200, group)
}

func (g *groupRig) poolUUID(t *testing.T) string {
	t.Helper()
	seen, err := g.backend.Group(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return seen.Volume("thin").UUID
}

// hardRunner kills lvm by SIGKILL after a while, without the word before it that lets lvm
// come to an end.
type hardRunner struct {
	within time.Duration
	killed int
}

func (r *hardRunner) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return hostexec.Result{}, err
	}
	var stderr bytes.Buffer
	command := exec.CommandContext(ctx, cmd.Name, cmd.Args...)
	command.Env = append([]string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}, cmd.Env...)
	command.Stdin, command.Stderr, command.ExtraFiles = bytes.NewReader(cmd.Stdin), &stderr, []*os.File{writer}
	if err := command.Start(); err != nil {
		return hostexec.Result{}, err
	}
	if r.within > 0 && strings.Contains(string(cmd.Stdin), "--yes") {
		timer := time.AfterFunc(rand.N(r.within), func() { _ = command.Process.Kill() })
		defer timer.Stop()
	}
	_ = writer.Close()
	report, readErr := io.ReadAll(reader)
	err = errors.Join(command.Wait(), readErr, reader.Close())
	if err != nil {
		r.killed++
	}
	return hostexec.Result{Report: report, Stderr: stderr.Bytes()}, err
}

// A plain snapshot of a mounted volume whose lvm is killed while it works leaves nothing
// suspended, and the call repeated makes it.
func TestKernelSnapshotKilled(t *testing.T) {
	g := newGroupRig(t)
	var began time.Time
	for n := range 2 { // the second is not slowed down by what the first has to load
		began = time.Now()
		if _, err := g.backend.Snapshot(t.Context(), g.spec(100 + 10*n).Snapshots[0]); err != nil {
			t.Fatal(err)
		}
	}
	runner := &hardRunner{within: time.Since(began)}
	resumed := 0
	b, err := lvm.NewBackend(lvm.NewClient(runner, lvm.DiskFlusher("/")), lvm.Options{
		GroupName: g.rig.group.Name, GroupUUID: g.rig.group.UUID, Devices: func() []string { return g.disks }, Thin: g.policy(),
		Resumed: func(n int) { resumed += n },
	})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		wish := g.spec(200 + 10*round).Snapshots[round%2]
		rec, err := b.Snapshot(t.Context(), wish)
		if err != nil {
			g.wantNoneSuspended(t)
			if rec, err = g.again(t, b, wish); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		g.wantNoneSuspended(t)
		if err := g.backend.DeleteSnapshot(t.Context(), wish.ID, &rec); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d processes were killed, %d devices were resumed", runner.killed, resumed)
	if runner.killed == 0 {
		t.Error("nothing was killed")
	}
}

// again repeats a call whose lvm was killed; it may be killed again.
func (g *groupRig) again(t *testing.T, b *lvm.Backend, wish volume.SnapshotSpec) (rec volume.Record, err error) {
	t.Helper()
	for range 10 {
		if rec, err = b.Snapshot(t.Context(), wish); err == nil {
			return rec, nil
		}
	}
	return rec, err
}
