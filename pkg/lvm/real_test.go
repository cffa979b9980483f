// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// The tests below need a kernel with device-mapper and a disk that they may
// destroy:
//
//	go test -c ./pkg/lvm && BERTH_TEST_DISK=/dev/vdX ./lvm.test -test.run Kernel -test.v
//
// run as root on a node; for volumes of other layouts as many disks as they need, with commas
// between. Everything
// else on the node stays as it is.
const testDiskEnv = "BERTH_TEST_DISK"

// testDisks are those that may be destroyed.
func testDisks() []string {
	return strings.FieldsFunc(os.Getenv(testDiskEnv), func(r rune) bool { return r == ',' })
}

// rig is a volume group on real disks.
type rig struct {
	disks  []string
	layout lvm.Layout
	host   *hostexec.Host
	group  *lvm.Group
	// thin is true where volumes lie in a thin pool.
	thin bool
	// snapshots is how much room thick snapshots get.
	snapshots lvm.SnapshotPolicy

	// boot, blind, countdown and dead stand behind the hooks of volumetest.Place.
	boot      atomic.Int64
	blind     atomic.Bool
	mu        sync.Mutex
	countdown int
	dead      bool
	// timeout, if not 0, ends each process by force.
	timeout   atomic.Int64
	processes atomic.Int64
}

func newRig(t testing.TB) *rig { return newRigOf(t, lvm.LayoutLinear) }

