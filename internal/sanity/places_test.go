// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/device/devicetest"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// background runs a worker of a backend until the test ends.
func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func readyPool(kind berth.PoolKind, freeBytes int64) client.Object {
	return &berth.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: poolName + "-" + nodeName},
		Spec:       berth.PoolSpec{NodeName: nodeName, PoolSetName: poolName, Kind: kind},
		Status: berth.PoolStatus{
			Free: resource.NewQuantity(freeBytes, resource.BinarySI),
			Conditions: []metav1.Condition{{
				Type: berth.PoolReady, Status: metav1.ConditionTrue, Reason: berth.ReasonPoolReady, LastTransitionTime: metav1.Now(),
			}},
		},
	}
}

// hostpathPlace is a real directory.
func hostpathPlace(t *testing.T) place { return directoryPlace(t, nil) }

// reflinkPlace is one on a filesystem that shares blocks. The suite writes nothing to volumes.
func reflinkPlace(t *testing.T) place {
	t.Helper()
	p := directoryPlace(t, func(int, int) error { return nil })
	p.snapshots = true
	return p
}

func directoryPlace(t *testing.T, clone func(to, from int) error) place {
	t.Helper()
	const poolUID = "11111111-1111-4111-8111-111111111111"
	where := hostpath.Where{Root: filepath.Join(t.TempDir(), "pool")}
	id, err := hostpath.Init(t.Context(), where, poolUID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hostpath.New(hostpath.Options{
		Where: where, RootID: id, PoolUID: poolUID, Log: slog.New(slog.DiscardHandler), Clone: clone,
		Trash: hostpath.TrashOptions{RetryMin: 5 * time.Millisecond, RetryMax: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, b.Run)
	return place{
		mode: volume.ModeHostpath, backend: b, objects: []client.Object{readyPool(berth.PoolHostpath, 10*gib)},
		settled: func(ctx context.Context) error {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				left, err := os.ReadDir(filepath.Join(where.Root, ".trash"))
				if err != nil || len(left) == 0 {
					return err
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("%d directories are left in the trash", len(left))
				case <-tick.C:
				}
			}
		},
	}
}

// devicePlace is real loop devices, with a registry of disks in memory. Each has
// exactly the size of the suite's volumes, for the suite sets upper limits too.
func devicePlace(t *testing.T, disks int, sizeBytes int64) place {
	t.Helper()
	sizes := make([]int64, disks)
	for i := range sizes {
		sizes[i] = sizeBytes
	}
	host := devicetest.NewLoopHost(t, sizes...)
	registry := devicetest.NewRegistry(host)
	log := slog.New(slog.DiscardHandler)
	cleaner := device.NewCleaner(device.CleanerOptions{
		Registry: registry, Disks: host.Opener(), RetryMin: 5 * time.Millisecond, RetryMax: 100 * time.Millisecond, Log: log,
	})
	registry.OnWipeDue(cleaner.Kick)
	background(t, cleaner.Run)
	var objects []client.Object
	for i := range disks {
		objects = append(objects, &berth.BlockDevice{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bd-%d", i)},
			Spec:       berth.BlockDeviceSpec{NodeName: nodeName},
			Status: berth.BlockDeviceStatus{
				SizeBytes: sizeBytes, ClaimState: berth.ClaimStateUnclaimed, State: berth.DeviceActive,
				Conditions: []metav1.Condition{{
					Type: berth.BlockDeviceUsable, Status: metav1.ConditionTrue, Reason: berth.ReasonBlank, LastTransitionTime: metav1.Now(),
				}},
			},
		})
	}
	return place{
		mode: volume.ModeDevice, objects: objects, settled: registry.WaitClean,
		backend: device.New(device.Options{Registry: registry, Disks: host.Opener(), Log: log}),
	}
}

// lvmPlace is the stateful fake of lvm, whose volumes are real block devices.
func lvmPlace(t *testing.T, sizeBytes int64) place {
	t.Helper()
	p := groupPlace(t, lvmtest.NewVG(t, sizeBytes), sizeBytes)
	p.snapshots = true
	return p
}

// thinPlace is lvmPlace with a thin pool.
func thinPlace(t *testing.T, sizeBytes int64) place {
	t.Helper()
	p := groupPlace(t, lvmtest.NewThinVG(t, sizeBytes), sizeBytes)
	p.snapshots, p.groups = true, true
	return p
}

func groupPlace(t *testing.T, vg *lvmtest.VG, sizeBytes int64) place {
	t.Helper()
	nodes := &loopNodes{Nodes: vg.Nodes(), loops: map[string]*mounttest.Loop{}}
	t.Cleanup(nodes.detachAll)
	b, err := lvm.NewBackend(lvm.NewClient(vg.Runner(), vg.Flush), lvm.Options{
		GroupName: vg.Name, GroupUUID: vg.UUID, Devices: func() []string { return vg.Devices }, Nodes: nodes, Seqno: vg.Seqno, Instants: vg.Instants(),
		Thin: vg.Policy(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return place{
		mode: volume.ModeLVM, backend: b, objects: []client.Object{readyPool(berth.PoolLVM, sizeBytes)},
		settled: b.Sweep,
	}
}

// loopNodes makes block devices of the files that stand for device nodes in the
// fake of lvm.
type loopNodes struct {
	lvm.Nodes // of the fake

	mu    sync.Mutex
	loops map[string]*mounttest.Loop // by file
}

// Find implements lvm.Nodes.
func (n *loopNodes) Find(ctx context.Context, id lvm.NodeID) (volume.Location, bool, error) {
	loc, ok, err := n.Nodes.Find(ctx, id)
	if err != nil || !ok {
		return volume.Location{}, ok, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	loop := n.loops[loc.Device]
	if loop == nil {
		if loop, err = mounttest.Attach(loc.Device); err != nil {
			return volume.Location{}, false, err
		}
		n.loops[loc.Device] = loop
	}
	if err := loop.Refresh(); err != nil {
		return volume.Location{}, false, err
	}
	return volume.Location{Device: loop.Path, SizeBytes: loc.SizeBytes}, true, nil
}

// Clear implements lvm.Nodes.
func (n *loopNodes) Clear(ctx context.Context, loc volume.Location) error {
	return n.onFile(loc, func(file volume.Location) error { return n.Nodes.Clear(ctx, file) })
}

// Wipe implements lvm.Nodes.
func (n *loopNodes) Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error {
	return n.onFile(loc, func(file volume.Location) error { return n.Nodes.Wipe(ctx, file, policy) })
}

// WipeThin implements lvm.Nodes.
func (n *loopNodes) WipeThin(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error {
	return n.onFile(loc, func(file volume.Location) error { return n.Nodes.WipeThin(ctx, file, policy) })
}

// Copy implements lvm.Nodes.
func (n *loopNodes) Copy(ctx context.Context, from, to volume.Location, progress func(doneBytes int64)) error {
	n.mu.Lock()
	for file, loop := range n.loops {
		if loop.Path == from.Device {
			from.Device = file
		}
	}
	n.mu.Unlock()
	return n.onFile(to, func(file volume.Location) error { return n.Nodes.Copy(ctx, from, file, progress) })
}

// onFile changes the file behind a device without the device in between. It proves that
// nobody has the device, as the real nodes do.
func (n *loopNodes) onFile(loc volume.Location, change func(volume.Location) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for file, loop := range n.loops {
		if loop.Path != loc.Device {
			continue
		}
		exclusive, err := block.OpenExclusive(loop.Path)
		if err != nil {
			return err
		}
		loop.Detach()
		delete(n.loops, file)
		loc.Device = file
		return errors.Join(exclusive.Close(), change(loc))
	}
	return fmt.Errorf("find %s: %w", loc.Device, volume.ErrNotFound)
}

func (n *loopNodes) detachAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, loop := range n.loops {
		loop.Detach()
	}
}
