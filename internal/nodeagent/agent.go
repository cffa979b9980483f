// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/capacity"
	"github.com/berth-dev/berth/internal/command"
	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/health"
	bmetrics "github.com/berth-dev/berth/internal/metrics"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/mount"
)

// Agent is the wired agent of one node.
type Agent struct {
	Options
	manager manager.Manager

	inventory    *discovery.Inventory
	cleaner      *device.Cleaner
	server       *csi.Server
	registration *csi.Registration
	monitor      *health.Monitor
	limiter      *agent.Limiter
	sealer       *agent.Sealer
	// goOn lets go on what an agent that was killed has held up.
	goOn      func(ctx context.Context)
	podEvents PodEvents
	informers []toolscache.InformerSynced
}

// New makes the parts and ties them together. It asks the API server nothing, and
// nothing runs before Serve.
func New(ctx context.Context, o Options) (*Agent, error) {
	mgr, err := newManager(o)
	if err != nil {
		return nil, fmt.Errorf("make the manager: %w", err)
	}
	n := &Agent{Options: o, manager: mgr}
	return n, n.assemble(ctx)
}

func (n *Agent) assemble(ctx context.Context) error {
	var err error
	recorder := n.manager.GetEventRecorder("berth-node-agent")
	volumes := &agent.VolumeReconciler{Recorder: recorder} // filled below, before anything runs
	n.inventory, err = discovery.New(discovery.Options{
		NodeName: n.NodeName, MachineID: n.MachineID, Namespace: n.Namespace, HostRoot: n.HostRoot,
		Client: n.manager.GetClient(), Reader: n.manager.GetAPIReader(), Informers: n.manager.GetCache(),
		Recorder: recorder, Runner: n.Host,
		Log: logr.FromSlogHandler(n.Log.Handler()).WithName("discovery"), Registerer: n.Registerer,
		Holder: n.holder, PoolOf: agent.RecordedPools(filepath.Join(n.StateDir, "pools")).Of, ContentOf: n.contentOf,
		HolderChanged: func(holder berth.BlockDeviceClaimRef) {
			if holder.Kind == device.OwnerVolume {
				volumes.Doubt(holder.Name)
			}
		},
		DiskChanged: volumes.DiskChanged,
		WipeDue:     func() { n.cleaner.Kick() }, // it is made below, before anything runs
	})
	if err != nil {
		return err
	}
	if err := n.monitorHealth(); err != nil {
		return err
	}
	disks := hostDisks{n.HostRoot}
	prober := block.Prober{Runner: n.Host, HostRoot: n.HostRoot}
	n.cleaner = device.NewCleaner(device.CleanerOptions{
		Registry: n.inventory, Disks: disks, Prober: prober, Observer: n.inventory, Log: n.Log.With("part", "cleaner"),
		Parallelism: n.WipeParallelism, RateBytesPerSecond: n.WipeRateBytesPerSecond,
	})
	whole := device.New(device.Options{
		Registry: n.inventory, Disks: disks, Prober: prober,
		Log: n.Log.With("part", "device"),
	})
	backends := agent.NewBackends(whole)
	generations, err := agent.OpenGenerations(filepath.Join(n.StateDir, "volume-groups"))
	if err != nil {
		return fmt.Errorf("open the records of volume groups: %w", err)
	}
	pools := agent.NewPoolReconciler(ctx, agent.PoolOptions{
		Client: n.manager.GetClient(), Live: n.manager.GetAPIReader(), NodeName: n.NodeName, MachineID: n.MachineID,
		Directory: filepath.Join(n.StateDir, "pools"), HostRoot: n.HostRoot,
		Backends: backends, Ledger: n.Ledger, Disks: n.inventory,
		LVM: agent.LVM{
			Client:      lvm.NewClient(n.Host, lvm.DiskFlusher(n.HostRoot)),
			Generations: generations,
			HostRoot:    n.HostRoot,
			Instants:    n.Instants,
			Log:         n.Log.With("part", "pools"),
		},
		Events: dm.Control{Root: n.HostRoot},
		Roots:  agent.HostRoots{}, TrashEntriesPerSecond: n.TrashEntriesPerSecond, Recorder: recorder, Log: n.Log.With("part", "pools"),
	})
	metadata := agent.NewMetadataKeeper(ctx, agent.MetadataOptions{
		Client: n.manager.GetClient(), Live: n.manager.GetAPIReader(), Namespace: n.Namespace, NodeName: n.NodeName,
		Directory: filepath.Join(n.StateDir, metadataDirectory), HostDirectory: filepath.Join(n.HostStateDir, metadataDirectory),
		Recorder: recorder, Log: n.Log.With("part", "metadata"),
	})
	pools.Metadata = metadata
	for _, collector := range []prometheus.Collector{pools, metadata} {
		if err := n.Registerer.Register(collector); err != nil {
			return fmt.Errorf("register the metrics of pools: %w", err)
		}
	}
	if err := pools.Restore(); err != nil { //nolint:contextcheck // it has the agent's own
		return err
	}
	locks := &agent.Locks{}
	n.sealer = &agent.Sealer{
		Ledger: n.Ledger, Cryptsetup: luks.NewClient(n.Host), Formatter: mount.NewFormatter(n.Host), Filesystems: mount.NewMounter(n.Host),
		Changed: volumes.Enqueue, Log: n.Log.With("part", "encryption"),
	}
	volumes.Client, volumes.Ledger, volumes.SelectDisk = n.manager.GetClient(), n.Ledger, discovery.SelectDisk
	volumes.Carver = &agent.Carver{
		Journal: n.Ledger, Backends: backends, Formatter: mount.NewFormatter(n.Host), Tools: n.Host, Mounts: mount.NewMounter(n.Host),
		MachineID: n.MachineID, Locks: locks,
		Copies:    &agent.Copies{Cache: n.manager.GetClient(), Ledger: n.Ledger, Locks: locks, MachineID: n.MachineID},
		Encrypted: n.sealer,
	}
	if pools.Purger, err = agent.NewPurger(agent.PurgeOptions{
		Live: n.manager.GetAPIReader(), Carver: volumes.Carver, Ledger: n.Ledger, Directory: filepath.Join(n.StateDir, "purges"),
		Filesystems: mount.NewMounter(n.Host), Log: n.Log.With("part", "purges"),
	}); err != nil {
		return err
	}
	volumes.Carver.LeftOvers, volumes.Carver.Copies.Quarantined = pools.Purger, pools.Purger.Quarantined
	changedDisks, _ := n.inventory.Subscribe()
	if err := n.manager.Add(agent.NewDiskPurges(agent.DiskPurgesOptions{
		Purger: pools.Purger, Disks: n.inventory, Changed: changedDisks, Backend: whole,
		PoolOf:   agent.RecordedPools(filepath.Join(n.StateDir, "pools")).Of,
		Recorder: recorder, Log: n.Log.With("part", "purges"),
	})); err != nil {
		return err
	}
	pools.Mounts, pools.Doubt = mount.NewMounter(n.Host), volumes.Doubt
	snapshots := &agent.SnapshotReconciler{
		Client: n.manager.GetClient(), Backends: backends, Ledger: n.Ledger, MachineID: n.MachineID, Locks: locks,
		Encrypted: n.sealer, Recorder: recorder,
	}
	pools.DoubtSnapshot = snapshots.Doubt
	if err := n.keepSnapshots(snapshots, backends); err != nil {
		return err
	}
	if err := snapshots.SetupWithManager(n.manager); err != nil {
		return err
	}
	known, err := n.know(ctx, backends)
	if err != nil {
		return err
	}
	known.Quarantined = pools.Purger.Quarantined
	n.goOn = func(ctx context.Context) { n.sealer.Recover(ctx, n.Ledger.All(), locks, known.Locate) }
	if err := n.limit(volumes, known, locks); err != nil {
		return err
	}
	if err := n.control(ctx, volumes, pools, backends); err != nil {
		return err
	}
	return n.wireCSI(ctx, volumes, known, locks)
}

