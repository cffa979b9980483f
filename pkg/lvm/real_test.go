// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
// run as root on a node. Everything else on the node stays as it is.
const testDiskEnv = "BERTH_TEST_DISK"

// rig is a volume group on a real disk.
type rig struct {
	disk  string
	host  *hostexec.Host
	group *lvm.Group

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

func newRig(t testing.TB) *rig {
	t.Helper()
	disk := os.Getenv(testDiskEnv)
	switch {
	case disk == "":
		t.Skipf("needs a disk to destroy, named by %s", testDiskEnv)
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
	r := &rig{disk: disk, host: host, countdown: -1}
	t.Cleanup(func() { _ = host.Close() })
	client := lvm.NewClient(host, lvm.DiskFlusher("/"))
	r.group, err = client.CreateGroup(context.Background(), lvm.GroupSpec{
		Name: "berth-kernel-test", PoolUID: realUID, PoolSet: "test", Devices: []string{disk},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.lvm(t, "lvremove", "--yes", r.group.Name)
		if err := client.RemoveGroup(context.Background(), r.group.UUID, realUID); err != nil {
			t.Error(err)
		}
	})
	return r
}

// lvm runs a command as an operator does.
func (r *rig) lvm(t testing.TB, args ...string) {
	t.Helper()
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
		Devices: func() []string { return []string{r.disk} },
		Nodes:   rigNodes{lvm.HostNodes{Root: "/"}, r, boot},
		Reserve: func(total int64) int64 {
			if roomBytes == 0 {
				return 0
			}
			return total - roomBytes
		},
	})
	if err != nil {
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

// The suite of all backends, over the real lvm and the real kernel.
func TestKernelConformance(t *testing.T) {
	const volumeBytes, volumes = 8 * mib, 4
	volumetest.Run(t, volumetest.Harness{
		Access:  []volume.Access{volume.AccessFilesystem, volume.AccessBlock},
		CanGrow: true,
		New: func(t *testing.T) *volumetest.Place {
			r := newRig(t)
			fresh := func() volume.Backend { return r.backend(t, volumes*volumeBytes) }
			return &volumetest.Place{
				Backend:     fresh(),
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
					r.lvm(t, "lvcreate", "--yes", "--size", fmt.Sprintf("%db", rec.SizeBytes), "--addtag", lvm.TagVolume+"x", "--name", id, r.group.Name)
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

// lvm is killed by SIGKILL at moments all over its work, and the call repeated
// converges on what a model says.
func TestKernelKilled(t *testing.T) {
	const rounds, workers = 40, 3
	r := newRig(t)
	b := r.backend(t, 0)
	if _, err := b.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if _, err := b.Create(t.Context(), spec(0, 8*mib)); err != nil {
		t.Fatal(err)
	}
	usual := time.Since(started)
	want := map[string]int64{id(0): 8 * mib}
	killed := 0
	for round := range rounds {
		r.timeout.Store(int64(rand.N(usual) + time.Millisecond))
		var wg sync.WaitGroup
		errs := make([]error, workers)
		for w := range workers {
			n := 1 + round%4*workers + w
			wg.Go(func() { errs[w] = r.toggle(t.Context(), b, n, want[id(n)]) })
		}
		wg.Wait()
		r.timeout.Store(0)
		if round%5 == 4 {
			r.boot.Add(1)
			b = r.backend(t, 0)
		}
		for w, err := range errs {
			n := 1 + round%4*workers + w
			if err != nil {
				killed++
				if err := r.toggle(t.Context(), b, n, want[id(n)]); err != nil {
					t.Fatalf("round %d: repeated after %v: %v", round, errs[w], err)
				}
			}
			if want[id(n)] == 0 {
				want[id(n)] = 8 * mib
			} else {
				delete(want, id(n))
			}
		}
		found, err := b.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]int64{}
		for _, f := range found {
			have[f.ID] = f.Record.SizeBytes
			if _, err := b.Locate(t.Context(), f.ID, f.Record); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if !equal(have, want) {
			t.Fatalf("round %d: there is %v, want %v", round, have, want)
		}
	}
	t.Logf("%d of %d operations were killed", killed, rounds*workers)
	if killed == 0 {
		t.Error("nothing was killed")
	}
}

// toggle creates what is not there and deletes what is.
func (r *rig) toggle(ctx context.Context, b *lvm.Backend, n int, size int64) error {
	if size == 0 {
		_, err := b.Create(ctx, spec(n, 8*mib))
		return err
	}
	return b.Delete(ctx, id(n), nil, volume.WipeSignatures)
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
