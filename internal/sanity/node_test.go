// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/cgroup"
	"github.com/berth-dev/berth/pkg/cgroup/cgrouptest"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/mount/mounttest"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	nodeName  = "node1"
	poolName  = "sanity"
	machineID = "0123456789abcdef0123456789abcdef"
)

// place is what a mode needs beside what all have in common.
type place struct {
	mode    volume.Mode
	backend volume.Backend
	// objects are what the agent would publish of its pools and disks.
	objects []client.Object
	// settled waits until what was deleted is gone.
	settled func(ctx context.Context) error
	// snapshots is true where volumes have some.
	snapshots bool
	// groups is true where they have group snapshots too.
	groups bool
}

// node is a provisioner and an agent in one process, serving all CSI services on
// one socket.
type node struct {
	place
	directory string
	socket    string
	cluster   *provisiontest.Cluster
	ledger    *ledger.Ledger
}

func newNode(t *testing.T, p place) *node {
	t.Helper()
	// A unix socket's path is at most 107 bytes long, so not t.TempDir.
	dir, err := os.MkdirTemp("", "berth-sanity")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n := &node{place: p, directory: dir, socket: filepath.Join(dir, "csi.sock"), cluster: provisiontest.New(t, p.objects...)}
	if n.ledger, err = ledger.Open(filepath.Join(dir, "ledger")); err != nil {
		t.Fatal(err)
	}
	host := mounttest.Here(t)
	backends := agent.NewBackends(nil)
	if p.mode == volume.ModeDevice {
		backends = agent.NewBackends(p.backend)
	} else {
		backends.Set(agent.PoolBackend{Name: poolName, Mode: p.mode, Backend: p.backend})
	}
	backends.SetSynced()
	locks := &agent.Locks{}
	synced := func() bool { return true }
	volumes := &agent.Volumes{
		Ledger: n.ledger, Backends: backends, MachineID: machineID, Cache: n.cluster.Backdoor, CacheSynced: synced,
	}
	n.runAgent(t, &agent.VolumeReconciler{
		Client: n.cluster.Backdoor, Ledger: n.ledger,
		Carver: &agent.Carver{
			Journal: n.ledger, Backends: backends, Formatter: mount.NewFormatter(host), Tools: host, Mounts: mount.NewMounter(host), MachineID: machineID, Locks: locks,
			Copies: &agent.Copies{Cache: n.cluster.Backdoor, Ledger: n.ledger, Locks: locks, MachineID: machineID},
		},
		// The suite's targets are no pods'.
		Limiter: &agent.Limiter{
			Ledger: n.ledger, Locate: volumes.Locate, Devices: mount.NewMounter(host),
			Pods: cgroup.NewPods(cgrouptest.New([]string{"io"})), Locks: locks,
		},
	})
	if p.snapshots {
		n.runSnapshots(t, &agent.SnapshotReconciler{
			Client: n.cluster.Backdoor, Backends: backends, Ledger: n.ledger, MachineID: machineID, Locks: locks,
		})
	}
	n.serve(t, &csi.Node{
		NodeName: nodeName, TopologyKey: berth.TopologyKeyNode, MaxVolumes: 100,
		Volumes: volumes, Mounter: mount.NewMounter(host), Locks: locks,
		Health: &agent.Health{
			Volumes: volumes, Failing: func() []discovery.FailingDisk { return nil }, Under: block.Sysfs{}.Under,
			Cache: n.cluster.Backdoor, PoolsSynced: synced, NodeName: nodeName,
		},
	})
	return n
}

// runAgent reconciles as the manager's controllers do.
func (n *node) runAgent(t *testing.T, r *agent.VolumeReconciler) {
	t.Helper()
	const workers = 4
	queue := drive(t, workers, r.ReconcileLive, r.ReconcileDeleted)
	n.cluster.Watch(t, func(e watch.Event) {
		if lv, ok := e.Object.(*berth.LocalVolume); ok {
			queue.Add(lv.Name)
		}
	})
}

