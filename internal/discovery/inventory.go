// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/device"
)

const (
	// settle is how long events of one moment are collected: udev's links come some
	// milliseconds after the kernel's event.
	settle = 150 * time.Millisecond
	// writeInterval is the least time between two writes of one object that tell
	// news of the disk. Claims are not held up by it.
	writeInterval = time.Second
	// lockedRetry is when a disk is looked at again that somebody had locked: no
	// event tells when a lock is let go.
	lockedRetry = 5 * time.Second
	// unreadableRetry is the same for a disk that could not be read.
	unreadableRetry = time.Minute
	// writers write the objects of so many disks at a time.
	writers = 4
)

// NodeNameField is the field by which a node's BlockDevices are selected.
const NodeNameField = "spec.nodeName"

// Informers is the part of a cache that Inventory listens to; a manager's cache is
// one. It must hold the BlockDevices of this node and the ConfigMaps of Berth's
// namespace.
type Informers interface {
	GetInformer(ctx context.Context, object client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Options of an Inventory. All but Holder, PoolOf, ContentOf, HolderChanged, DiskChanged, WipeDue, Registerer and
// SysRoot are needed.
type Options struct {
	// NodeName is the name of the Node object.
	NodeName string
	// MachineID is the content of the host's /etc/machine-id.
	MachineID string
	// Namespace of the ConfigMap berth-config.
	Namespace string
	// HostRoot is where this process sees the host's files: "/", or "/proc/1/root".
	HostRoot string
	// Client writes BlockDevices.
	Client client.Client
	// Reader reads them past any cache.
	Reader client.Reader
	// Informers tell of changes that others make. Nil in tests, which call
	// SetConfig, SetNodeLabels and ObserveObject themselves.
	Informers Informers
	// Recorder of Events.
	Recorder events.EventRecorder
	// Runner of the host's blkid.
	Runner block.Runner
	// Holder returns the volume that has its data on a disk by the node's own records,
	// whatever the API server says; nil knows of none. claimedBy is the UID of who has the disk
	// by its object, empty for nobody: while the disk is handed over from one volume to another,
	// each of the two may have it. It must not block.
	Holder func(diskName, claimedBy string) (holder device.Owner, held bool)
	// PoolOf returns the pool whose volume group a disk is part of by the node's own records,
	// empty for none; it is asked before a wipe, and an error forbids it. nil knows of none.
	PoolOf func(diskName string) (pool string, err error)
	// ContentOf returns what the owner with this UID has on its disk by the node's own records,
	// before it is released; false where they do not know. nil never knows. It must not block.
	ContentOf func(ownerUID string) (device.Content, bool)
	// HolderChanged is called when a disk that somebody holds has come or gone; nil
	// calls nobody.
	HolderChanged func(holder v1alpha1.BlockDeviceClaimRef)
	// WipeDue is called when a disk was released and is to be wiped, by whomever it was
	// held, and when such a disk came back; nil for nobody. It must not block.
	WipeDue func()
	// DiskChanged is called when something else was written of a disk that nobody holds;
	// nil calls nobody.
	DiskChanged func(name string)
	Log         logr.Logger
	// Registerer of the metrics; nil registers none.
	Registerer prometheus.Registerer
	// SysRoot is where sysfs is mounted; empty means HostRoot/sys.
	SysRoot string
}

// Inventory is what is known of the disks of one node, and the arbiter of who gets
// them. It is a Runnable of a controller-runtime manager on every node, whoever
// leads.
//
// It reads the disks once when it starts and then only what the kernel, udev, the
// ConfigMap or the operator say has changed. It is the only writer of the node's
// BlockDevices, so the copies it holds are those of the API server but for what an
// operator edits; every write is refused by the API server if that has happened.
type Inventory struct {
	opts     Options
	sysfs    block.Sysfs
	examiner *examiner
	metrics  *metrics
	log      logr.Logger
	queue    workqueue.TypedRateLimitingInterface[string]
	// ready is closed when every disk and its object were brought together once.
	ready chan struct{}

	mu sync.Mutex
	// config is the last good configuration, filters what of it counts on a node with
	// nodeLabels.
	config     *Filters
	nodeLabels labels.Set
	filters    *Filters
	// devices is a mirror of sysfs. The map and the devices are replaced, never
	// changed, so that they can be read without the mutex; version counts that.
	devices block.Topology
	version uint64
	// seen is when a device came to the mirror, for the wait for udev.
	seen map[string]time.Time
	// generation counts the events of a device that may mean new content.
	generation map[string]uint64
	// index maps the names of objects to the kernel names of the devices that show
	// their identity.
	index map[string][]string
	disks map[string]*disk
	uses  *uses
	// usesTold are those that every disk was judged by, or queued to be.
	usesTold *uses
	// unjudged are the disks that ready waits for, nil once it is closed.
	unjudged    map[string]bool
	subscribers map[chan struct{}]struct{}
}

// disk is what is kept for one object.
type disk struct {
	// object as last written or read; nil before the first write. It is replaced,
	// never changed.
	object *v1alpha1.BlockDevice
	// writing is not nil while somebody writes the object, and closed when done.
	writing chan struct{}
	// stale when a write ended in doubt: the object is read before it is used again.
	stale     bool
	lastWrite time.Time
	content   *examination
	contentOf contentKey
	examined  time.Time
	// health is what was found out since this process began; nil if nothing was.
	health *Health
	// wiped is how much of the disk the wipe under way has done, and shownAt when that
	// was last worth a write.
	wiped   int64
	shownAt time.Time
	// elsewhere is what other nodes have said of the disk; nil until they were asked.
	elsewhere *sightings
}

// contentKey tells when an examination is out of date.
type contentKey struct {
	kernelName string
	diskSeq    uint64
	sizeBytes  int64
	generation uint64
}

// New makes an Inventory. It does nothing before Start.
func New(opts Options) (*Inventory, error) {
	switch {
	case opts.NodeName == "" || opts.MachineID == "" || opts.Namespace == "":
		return nil, errors.New("discovery needs the node's name, its machine ID and Berth's namespace")
	case opts.Client == nil || opts.Reader == nil || opts.Recorder == nil || opts.Runner == nil:
		return nil, errors.New("discovery needs a client, a reader, a recorder and a runner")
	}
	if opts.HostRoot == "" {
		opts.HostRoot = "/"
	}
	sysfs := block.Sysfs{Root: opts.SysRoot, HostRoot: opts.HostRoot}
	if sysfs.Root == "" {
		sysfs.Root = sysfs.HostRoot + "/sys"
	}
	inv := &Inventory{
		opts: opts, sysfs: sysfs, log: opts.Log,
		examiner: newExaminer(sysfs, block.Prober{Runner: opts.Runner, HostRoot: opts.HostRoot}),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, time.Minute)),
		ready:       make(chan struct{}),
		devices:     block.Topology{},
		seen:        map[string]time.Time{},
		generation:  map[string]uint64{},
		index:       map[string][]string{},
		disks:       map[string]*disk{},
		subscribers: map[chan struct{}]struct{}{},
	}
	var err error
	if inv.metrics, err = newMetrics(opts.Registerer, inv.objects); err != nil {
		return nil, fmt.Errorf("register the metrics of discovery: %w", err)
	}
	return inv, nil
}

