// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// Disks is what a pool needs of the node's disks; *discovery.Inventory is it.
type Disks interface {
	Ready() bool
	// PoolCandidates returns the disks that may be claimed now and match.
	PoolCandidates(ctx context.Context, sel *v1alpha1.DeviceSelector) ([]v1alpha1.BlockDevice, error)
	// ClaimForPool claims a disk durably, after proving it blank.
	ClaimForPool(ctx context.Context, diskName string, pool *v1alpha1.Pool) (device.Claimed, error)
	// Claims returns every claimed disk; complete or an error.
	Claims(ctx context.Context) ([]device.Claimed, error)
	// Failing returns the disks that are failing.
	Failing() []discovery.FailingDisk
	// Release ends a claim and has the disk wiped.
	Release(ctx context.Context, diskName, ownerUID string, policy volume.WipePolicy) (token string, err error)
}

// DeviceMapper tells of device-mapper's events; dm.Control is it.
type DeviceMapper interface {
	// WatchEvents calls happened after each event, until the context ends, and once at the
	// beginning.
	WatchEvents(ctx context.Context, happened func()) error
}

// MetadataCopies keeps copies of the metadata of volume groups; *MetadataKeeper is it.
type MetadataCopies interface {
	Seen(poolSet, poolName string, source MetadataSource, groupUUID string, generation uint64, thin bool)
	// Stop ends the copying until the next Seen.
	Stop(poolSet string)
	// Forget removes the copies of a group that was removed on purpose.
	Forget(ctx context.Context, poolSet, groupUUID string) error
}

// PoolOptions of a PoolReconciler.
type PoolOptions struct {
	// Client reads from the informers' cache and writes; Live reads from the API server.
	Client    client.Client
	Live      client.Reader
	NodeName  string
	MachineID string
	// Directory of the pool records.
	Directory string
	// HostRoot is where this process sees the host's "/".
	HostRoot string
	Backends *Backends
	Ledger   *ledger.Ledger
	Disks    Disks
	LVM      VolumeGroups
	Events   DeviceMapper
	// Metadata keeps copies of the volume groups' metadata; nil keeps none.
	Metadata MetadataCopies
	Roots    Roots
	// Purger removes left-overs that somebody has asked to purge; nil removes none.
	Purger *Purger
	// Doubt has the storage of a LocalVolume looked at that the pool does not show; it may be
	// nil.
	Doubt func(name string)
	// DoubtSnapshot is that for a LocalSnapshot, also for one that is shown again; it may be nil.
	DoubtSnapshot func(name string)
	// Mounts says where left-overs are mounted; nil does not.
	Mounts Mounts
	// TrashEntriesPerSecond are the files and directories of deleted volumes that each root
	// removes in a second at most.
	TrashEntriesPerSecond int
	// Recorder makes Events of pools.
	Recorder Announcer
	Log      *slog.Logger
}

// PoolReconciler makes and keeps this node's pools. It works on one PoolSet at a
// time; the name of a request is a PoolSet's.
type PoolReconciler struct {
	PoolOptions

	records poolRecords
	queue   queueHandle
	written expectations
	touches touches

	watch sync.Once

	mu sync.Mutex
	// pools that were looked at, by PoolSet.
	pools map[string]*livePool
	// lifetime ends the background work of the backends.
	lifetime context.Context //nolint:containedctx // the backends outlive every single request
}