// metadataDirectory has the node's own copies of the metadata of volume groups.
const metadataDirectory = "volume-group-metadata"

// keepSnapshots looks after the snapshots of thick volumes.
func (n *Agent) keepSnapshots(snapshots *agent.SnapshotReconciler, backends *agent.Backends) error {
	keeper := &agent.SnapshotKeeper{Backends: backends, Changed: snapshots.LookAt, Log: n.Log.With("part", "snapshots")}
	keeper.Setup()
	snapshots.State = keeper.State
	if err := n.Registerer.Register(keeper); err != nil {
		return fmt.Errorf("register the metrics of snapshots: %w", err)
	}
	return n.manager.Add(keeper)
}

// know makes what finds the volumes of the node.
func (n *Agent) know(ctx context.Context, backends *agent.Backends) (*agent.Volumes, error) {
	informer, err := n.manager.GetCache().GetInformer(ctx, &berth.LocalVolume{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch LocalVolumes: %w", err)
	}
	n.informers = append(n.informers, informer.HasSynced)
	if err := n.Registerer.Register(&agent.VolumeCollector{Cache: n.manager.GetClient(), CacheSynced: informer.HasSynced, Ledger: n.Ledger}); err != nil {
		return nil, fmt.Errorf("register the metrics of volumes: %w", err)
	}
	return &agent.Volumes{
		Ledger: n.Ledger, Backends: backends, MachineID: n.MachineID,
		Cache: n.manager.GetClient(), CacheSynced: informer.HasSynced,
		Opened: n.sealer.Opened,
	}, nil
}

// sysfs is the host's.
func (n *Agent) sysfs() block.Sysfs {
	return block.Sysfs{Root: filepath.Join(n.HostRoot, "sys"), HostRoot: n.HostRoot}
}

// monitorHealth makes the part that asks the disks how they are, unless that is
// turned off.
func (n *Agent) monitorHealth() (err error) {
	if n.HealthInterval == 0 {
		return nil
	}
	changed, _ := n.inventory.Subscribe()
	n.monitor, err = health.New(health.Options{
		Disks: n.inventory, Changed: changed, Counters: n.sysfs(), Runner: n.Host, Interval: n.HealthInterval,
		Log: logr.FromSlogHandler(n.Log.Handler()).WithName("health"), Registerer: n.Registerer,
	})
	return err
}

// control adds the controllers and what else needs the API server.
func (n *Agent) control(ctx context.Context, volumes *agent.VolumeReconciler, pools *agent.PoolReconciler, backends *agent.Backends) error {
	disksForPools, _ := n.inventory.Subscribe()
	disksForCapacity, _ := n.inventory.Subscribe()
	publisher := capacity.New(capacity.Options{
		Client: n.manager.GetClient(), Live: n.manager.GetAPIReader(), Namespace: n.Namespace, NodeName: n.NodeName,
		Owner: n.owner, Room: volumes.Room, Log: n.Log.With("part", "capacity"),
	})
	backends.OnChange(publisher.Kick)
	backends.OnTouch(func(string) { publisher.Kick() })
	for _, watched := range []struct {
		object  client.Object
		matters func(before, after metav1.Object) bool
	}{
		{&storagev1.StorageClass{}, isChanged},
		{discovery.NodeMetadata(), isAnotherOne},
	} {
		object := watched.object
		informer, err := n.manager.GetCache().GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
		if _, err := informer.AddEventHandler(kicks(publisher.Kick, watched.matters)); err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
		n.informers = append(n.informers, informer.HasSynced)
	}
	if err := volumes.SetupWithManager(n.manager); err != nil {
		return err
	}
	if err := pools.SetupWithManager(n.manager, disksForPools); err != nil {
		return err
	}
	if n.monitor != nil {
		if err := n.manager.Add(n.monitor); err != nil {
			return err
		}
	}
	for _, runnable := range []manager.Runnable{
		n.inventory,
		publisher,
		manager.RunnableFunc(n.cleaner.Run),
		manager.RunnableFunc(func(ctx context.Context) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-disksForCapacity:
					publisher.Kick()
				}
			}
		}),
	} {
		if err := n.manager.Add(runnable); err != nil {
			return err
		}
	}
	return nil
}

