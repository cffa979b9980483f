// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/quietqueue"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// snapshotWorkers is how many snapshots are taken or deleted at once, before the workers go on
// with others. More than one pool's, which may hang.
const snapshotWorkers = 2 * laneWidth

// SnapshotReconciler keeps the LocalSnapshots of this node. A snapshot is known on the disk
// by its UID, and is handed to nobody before its status says that it stands, so it needs
// no entry in the ledger: what a crash cuts short is found there by the next attempt.
type SnapshotReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client    client.Client
	Backends  *Backends
	Ledger    *ledger.Ledger
	MachineID string
	// Locks by volume name, shared with the Carver.
	Locks *Locks
	// Encrypted holds up what uses an encrypted volume while its snapshot is taken.
	Encrypted Encrypted
	// State returns how a snapshot of a thick volume was when it was looked at last; nil
	// where nobody looks.
	State func(uid string) (lvm.SnapshotState, bool)
	// Recorder makes Events of snapshots.
	Recorder Announcer

	written expectations
	queue   queueHandle
	// groups are locks by the name of a group.
	groups Locks
	// works are the snapshots of directories, which take time by the number of files, and
	// deletions.
	works works

	mu sync.Mutex
	// waiting are the snapshots to look at again when a pool changes, and doubted those that a pool
	// does not show, or shows again.
	waiting, doubted map[string]bool
}

// SetupWithManager adds the controller of LocalSnapshots.
func (r *SnapshotReconciler) SetupWithManager(mgr manager.Manager) error {
	r.Backends.OnChange(r.poolsChanged)
	r.Backends.OnTouch(func(string) { r.poolsChanged() })
	byPool := &lanes{}
	if err := mgr.Add(byPool); err != nil {
		return fmt.Errorf("add the lanes of controller snapshot: %w", err)
	}
	ctrl, err := controller.New("snapshot", mgr, controller.Options{
		Reconciler:              byPool.through(r.Reconcile, r.poolOf, &r.queue),
		MaxConcurrentReconciles: snapshotWorkers,
		NeedLeaderElection:      new(false),
		NewQueue:                quietqueue.New,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
	})
	if err != nil {
		return fmt.Errorf("add controller snapshot: %w", err)
	}
	for _, s := range []source.Source{
		source.Kind(mgr.GetCache(), &v1alpha1.LocalSnapshot{}, &handler.TypedEnqueueRequestForObject[*v1alpha1.LocalSnapshot]{}),
		&r.queue,
	} {
		if err := ctrl.Watch(s); err != nil {
			return fmt.Errorf("watch for the controller snapshot: %w", err)
		}
	}
	return nil
}

// poolOf returns the pool of a snapshot, "" for one that is gone.
func (r *SnapshotReconciler) poolOf(ctx context.Context, name string) string {
	s := &v1alpha1.LocalSnapshot{}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, s); err != nil {
		return ""
	}
	return s.Spec.Pool
}