func newRigOf(t testing.TB, layout lvm.Layout) *rig {
	t.Helper()
	disks := testDisks()
	switch needed := layout.MinDevices(); {
	case len(disks) < needed:
		t.Skipf("needs disks to destroy, named by %s: %d", testDiskEnv, needed)
	case os.Geteuid() != 0:
		t.Skip("needs root")
	}
	if _, err := os.Stat("/sys/class/misc/device-mapper"); err != nil {
		t.Skipf("needs device-mapper in the kernel: %v", err)
	}
	host, err := hostexec.New(hostexec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{disks: disks[:layout.MinDevices()], layout: layout, host: host, countdown: -1}
	// As much as the volume, so that what fits can be counted.
	r.snapshots = lvm.SnapshotPolicy{InitialPercent: 100, ThresholdPercent: 70, ExtendPercent: 20}
	t.Cleanup(func() { _ = host.Close() })
	client := lvm.NewClient(host, lvm.DiskFlusher("/"))
	r.group, err = client.CreateGroup(context.Background(), lvm.GroupSpec{
		Name: "berth-kernel-test", PoolUID: realUID, PoolSet: "test", Devices: r.disks,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.lvm(t, "lvremove", "--yes", r.group.Name)
		if err := client.RemoveGroup(context.Background(), r.group.UUID, realUID, nil); err != nil {
			t.Error(err)
		}
	})
	return r
}

// lvm runs a command as an operator does.
func (r *rig) lvm(t testing.TB, args ...string) {
	t.Helper()
	// The nodes are made as by Berth, or those that are left keep the next group's name.
	args = append([]string{args[0], "--config", "activation{udev_sync=0 udev_rules=0}"}, args[1:]...)
	if out, err := exec.Command("lvm", args...).CombinedOutput(); err != nil {
		t.Fatalf("lvm %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// backend returns a backend that leaves room for so many bytes; 0 means all.
func (r *rig) backend(t testing.TB, roomBytes int64) *lvm.Backend {
	t.Helper()
	boot := r.boot.Load()
	b, err := lvm.NewBackend(lvm.NewClient(rigRunner{r, boot}, lvm.DiskFlusher("/")), lvm.Options{
		GroupName: r.group.Name, GroupUUID: r.group.UUID,
		Devices:   func() []string { return r.disks },
		Layout:    r.layout,
		Thin:      r.policy(),
		Snapshots: func() lvm.SnapshotPolicy { return r.snapshots },
		Seqno: func(path string) (string, uint64, bool, error) {
			if r.blind.Load() {
				return "", 0, false, errors.New("input/output error")
			}
			return lvm.DiskSeqno("/")(path)
		},
		Nodes: rigNodes{lvm.HostNodes{Root: "/"}, r, boot},
		Reserve: func(total int64) int64 {
			if roomBytes == 0 {
				return 0
			}
			if r.thin {
				return total - poolBytes(r.layout, roomBytes)
			}
			return total - roomBytes
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv(costsEnv) != "" {
		return b
	}
	return b.CompareFollowed()
}

// poolBytes is what a small thin pool of so many bytes of data needs of a group: its metadata
// take two extents, and may double.
func poolBytes(layout lvm.Layout, sizeBytes int64) int64 {
	const extent, metadata = 4 * mib, 2
	wide := int64(layout.MinDevices())
	data := map[lvm.Layout]int64{lvm.LayoutStriped: 2, lvm.LayoutMirror: 1, lvm.LayoutRAID5: 2, lvm.LayoutRAID6: 3, lvm.LayoutRAID10: 2}[layout]
	switch layout {
	case lvm.LayoutLinear:
		return sizeBytes + 4*metadata*extent
	case lvm.LayoutStriped:
		// The metadata and their spare, and as much again on each of the two devices.
		return sizeBytes + 3*2*metadata*extent
	}
	share := (sizeBytes/extent + data - 1) / data
	return wide * (share + 2*metadata + 2) * extent
}

func (r *rig) policy() func() lvm.ThinPolicy {
	if !r.thin {
		return nil
	}
	return func() lvm.ThinPolicy {
		return lvm.ThinPolicy{OverprovisionPercent: 100, InitialPercent: 100, ThresholdPercent: 80, ExtendPercent: 20, HighWaterPercent: 95}
	}
}

// tend makes the thin pool where there is one.
func (r *rig) tend(t testing.TB, b *lvm.Backend) *lvm.Backend {
	t.Helper()
	if _, err := b.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

var errGone = errors.New("this process has ended")

func (r *rig) alive(boot int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead || r.blind.Load() || boot != r.boot.Load() {
		return errGone
	}
	return nil
}

func (r *rig) step() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.countdown == 0 {
		r.dead = true
	}
	if r.dead {
		return errGone
	}
	r.countdown--
	return nil
}

type rigRunner struct {
	*rig
	boot int64
}

func (r rigRunner) Run(ctx context.Context, cmd hostexec.Command) (hostexec.Result, error) {
	if err := r.alive(r.boot); err != nil {
		return hostexec.Result{}, err
	}
	r.processes.Add(1)
	if timeout := r.timeout.Load(); timeout > 0 {
		cmd.Timeout = time.Duration(timeout)
	}
	if !strings.Contains(string(cmd.Stdin), "--yes") {
		return r.host.Run(ctx, cmd)
	}
	if err := r.step(); err != nil {
		return hostexec.Result{}, err
	}
	result, err := r.host.Run(ctx, cmd)
	if stepErr := r.step(); stepErr != nil {
		return hostexec.Result{}, stepErr
	}
	return result, err
}

type rigNodes struct {
	lvm.HostNodes
	r    *rig
	boot int64
}

func (n rigNodes) Find(ctx context.Context, id lvm.NodeID) (volume.Location, bool, error) {
	if err := n.r.alive(n.boot); err != nil {
		return volume.Location{}, false, err
	}
	return n.HostNodes.Find(ctx, id)
}

func (n rigNodes) Clear(ctx context.Context, loc volume.Location) error {
	if err := n.r.step(); err != nil {
		return err
	}
	if err := n.HostNodes.Clear(ctx, loc); err != nil {
		return err
	}
	return n.r.step()
}

func (n rigNodes) Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error {
	if err := n.r.step(); err != nil {
		return err
	}
	if err := n.HostNodes.Wipe(ctx, loc, policy); err != nil {
		return err
	}
	return n.r.step()
}

func (n rigNodes) Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) error {
	if err := n.r.step(); err != nil {
		return err
	}
	if err := n.HostNodes.Copy(ctx, from, to, progress); err != nil {
		return err
	}
	return n.r.step()
}

// The suite of all backends, over the real lvm and the real kernel.
func TestKernelConformance(t *testing.T) { conformOnKernel(t, lvm.LayoutLinear, false) }

func TestKernelConformanceStriped(t *testing.T) { conformOnKernel(t, lvm.LayoutStriped, false) }

func TestKernelConformanceThin(t *testing.T) { conformOnKernel(t, lvm.LayoutLinear, true) }

func TestKernelConformanceThinStriped(t *testing.T) { conformOnKernel(t, lvm.LayoutStriped, true) }

func TestKernelConformanceThinMirror(t *testing.T) { conformOnKernel(t, lvm.LayoutMirror, true) }

func TestKernelConformanceThinRAID5(t *testing.T) { conformOnKernel(t, lvm.LayoutRAID5, true) }

func TestKernelConformanceMirror(t *testing.T) { conformOnKernel(t, lvm.LayoutMirror, false) }

func TestKernelConformanceRAID5(t *testing.T) { conformOnKernel(t, lvm.LayoutRAID5, false) }

func TestKernelConformanceRAID6(t *testing.T) { conformOnKernel(t, lvm.LayoutRAID6, false) }

func TestKernelConformanceRAID10(t *testing.T) { conformOnKernel(t, lvm.LayoutRAID10, false) }

// rawBytes is what volumes of two extents take of a group, with the metadata of their
// legs.
func rawBytes(layout lvm.Layout, volumes int64) int64 {
	const extent = 4 * mib
	data := map[lvm.Layout]int64{lvm.LayoutMirror: 1, lvm.LayoutRAID5: 2, lvm.LayoutRAID6: 3, lvm.LayoutRAID10: 2}[layout]
	if data == 0 {
		return volumes * 2 * extent
	}
	share := (2 + data - 1) / data
	return volumes * int64(layout.MinDevices()) * (share + 1) * extent
}

func conformOnKernel(t *testing.T, layout lvm.Layout, thin bool) {
	const volumeBytes = 8 * mib
	volumes, snapshots := 4, thin
	if !thin && !layout.Redundant() {
		volumes, snapshots = 6, true // a clone is copied from a snapshot
	}
	volumetest.Run(t, volumetest.Harness{
		Access:  []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
		CanGrow: true, CanSnapshot: snapshots, CanSnapshotGroup: thin,
		New: func(t *testing.T) *volumetest.Place {
			r := newRigOf(t, layout)
			r.thin = thin
			room := rawBytes(layout, int64(volumes))
			if thin {
				room = int64(volumes) * volumeBytes
			}
			backend := r.tend(t, r.backend(t, room))
			fresh := func() volume.Backend {
				backend = r.backend(t, room)
				return backend
			}
			return &volumetest.Place{
				Backend: backend,
				// Where it fails, what is left shows.
				Settle:      func(t *testing.T) { _ = backend.Sweep(t.Context()) },
				VolumeBytes: volumeBytes,
				Volumes:     volumes,
				Reboot: func(t *testing.T) volume.Backend {
					r.boot.Add(1)
					r.mu.Lock()
					r.dead, r.countdown = false, -1
					r.mu.Unlock()
					r.lvm(t, "vgchange", "--activate", "n", r.group.Name)
					return fresh()
				},
				Tamper: func(t *testing.T, id string, rec volume.Record) {
					name := r.group.Name + "/" + id
					r.lvm(t, "lvremove", "--yes", name)
					size := []string{"--size", fmt.Sprintf("%db", rec.SizeBytes)}
					if thin {
						size = []string{"--thinpool", "thin", "--virtualsize", size[1]}
					}
					r.lvm(t, append(append([]string{"lvcreate", "--yes"}, size...), "--addtag", lvm.TagVolume+"x", "--name", id, r.group.Name)...)
				},
				Vanish: func(t *testing.T, id string, _ volume.Record) { r.lvm(t, "lvremove", "--yes", r.group.Name+"/"+id) },
				Blind: func(*testing.T) func() {
					r.blind.Store(true)
					return func() { r.blind.Store(false) }
				},
				Hold: func(t *testing.T, loc volume.Location) func() {
					f, err := block.OpenExclusive(loc.Device)
					if err != nil {
						t.Fatal(err)
					}
					return func() { _ = f.Close() }
				},
				CrashAt: func(_ *testing.T, n int) func() bool {
					r.mu.Lock()
					defer r.mu.Unlock()
					r.countdown = n
					return func() bool {
						r.mu.Lock()
						defer r.mu.Unlock()
						return r.dead
					}
				},
			}
		},
	})
}

// A new volume shows nothing of what an earlier owner of its extents left, even
// if he wiped nothing.
func TestKernelStaleSignature(t *testing.T) {
	r := newRig(t)
	b := r.backend(t, 16*mib)
	rec, err := b.Create(t.Context(), spec(1, 16*mib))
	if err != nil {
		t.Fatal(err)
	}
	loc, err := b.Locate(t.Context(), id(1), rec)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", loc.Device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	if rec, err = b.Create(t.Context(), spec(2, 16*mib)); err != nil {
		t.Fatal(err)
	}
	if loc, err = b.Locate(t.Context(), id(2), rec); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "blkid", "--probe", loc.Device).CombinedOutput()
	if err == nil {
		t.Errorf("the next owner sees %s", out)
	}
}

// A volume with a snapshot is not removed, and neither is the snapshot.
func TestKernelSnapshotOfOurs(t *testing.T) {
	r := newRig(t)
	b := r.backend(t, 0)
	rec, err := b.Create(t.Context(), spec(1, 16*mib))
	if err != nil {
		t.Fatal(err)
	}
	r.lvm(t, "lvcreate", "--yes", "--snapshot", "--size", "8m", "--name", "theirs", r.group.Name+"/"+id(1))
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeNone); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("Delete = %v, want ErrInUse", err)
	}
	g, err := b.Group(t.Context())
	if err != nil || len(g.LVs) != 2 {
		t.Errorf("Group = %+v, %v, want both volumes", g, err)
	}
	r.lvm(t, "lvremove", "--yes", r.group.Name+"/theirs")
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeNone); err != nil {
		t.Errorf("Delete: %v", err)
	}
}
