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
	"k8s.io/apimachinery/pkg/api/resource"
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
	"github.com/berth-dev/berth/pkg/mount"
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

// take makes the snapshot and writes it into s's status, not yet to the API server.
func (r *SnapshotReconciler) take(ctx context.Context, s *v1alpha1.LocalSnapshot) error {
	taken, err := r.make(ctx, s)
	if err != nil {
		setSnapshotCondition(s, err)
		return err
	}
	rec, from := taken.record, taken.source
	s.Status = v1alpha1.LocalSnapshotStatus{
		CreationTime: &taken.at,
		RestoreSize:  resource.NewQuantity(from.encryption().Usable(rec.SizeBytes), resource.BinarySI),
		VolumeMode:   v1alpha1.VolumeMode(from.Access), FSType: from.FSType, FilesystemUUID: from.FSUUID,
		Encryption: from.encryptionStatus(),
		MachineID:  r.MachineID,
		Conditions: s.Status.Conditions,
	}
	if l := rec.LVM; l != nil {
		s.Status.LVM = &v1alpha1.LVMRecord{VGName: l.VGName, VGUUID: l.VGUUID, LVName: l.LVName, LVUUID: l.LVUUID}
	}
	if h := rec.Hostpath; h != nil {
		s.Status.Hostpath = &v1alpha1.HostpathRecord{Root: h.Root, Directory: h.Directory, RootID: h.RootID}
	}
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
		Type: v1alpha1.LocalSnapshotReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonTaken,
		Message: "the snapshot stands", ObservedGeneration: s.Generation,
	})
	return nil
}

// takenSnapshot is a snapshot that stands: what was made, of what, and when.
type takenSnapshot struct {
	record volume.Record
	source copySource
	at     metav1.Time
}

func (r *SnapshotReconciler) make(ctx context.Context, s *v1alpha1.LocalSnapshot) (takenSnapshot, error) {
	if s.Spec.Group != nil {
		return r.makeOfGroup(ctx, s)
	}
	if e, err := r.Ledger.ByName(s.Spec.VolumeName); err == nil && e.Mode == volume.ModeHostpath {
		return r.makeOfDirectory(ctx, s)
	}
	// The volume must not be wiped while it is copied.
	unlock, err := r.Locks.Lock(ctx, s.Spec.VolumeName)
	if err != nil {
		return takenSnapshot{}, err
	}
	defer unlock()
	from, err := r.sourceOf(s)
	if err != nil {
		return takenSnapshot{}, err
	}
	snapshots, err := r.snapshotter(volume.ModeLVM, from.Pool)
	if err != nil {
		return takenSnapshot{}, refusedIf(err, volume.ErrInvalid)
	}
	if from.FSType == mount.Btrfs && isThick(snapshots) {
		// The kernel takes two devices with one filesystem UUID for one filesystem, and the
		// snapshot of a thick volume is a device.
		return takenSnapshot{}, fmt.Errorf("%w: a btrfs in a thick volume cannot be snapshotted: the snapshot would be a second device with its UUID: %w", errRefused, volume.ErrInvalid)
	}
	taken := takenSnapshot{source: from}
	if from.Encryption == nil || isThick(snapshots) {
		taken.record, taken.at, err = r.takeOne(ctx, s, snapshots, from)
	} else {
		taken.record, taken.at, err = r.takeAlone(ctx, s, from)
	}
	if err != nil {
		// These promise that nothing was made.
		return takenSnapshot{}, refusedIf(fmt.Errorf("take snapshot %s: %w", s.Name, err), volume.ErrInvalid, volume.ErrNoSpace)
	}
	r.Backends.Touch(from.Pool)
	return taken, nil
}