// livePool is what the process remembers of a pool between two looks. One worker at a
// time uses it.
type livePool struct {
	backend volume.Backend
	// stop ends the backend's background work; nil when it has none.
	stop    context.CancelFunc
	reserve reserve
	thin    thinPolicy
	// snapshots is how much room thick snapshots get.
	snapshots snapshotPolicy
	// follows is set once the pool was looked at, if the events of device-mapper are about
	// it: it is thin or redundant.
	follows atomic.Bool
	// admits is whether the thin pool had room for volumes.
	admits  atomic.Bool
	devices devicePaths
	// missingSince is when a disk of the volume group was first seen to be missing; zero
	// while none is.
	missingSince time.Time
	// told is the reason of the condition Ready that was announced last.
	told string
	// judged is what was wrong with the pool when its volumes were last looked at; nil before.
	judged atomic.Pointer[string]
	// numbersWritten is when the status was last written.
	numbersWritten time.Time
	// trash is that of a root.
	trash trash
	// last is how the pool looked last; nil before, and when it is gone.
	last atomic.Pointer[poolView]
	// seen is set once the PoolSet was looked at.
	seen      atomic.Bool
	leftOvers leftOvers
}

// reset forgets the backend of a pool that is gone.
func (p *livePool) reset() {
	if p.stop != nil {
		p.stop()
	}
	p.follows.Store(false)
	p.missingSince = time.Time{}
	p.last.Store(nil)
	p.trash.forget()
	p.judged.Store(nil)
	p.backend, p.stop = nil, nil
	p.devices.set(nil)
	p.leftOvers.reset()
}

// NewPoolReconciler returns a reconciler; the lifetime bounds the background work of
// the backends that it makes.
func NewPoolReconciler(lifetime context.Context, o PoolOptions) *PoolReconciler {
	return &PoolReconciler{PoolOptions: o, records: newPoolRecords(o.Directory), pools: map[string]*livePool{}, lifetime: lifetime}
}

func (r *PoolReconciler) live(name string) *livePool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pools[name]
	if p == nil {
		p = &livePool{}
		r.pools[name] = p
	}
	return p
}

// Restore registers the pools that the node has a record of, before anything else
// runs, so that their volumes can be staged while the API server is away. It runs no
// command.
func (r *PoolReconciler) Restore() error {
	names, err := r.records.keys()
	if err != nil {
		return err
	}
	for _, name := range names {
		rec, err := r.records.load(name)
		if err == nil && rec.MachineID != r.MachineID {
			err = madeElsewhere("pool "+name, rec.MachineID, r.MachineID)
		}
		if err != nil {
			r.Log.Error("A pool cannot be used", "pool", name, "error", err)
			r.Backends.Set(PoolBackend{Name: name, Reason: err.Error()})
			continue
		}
		p := r.live(name)
		backend, err := r.backendOf(rec, p)
		if err != nil {
			return fmt.Errorf("restore pool %s: %w", name, err)
		}
		if backend != nil {
			p.backend = backend
			r.Backends.Set(PoolBackend{Name: name, Mode: modeOf(rec.Kind), Backend: backend, Closed: true, Reason: "it was not looked at yet"})
		}
	}
	return nil
}

// Reconcile brings one pool to what its PoolSet asks. The empty name only looks
// whether all were looked at.
func (r *PoolReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.Name == "" {
		return reconcile.Result{}, r.checkSynced(ctx)
	}
	result, err := r.reconcile(ctx, req.Name)
	if err != nil && !r.Backends.Has(req.Name) {
		// A pool that could not be looked at is not one that is not there.
		r.Backends.Set(PoolBackend{Name: req.Name, Reason: err.Error()})
	}
	r.live(req.Name).seen.Store(true)
	return result, errors.Join(err, r.checkSynced(ctx))
}