// Reconcile takes a snapshot that is wanted, and removes one whose deletion was asked for.
func (r *SnapshotReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s := &v1alpha1.LocalSnapshot{}
	if err := r.Client.Get(ctx, req.NamespacedName, s); err != nil {
		if apierrors.IsNotFound(err) {
			r.written.forget(req.Name)
			r.mu.Lock()
			delete(r.doubted, req.Name)
			r.mu.Unlock()
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("read LocalSnapshot %s: %w", req.Name, err)
	}
	if r.written.isBehind(s) {
		return reconcile.Result{}, nil
	}
	base := s.DeepCopy()
	if !s.DeletionTimestamp.IsZero() {
		return r.delete(ctx, s, base)
	}
	if isTaken(s) {
		return r.tellValid(ctx, s, base)
	}
	if isFinalSnapshot(s) {
		return reconcile.Result{}, nil
	}
	if !controllerutil.ContainsFinalizer(s, v1alpha1.AgentFinalizer) {
		controllerutil.AddFinalizer(s, v1alpha1.AgentFinalizer)
		return reconcile.Result{}, r.patch(ctx, s, base, false)
	}
	return r.conclude(ctx, s, base, r.take(ctx, s))
}

// snapshotter is the backend of a pool, if its volumes have snapshots.
func (r *SnapshotReconciler) snapshotter(mode volume.Mode, pool string) (volume.Snapshotter, error) {
	b, err := r.Backends.ForExisting(mode, pool)
	if err != nil {
		return nil, err
	}
	s, ok := b.(volume.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("volumes of mode %s have no snapshots: %w", mode, volume.ErrInvalid)
	}
	return s, nil
}

// snapshotterOf is the backend that a snapshot was taken by or, where none is known to have
// taken it, the one of its pool.
func (r *SnapshotReconciler) snapshotterOf(s *v1alpha1.LocalSnapshot) (volume.Snapshotter, error) {
	mode := volume.ModeLVM
	switch {
	case s.Status.Hostpath != nil:
		mode = volume.ModeHostpath
	case s.Status.LVM == nil:
		for _, p := range r.Backends.Pools() {
			if p.Name == s.Spec.Pool {
				mode = p.Mode
			}
		}
	}
	return r.snapshotter(mode, s.Spec.Pool)
}

// conclude writes the status if it changed and decides when to look again.
func (r *SnapshotReconciler) conclude(ctx context.Context, s, base *v1alpha1.LocalSnapshot, cause error) (reconcile.Result, error) {
	if errors.Is(cause, volume.ErrPoolUnavailable) && !r.Backends.Synced() {
		// The agent has just started. Not worth a write: the pools are being looked at.
		r.wait(s.Name)
		return reconcile.Result{}, nil
	}
	if ctx.Err() != nil {
		return reconcile.Result{}, ctx.Err()
	}
	if !apiequality.Semantic.DeepEqual(base.Status, s.Status) {
		err := r.patch(ctx, s, base, true)
		if apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: conflictRetry}, nil
		}
		if err != nil {
			return reconcile.Result{}, errors.Join(cause, fmt.Errorf("write the status of LocalSnapshot %s: %w", s.Name, err))
		}
		if cause != nil {
			log.FromContext(ctx).Info("Snapshot waits", "cause", cause.Error())
		}
	}
	if cause == nil {
		return reconcile.Result{}, nil
	}
	if !classify(cause).settled {
		return reconcile.Result{}, cause
	}
	if s.DeletionTimestamp.IsZero() && isFinalSnapshot(s) {
		return reconcile.Result{}, nil
	}
	r.wait(s.Name)
	return reconcile.Result{RequeueAfter: snapshotRetry}, nil
}

// snapshotRetry is how often a snapshot that waits is looked at again without an event:
// its volume may be formatted right now.
const snapshotRetry = 30 * time.Second

func (r *SnapshotReconciler) patch(ctx context.Context, s, base *v1alpha1.LocalSnapshot, status bool) error {
	before := s.ResourceVersion
	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	var err error
	if status {
		err = r.Client.Status().Patch(ctx, s, patch)
	} else {
		err = client.IgnoreNotFound(r.Client.Patch(ctx, s, patch))
	}
	if err != nil {
		return err
	}
	r.written.wrote(s, before)
	return nil
}

func (r *SnapshotReconciler) wait(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = map[string]bool{}
	}
	r.waiting[name] = true
}

func (r *SnapshotReconciler) poolsChanged() {
	r.mu.Lock()
	waiting := r.waiting
	r.waiting = nil
	r.mu.Unlock()
	for name := range waiting {
		r.queue.addAfter(name, touchDelay)
	}
}

// isTaken reports whether the status says that the snapshot stands.
func isTaken(s *v1alpha1.LocalSnapshot) bool {
	return meta.IsStatusConditionTrue(s.Status.Conditions, v1alpha1.LocalSnapshotReady)
}

// isFinalSnapshot reports whether the status holds a final answer: nothing was made, and
// nothing will be.
func isFinalSnapshot(s *v1alpha1.LocalSnapshot) bool {
	c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.LocalSnapshotReady)
	if c == nil || c.Status != metav1.ConditionFalse {
		return false
	}
	return c.Reason == v1alpha1.ReasonInvalid || c.Reason == v1alpha1.ReasonNoSpace || c.Reason == v1alpha1.ReasonPoolNotFound
}

func setSnapshotCondition(s *v1alpha1.LocalSnapshot, cause error) {
	f := classify(cause)
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
		Type: v1alpha1.LocalSnapshotReady, Status: f.status, Reason: f.reason, Message: forStatus(cause.Error()), ObservedGeneration: s.Generation,
	})
}

func recordOfSnapshot(s *v1alpha1.LocalSnapshot) volume.Record {
	r := volume.Record{Mode: volume.ModeLVM}
	if s.Status.RestoreSize != nil {
		r.SizeBytes = s.Status.RestoreSize.Value()
	}
	if c := s.Status.Encryption; c != nil {
		r.SizeBytes += encryptionFormat(c.Format).OverheadBytes()
	}
	if l := s.Status.LVM; l != nil {
		r.LVM = &volume.LVMRecord{VGName: l.VGName, VGUUID: l.VGUUID, LVName: l.LVName, LVUUID: l.LVUUID}
	}
	if h := s.Status.Hostpath; h != nil {
		r.Mode = volume.ModeHostpath
		r.Hostpath = &volume.HostpathRecord{Root: h.Root, Directory: h.Directory, RootID: h.RootID}
	}
	return r
}