// makeOfDirectory takes the snapshot of a volume of mode hostpath, apart from this worker.
func (r *SnapshotReconciler) makeOfDirectory(ctx context.Context, s *v1alpha1.LocalSnapshot) (takenSnapshot, error) {
	s = s.DeepCopy() // it may go on when this call has ended
	name := s.Name
	e, err := r.works.do(ctx, string(s.UID), "copying", func() { r.queue.add(name) },
		func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
			return inTurn(ctx, func() (ledger.Entry, error) { return r.copyDirectory(ctx, s) })
		})
	if err != nil {
		return takenSnapshot{}, err
	}
	r.Backends.Touch(e.Pool)
	return takenSnapshot{record: *e.Record, source: copySource{Pool: e.Pool, Access: e.Access}, at: metav1.Now()}, nil
}

// copyDirectory makes the copy that is the snapshot of a directory. Until it is done no pod gets
// the volume.
func (r *SnapshotReconciler) copyDirectory(ctx context.Context, s *v1alpha1.LocalSnapshot) (ledger.Entry, error) {
	unlock, err := r.Locks.Lock(ctx, s.Spec.VolumeName)
	if err != nil {
		return ledger.Entry{}, err
	}
	defer unlock()
	from, err := r.sourceOf(s)
	if err != nil {
		return ledger.Entry{}, err
	}
	snapshots, err := r.snapshotter(volume.ModeHostpath, from.Pool)
	if err != nil {
		return ledger.Entry{}, refusedIf(err, volume.ErrInvalid)
	}
	spec := specOf(s, from)
	spec.NoWait = true
	rec, err := snapshots.Snapshot(ctx, spec)
	if err != nil {
		return ledger.Entry{}, refusedIf(fmt.Errorf("take snapshot %s: %w", s.Name, err), volume.ErrInvalid, volume.ErrNoSpace)
	}
	return ledger.Entry{Pool: from.Pool, Access: from.Access, Record: &rec}, nil
}

// takeOne takes a snapshot. What uses an encrypted volume is held up meanwhile: lvm freezes
// only a filesystem that is right on what it copies.
func (r *SnapshotReconciler) takeOne(ctx context.Context, s *v1alpha1.LocalSnapshot, snapshots volume.Snapshotter, from copySource) (rec volume.Record, at metav1.Time, err error) {
	resume := func() error { return nil }
	if from.Encryption != nil {
		b, err := r.Backends.ForExisting(volume.ModeLVM, from.Pool)
		if err != nil {
			return rec, at, err
		}
		if resume, err = quiesce(ctx, r.Encrypted, b, from); err != nil {
			return rec, at, err
		}
	}
	rec, err = snapshots.Snapshot(ctx, specOf(s, from))
	at = metav1.Now()
	return rec, at, errors.Join(err, resume())
}

// isThick reports whether the volumes of a backend have their room for themselves.
func isThick(snapshots volume.Snapshotter) bool {
	b, ok := snapshots.(interface{ Thick() bool })
	return ok && b.Thick()
}

// takeAlone takes the snapshot of an encrypted volume, as that of a group of which it is the
// only one: lvm freezes only a filesystem that is right on what it copies, and this one is on
// the open device above.
func (r *SnapshotReconciler) takeAlone(ctx context.Context, s *v1alpha1.LocalSnapshot, from copySource) (volume.Record, metav1.Time, error) {
	groups, err := r.grouper(from.Pool)
	if err != nil {
		return volume.Record{}, metav1.Time{}, err
	}
	group, err := groups.SnapshotGroup(ctx, volume.GroupSnapshotSpec{Name: s.Name, Snapshots: []volume.SnapshotSpec{specOf(s, from)}})
	if err != nil {
		return volume.Record{}, metav1.Time{}, err
	}
	return group.Records[0], metav1.NewTime(group.TakenAt), nil
}