func (r *PoolReconciler) reconcile(ctx context.Context, name string) (reconcile.Result, error) {
	set, err := r.wanted(ctx, name)
	if err != nil {
		return reconcile.Result{}, err
	}
	pool := &v1alpha1.Pool{}
	err = r.Client.Get(ctx, client.ObjectKey{Name: r.objectName(name)}, pool)
	switch {
	case apierrors.IsNotFound(err) && set == nil:
		return reconcile.Result{}, r.orphaned(name)
	case apierrors.IsNotFound(err):
		if pool, err = r.create(ctx, set); err != nil {
			return reconcile.Result{}, err
		}
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("read Pool %s: %w", r.objectName(name), err)
	case r.written.isBehind(pool):
		return reconcile.Result{}, nil
	}
	if !pool.DeletionTimestamp.IsZero() {
		return r.delete(ctx, pool)
	}
	view, cause := r.bringUp(ctx, pool, set)
	wait := sooner(r.purge(ctx, pool, &view), r.lookForLeftOvers(ctx, name, &view))
	result, err := r.publish(ctx, pool, view)
	if wait > 0 && (result.RequeueAfter == 0 || wait < result.RequeueAfter) {
		result.RequeueAfter = wait
	}
	return result, errors.Join(cause, err)
}

// sooner is the lesser of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

func (r *PoolReconciler) objectName(poolSet string) string { return poolSet + "-" + r.NodeName }

// wanted returns the PoolSet if it stands and selects this node, else nil.
func (r *PoolReconciler) wanted(ctx context.Context, name string) (*v1alpha1.PoolSet, error) {
	set := &v1alpha1.PoolSet{}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, set); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("read PoolSet %s: %w", name, err)
	}
	if !set.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	node := discovery.NodeMetadata()
	if err := r.Client.Get(ctx, client.ObjectKey{Name: r.NodeName}, node); err != nil {
		return nil, fmt.Errorf("read Node %s: %w", r.NodeName, err)
	}
	if !labels.SelectorFromSet(set.Spec.NodeSelector).Matches(labels.Set(node.Labels)) {
		return nil, nil
	}
	return set, nil
}

// create makes the Pool object. It has no owner reference: the PoolSet's deletion
// must not take it along, for a deletion cannot be taken back.
func (r *PoolReconciler) create(ctx context.Context, set *v1alpha1.PoolSet) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: r.objectName(set.Name), Finalizers: []string{v1alpha1.AgentFinalizer}},
		Spec:       v1alpha1.PoolSpec{NodeName: r.NodeName, PoolSetName: set.Name, Kind: set.Spec.Kind},
	}
	if err := r.Client.Create(ctx, pool); err != nil {
		return nil, fmt.Errorf("create Pool %s: %w", pool.Name, err)
	}
	r.Log.Info("Created a Pool", "pool", pool.Name)
	return pool, nil
}

// orphaned is a pool without PoolSet and without object: one that never was, or one
// whose objects were lost with volumes still in it.
func (r *PoolReconciler) orphaned(name string) error {
	rec, err := r.records.load(name)
	if err != nil {
		return err
	}
	if rec != nil && rec.Removal == removalDone {
		if err := r.records.remove(name); err != nil {
			return err
		}
		rec = nil
	}
	p := r.live(name)
	if rec == nil {
		p.reset()
		r.Backends.Forget(name)
		return nil
	}
	r.Backends.Set(PoolBackend{Name: name, Mode: modeOf(rec.Kind), Backend: p.backend, Closed: true, Reason: noPoolSet(name)})
	return nil
}

func noPoolSet(name string) string {
	return fmt.Sprintf("no PoolSet %s selects this node any more; its volumes go on, new ones are not made", name)
}

// checkSynced tells the backends when every PoolSet was looked at once.
func (r *PoolReconciler) checkSynced(ctx context.Context) error {
	if r.Backends.Synced() {
		return nil
	}
	var sets v1alpha1.PoolSetList
	if err := r.Client.List(ctx, &sets); err != nil {
		return fmt.Errorf("list PoolSets: %w", err)
	}
	for i := range sets.Items {
		if !r.live(sets.Items[i].Name).seen.Load() {
			return nil
		}
	}
	r.Backends.SetSynced()
	return nil
}

func modeOf(kind v1alpha1.PoolKind) volume.Mode {
	if kind == v1alpha1.PoolHostpath {
		return volume.ModeHostpath
	}
	return volume.ModeLVM
}