// NeedLeaderElection is false: every node has its own disks.
func (inv *Inventory) NeedLeaderElection() bool { return false }

// Start runs until the context ends.
func (inv *Inventory) Start(ctx context.Context) error {
	watcher, err := block.Watch(ctx, inv.sysfs) // first watch, then walk
	if err != nil {
		return err
	}
	if err := inv.loadObjects(ctx); err != nil {
		return err
	}
	if err := inv.listen(ctx); err != nil {
		return err
	}
	again, err := inv.rescan(ctx)
	if err != nil {
		return err
	}
	inv.expectAll()
	var workers sync.WaitGroup
	for range writers {
		workers.Go(func() { inv.work(ctx) })
	}
	tables := make(chan struct{}, 1)
	workers.Go(func() { inv.watchTables(ctx, tables) })
	err = inv.follow(ctx, watcher, tables, again)
	inv.queue.ShutDown()
	workers.Wait()
	return err
}

// expectAll has ready wait for every disk and every object there is now. What
// stands in the objects may be from before a reboot, when /dev/sdb was another
// disk.
func (inv *Inventory) expectAll() {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	inv.unjudged = map[string]bool{}
	for name := range inv.disks {
		inv.unjudged[name] = true
	}
	if len(inv.unjudged) == 0 {
		inv.becomeReady()
	}
}

// becomeReady tells everybody: who has looked before was told to come back. inv.mu is held.
func (inv *Inventory) becomeReady() {
	inv.unjudged = nil
	close(inv.ready)
	inv.notify()
}

// loadObjects reads the node's BlockDevices past every cache, and tries until it
// has them: without them nothing is known of the claims.
func (inv *Inventory) loadObjects(ctx context.Context) error {
	for delay := 200 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		list, err := inv.liveList(ctx)
		if err == nil {
			inv.mu.Lock()
			for i := range list {
				inv.disk(list[i].Name).object = &list[i]
			}
			inv.mu.Unlock()
			return nil
		}
		inv.log.Error(err, "cannot read the BlockDevices yet", "retryAfter", delay)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

func (inv *Inventory) liveList(ctx context.Context) ([]v1alpha1.BlockDevice, error) {
	var list v1alpha1.BlockDeviceList
	if err := inv.opts.Reader.List(ctx, &list, client.MatchingFields{NodeNameField: inv.opts.NodeName}); err != nil {
		return nil, fmt.Errorf("list the BlockDevices of node %s: %w", inv.opts.NodeName, err)
	}
	return list.Items, nil
}

// disk returns the entry of an object's name, new if need be. inv.mu is held.
func (inv *Inventory) disk(name string) *disk {
	d := inv.disks[name]
	if d == nil {
		d = &disk{}
		inv.disks[name] = d
	}
	return d
}

// waitReady returns when the inventory knows the node.
func (inv *Inventory) waitReady(ctx context.Context) error {
	select {
	case <-inv.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the disks of the node are not known yet: %w", ctx.Err())
	}
}

// Ready reports whether every disk and its object were brought together once; for
// readiness probes. Until then the methods that answer about disks wait.
func (inv *Inventory) Ready() bool {
	select {
	case <-inv.ready:
		return true
	default:
		return false
	}
}

// Subscribe returns a channel that gets a value when the inventory becomes ready, and when a
// disk, its verdict or its claim has changed since the last one was taken. Several changes may be one
// value. cancel ends it.
func (inv *Inventory) Subscribe() (changed <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	inv.mu.Lock()
	defer inv.mu.Unlock()
	inv.subscribers[c] = struct{}{}
	return c, func() {
		inv.mu.Lock()
		defer inv.mu.Unlock()
		delete(inv.subscribers, c)
	}
}

// notify wakes the subscribers. inv.mu is held.
func (inv *Inventory) notify() {
	for c := range inv.subscribers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func key(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