func isChanged(before, after metav1.Object) bool {
	return before.GetResourceVersion() != after.GetResourceVersion()
}

// isAnotherOne is what matters of a Node to what it owns: it changes with every report
// of its kubelet.
func isAnotherOne(before, after metav1.Object) bool { return before.GetUID() != after.GetUID() }

// kicks calls f when an object comes, goes, or changes in a way that matters.
func kicks(f func(), matters func(before, after metav1.Object) bool) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { f() },
		UpdateFunc: func(before, after any) {
			b, okBefore := before.(metav1.Object)
			a, okAfter := after.(metav1.Object)
			if !okBefore || !okAfter || matters(b, a) {
				f()
			}
		},
		DeleteFunc: func(any) { f() },
	}
}

// owner is the Node: when it goes, its capacity goes.
func (n *Agent) owner(ctx context.Context) (metav1.OwnerReference, error) {
	object := discovery.NodeMetadata()
	if err := n.manager.GetClient().Get(ctx, types.NamespacedName{Name: n.NodeName}, object); err != nil {
		return metav1.OwnerReference{}, fmt.Errorf("read Node %s: %w", n.NodeName, err)
	}
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: object.Name, UID: object.UID}, nil
}

func (n *Agent) wireCSI(ctx context.Context, volumes *agent.VolumeReconciler, known *agent.Volumes, locks *agent.Locks) error {
	calls, err := bmetrics.NewCalls(n.Registerer)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	pools, err := n.manager.GetCache().GetInformer(ctx, &berth.Pool{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch Pools: %w", err)
	}
	n.server = &csi.Server{
		Socket:   n.CSISocket,
		Identity: &csi.Identity{Name: berth.DriverName, Version: command.Version()},
		Node: &nodeService{
			Node: &csi.Node{
				NodeName: n.NodeName, TopologyKey: berth.TopologyKeyNode,
				Volumes: known,
				Mounter: mount.NewMounter(n.Host), Locks: locks,
				Encryption: n.sealer,
				Health: &agent.Health{
					Volumes: known, Failing: n.inventory.Failing, Under: n.sysfs().Under, NodeName: n.NodeName,
					Cache: n.manager.GetClient(), PoolsSynced: pools.HasSynced,
				},
			},
			published: n.limiter.Published, released: volumes.Enqueue,
		},
		Log:      n.Log.With("part", "csi"),
		Observer: calls,
	}
	n.registration = &csi.Registration{
		Directory: n.RegistrationDir, DriverName: berth.DriverName, Endpoint: n.Endpoint, Log: n.Log.With("part", "registration"),
	}
	return nil
}

// nodeService tells when a volume is published, for its limits, and when it is let go, so
// that a deletion that waits for it goes on.
type nodeService struct {
	*csi.Node
	published func(ctx context.Context, volume string)
	released  func(volume string)
}

// NodeUnstageVolume implements the CSI Node service.
func (s *nodeService) NodeUnstageVolume(ctx context.Context, req *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	resp, err := s.Node.NodeUnstageVolume(ctx, req)
	if err == nil {
		s.released(req.GetVolumeId())
	}
	return resp, err
}

// Ready is the answer of /readyz: nil when the node and its objects are known and kubelet
// has registered the driver.
func (n *Agent) Ready() error {
	for _, synced := range n.informers {
		if !synced() {
			return errors.New("the objects of this node were not read from the API server yet")
		}
	}
	if !n.inventory.Ready() {
		return errors.New("the disks of this node were not looked at yet")
	}
	return n.registration.Registered()
}

// Serve runs until the context ends. CSI is served beside the manager and not by it,
// for the manager starts nothing before the API server has answered.
func (n *Agent) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.server.Start(ctx) })
	group.Go(func() error {
		if err := waitForSocket(ctx, n.CSISocket); err != nil {
			return err
		}
		return n.registration.Start(ctx)
	})
	group.Go(func() error { n.goOn(ctx); return nil })
	group.Go(func() error { return n.followPods(ctx) })
	group.Go(func() error { return n.runManager(ctx) })
	return group.Wait()
}

// runManager runs the manager until the context ends. While the caches of
// controller-runtime (v0.25.2: runnableGroup.Start) wait for the API server, the
// manager does not notice that it is told to end; nothing of ours runs in it then.
func (n *Agent) runManager(ctx context.Context) error {
	var started atomic.Bool
	if err := n.manager.Add(manager.RunnableFunc(func(ctx context.Context) error {
		started.Store(true)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settleTime):
		}
		if n.Settled != nil {
			n.Settled()
		}
		return nil
	})); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- n.manager.Start(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	if !started.Load() {
		return nil
	}
	return <-ended
}

// settleTime is how long after its start an agent has looked at everything once.
const settleTime = 10 * time.Second

// waitForSocket returns when somebody answers on the socket: kubelet calls it as soon
// as it sees the registration.
func waitForSocket(ctx context.Context, path string) error {
	var dialer net.Dialer
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