// runSnapshots reconciles LocalSnapshots one after the other.
func (n *node) runSnapshots(t *testing.T, r *agent.SnapshotReconciler) {
	t.Helper()
	// What takes longer than a worker waits for tells the manager's queue of its end, which is
	// not here.
	const again = 100 * time.Millisecond
	queue := drive(t, 1, func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		result, err := r.Reconcile(ctx, req)
		if err != nil && ctx.Err() == nil {
			t.Errorf("LocalSnapshot %s: %v", req.Name, err)
		}
		return reconcile.Result{RequeueAfter: min(result.RequeueAfter, again)}, nil
	})
	watcher, err := n.cluster.Backdoor.Watch(context.Background(), &berth.LocalSnapshotList{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range watcher.ResultChan() {
			if s, ok := event.Object.(*berth.LocalSnapshot); ok {
				queue.Add(s.Name)
			}
		}
	}()
	t.Cleanup(func() {
		watcher.Stop()
		<-done
	})
}

// drive reconciles, in so many goroutines, what is added to the queue that it returns, until
// the test ends.
func drive(t *testing.T, workers int, reconcilers ...reconcile.Func) workqueue.TypedRateLimitingInterface[string] {
	t.Helper()
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](5*time.Millisecond, time.Second))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, workers)
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for name, closed := queue.Get(); !closed; name, closed = queue.Get() {
				reconcileOnce(ctx, queue, name, reconcilers)
				queue.Done(name)
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		queue.ShutDown()
		for range workers {
			<-done
		}
	})
	return queue
}

func reconcileOnce(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], name string, reconcilers []reconcile.Func) {
	req := reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
	for _, f := range reconcilers {
		switch result, err := f(ctx, req); {
		case err != nil:
			queue.AddRateLimited(name)
			return
		case result.RequeueAfter > 0:
			queue.AddAfter(name, result.RequeueAfter)
		}
	}
	queue.Forget(name)
}

func (n *node) serve(t *testing.T, service *csi.Node) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("BERTH_SANITY_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var snapshots csi.Snapshots
	taker := &provision.Snapshots{Live: n.cluster.Client}
	if n.snapshots {
		snapshots = taker
	}
	server := &csi.Server{
		Socket: n.socket, Identity: &csi.Identity{Name: berth.DriverName, Version: "sanity", Groups: n.groups},
		Controller: csi.NewController(n.cluster.Volumes, provision.Offers{Live: n.cluster.Client}, snapshots, log),
		Node:       service, Log: log,
	}
	if n.groups {
		server.GroupController = csi.NewGroupController(n.cluster.Volumes, taker)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve CSI: %v", err)
		}
	})
	waitUntil(t, "the socket is served", func() bool {
		conn, err := net.Dial("unix", n.socket)
		return err == nil && conn.Close() == nil
	})
}

// requireClean fails when anything of any volume is left.
func (n *node) requireClean(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	waitUntil(t, "every LocalVolume is gone", func() bool {
		list := &berth.LocalVolumeList{}
		return n.cluster.Backdoor.List(ctx, list) == nil && len(list.Items) == 0
	})
	if left := n.ledger.All(); len(left) > 0 {
		t.Errorf("the ledger still has %d entries, such as %+v", len(left), left[0])
	}
	if found, err := n.backend.List(ctx); err != nil || len(found) > 0 {
		t.Errorf("the backend still has %v, %v", found, err)
	}
	if err := n.settled(ctx); err != nil {
		t.Errorf("what was deleted does not go: %v", err)
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, n.directory), false
	})
	if err != nil || len(mounts) > 0 {
		t.Errorf("%d mounts are left, %v", len(mounts), err)
	}
}

// waitUntil polls until ok, and fails after thirty seconds.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited too long until %s", what)
		case <-tick.C:
		}
	}
}