// sourceOf finds the volume of a snapshot.
func (r *SnapshotReconciler) sourceOf(s *v1alpha1.LocalSnapshot) (copySource, error) {
	e, err := r.Ledger.ByName(s.Spec.VolumeName)
	switch {
	case errors.Is(err, ledger.ErrNotFound), err == nil && e.UID != string(s.Spec.VolumeUID):
		return copySource{}, fmt.Errorf("%w: LocalVolume %s (%s) is not on this node: %w", errRefused, s.Spec.VolumeName, s.Spec.VolumeUID, volume.ErrInvalid)
	case err != nil:
		return copySource{}, err
	case e.Mode == volume.ModeDevice, e.Mode == volume.ModeHostpath && s.Spec.Group != nil:
		return copySource{}, fmt.Errorf("%w: volumes of mode %s have no snapshots%s: %w", errRefused, e.Mode, ofGroup(s), volume.ErrInvalid)
	}
	from, err := sourceOf(e, r.MachineID)
	return from, refusedIf(err, volume.ErrInvalid)
}

// ofGroup are the words for the snapshots of a group.
func ofGroup(s *v1alpha1.LocalSnapshot) string {
	if s.Spec.Group != nil {
		return " that are taken at one instant"
	}
	return ""
}

func specOf(s *v1alpha1.LocalSnapshot, from copySource) volume.SnapshotSpec {
	wipe := from.Wipe
	if from.Encryption != nil {
		// It keeps the key slots that the volume's deletion destroys.
		wipe = volume.WipeZero
	}
	return volume.SnapshotSpec{ID: string(s.UID), Name: s.Name, VolumeID: from.ID, Volume: from.Record, Wipe: wipe}
}

// refusedIf marks an error as a final answer if it is one of those.
func refusedIf(err error, final ...error) error {
	if errors.Is(err, errRefused) {
		return err
	}
	for _, sentinel := range final {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	return err
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

// delete removes the snapshot from the disk, and then its finalizer.
func (r *SnapshotReconciler) delete(ctx context.Context, s, base *v1alpha1.LocalSnapshot) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(s, v1alpha1.AgentFinalizer) {
		return reconcile.Result{}, nil
	}
	if err := r.remove(ctx, s); err != nil {
		setSnapshotCondition(s, fmt.Errorf("the deletion waits: %w", err))
		return r.conclude(ctx, s, base, err)
	}
	controllerutil.RemoveFinalizer(s, v1alpha1.AgentFinalizer)
	err := r.patch(ctx, s, base, false)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	}
	return reconcile.Result{}, err
}

func (r *SnapshotReconciler) remove(ctx context.Context, s *v1alpha1.LocalSnapshot) error {
	if s.Status.MachineID != "" && s.Status.MachineID != r.MachineID {
		return madeElsewhere("LocalSnapshot "+s.Name, s.Status.MachineID, r.MachineID)
	}
	if err := r.works.end(ctx, string(s.UID)); err != nil {
		return err
	}
	snapshots, err := r.snapshotterOf(s)
	known := s.Status.LVM != nil || s.Status.Hostpath != nil
	if err != nil {
		if !known && (errors.Is(err, ErrPoolNotFound) || errors.Is(err, volume.ErrInvalid)) {
			return nil // there is no place where it could be
		}
		return err
	}
	var rec *volume.Record
	place := ""
	if s.Status.Hostpath != nil {
		place = placeOf(volume.ModeHostpath, s.Spec.Pool)
	}
	if known {
		made := recordOfSnapshot(s)
		rec = &made
	}
	// What a thick one has kept may be wiped for hours: apart from this worker.
	name, uid, group := s.Name, string(s.UID), s.Spec.Group
	_, err = r.works.doIn(ctx, place, uid+"/remove", "wiping", func() { r.queue.add(name) }, func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
		if group != nil {
			// Another one of the group may be taking all of them right now, and would make this
			// one after it was found not to be there.
			unlock, err := r.groups.Lock(ctx, group.Name)
			if err != nil {
				return ledger.Entry{}, err
			}
			defer unlock()
		}
		return ledger.Entry{}, snapshots.DeleteSnapshot(ctx, uid, rec)
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", name, err)
	}
	r.Backends.Touch(s.Spec.Pool)
	return nil
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
