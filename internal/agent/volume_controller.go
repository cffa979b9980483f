// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// settledRetry is how often a failure is looked at again that only something
// outside can mend, and of which no event may come (a disk put back, a ledger file
// repaired).
const settledRetry = 5 * time.Minute

// heldRetry is how often a directory is looked at again that is to be adopted and that pods
// still have: no event says that they have let it go.
const heldRetry = 10 * time.Second

// conflictRetry is how long the cache gets to catch up with the API server.
const conflictRetry = 100 * time.Millisecond

// VolumeReconciler keeps the LocalVolumes of this node. It reads from the
// informers' cache only, and writes one status per creation and one finalizer per
// deletion, nothing when nothing changed.
type VolumeReconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
	Carver *Carver
	Ledger *ledger.Ledger
	// SelectDisk turns a volume's selector into a function; nil selectors are not
	// given to it. An error means that the selector itself is wrong.
	SelectDisk func(*v1alpha1.DeviceSelector) (func(volume.Disk) bool, error)
	// Limiter holds pods to the limits of their volumes.
	Limiter *Limiter
	// Recorder makes Events of claims and volumes.
	Recorder Announcer

	written expectations
	live    queueHandle
	deleted queueHandle

	mu sync.Mutex
	// waiting are the volumes to look at again when a pool changes.
	waiting map[types.NamespacedName]bool
	// adopting are the volumes to look at again when a disk changes, by the disk.
	adopting map[string]string
	// doubted are the volumes whose storage is to be looked at though status and ledger
	// agree.
	doubted map[string]bool
	// suspected are the volumes whose health is to be looked at.
	suspected map[string]bool
	// works are copies and wipes.
	works works
}

// ReconcileLive handles a LocalVolume that is wanted, and one that is gone.
func (r *VolumeReconciler) ReconcileLive(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	lv := &v1alpha1.LocalVolume{}
	if err := r.Client.Get(ctx, req.NamespacedName, lv); err != nil {
		if apierrors.IsNotFound(err) {
			r.takeDoubt(req.Name)
			r.takeSuspicion(req.Name)
			return reconcile.Result{}, r.finishGone(ctx, req.Name)
		}
		return reconcile.Result{}, fmt.Errorf("read LocalVolume %s: %w", req.Name, err)
	}
	if !lv.DeletionTimestamp.IsZero() || r.written.isBehind(lv) || isFinal(lv) {
		return reconcile.Result{}, nil
	}
	if !r.takeDoubt(req.Name) && r.isSettled(lv) {
		if r.takeSuspicion(req.Name) {
			return r.tellHealth(ctx, lv)
		}
		return reconcile.Result{}, nil
	}
	if !controllerutil.ContainsFinalizer(lv, v1alpha1.AgentFinalizer) {
		// The provisioner sets it at creation. Without it a deletion would leave the
		// storage behind, so nothing is made before it stands.
		base := lv.DeepCopy()
		controllerutil.AddFinalizer(lv, v1alpha1.AgentFinalizer)
		return reconcile.Result{}, r.patch(ctx, lv, base, false)
	}

	base := lv.DeepCopy()
	err := r.bringUp(ctx, lv)
	if errors.Is(err, errUnwanted) {
		return reconcile.Result{}, nil // what became of the object is an event of its own
	}
	if errors.Is(err, volume.ErrPoolUnavailable) && !r.Carver.Backends.Synced() {
		// The agent has just started. Not worth a write: the pools are being looked at.
		r.wait(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if ctx.Err() != nil {
		return reconcile.Result{}, ctx.Err()
	}
	return r.conclude(ctx, lv, base, err)
}

// bringUp makes or grows the volume and writes the result into lv's status, not yet
// to the API server.
func (r *VolumeReconciler) bringUp(ctx context.Context, lv *v1alpha1.LocalVolume) error {
	if disk := adoptedDisk(lv); disk != "" {
		// Before the disk is looked at, so that a change after the look is not missed.
		r.waitForDisk(disk, lv.Name)
	}
	w, err := r.wish(lv)
	var e ledger.Entry
	if err == nil {
		e, err = r.make(ctx, w)
	}
	if err != nil {
		r.recallStatus(lv)
		f := classify(err)
		setCondition(lv, v1alpha1.LocalVolumeReady, f.status, f.reason, err.Error())
		return err
	}
	if disk := adoptedDisk(lv); disk != "" {
		r.stopWaiting(disk)
	}
	setMade(lv, e)
	return errors.Join(r.grow(ctx, lv, w, e), r.limit(ctx, lv, e))
}

// recallStatus writes what the ledger has of a volume that was handed out into a status that is
// older, also where its storage cannot be looked at: who reads that it never stood may take it
// for one without data.
func (r *VolumeReconciler) recallStatus(lv *v1alpha1.LocalVolume) {
	e, err := r.Ledger.Get(string(lv.UID))
	if err == nil && e.State == ledger.Ready && e.MachineID == r.Carver.MachineID && recordOf(lv) == nil {
		setMade(lv, e)
	}
}

// conclude writes the status if it changed and decides when to look again.
func (r *VolumeReconciler) conclude(ctx context.Context, lv, base *v1alpha1.LocalVolume, cause error) (reconcile.Result, error) {
	changed := !apiequality.Semantic.DeepEqual(base.Status, lv.Status)
	if changed {
		err := r.patch(ctx, lv, base, true)
		if apierrors.IsConflict(err) {
			// The cache was a moment behind. What was made is in the ledger.
			return reconcile.Result{RequeueAfter: conflictRetry}, nil
		}
		if err != nil {
			return reconcile.Result{}, errors.Join(cause, fmt.Errorf("write the status of LocalVolume %s: %w", lv.Name, err))
		}
		r.announceVolume(base, lv)
	}
	if cause == nil {
		return reconcile.Result{}, nil
	}
	f := classify(cause)
	if !f.settled {
		return reconcile.Result{}, cause
	}
	if isWorking(cause) {
		return reconcile.Result{RequeueAfter: workInterval}, nil
	}
	if changed {
		log.FromContext(ctx).Info("Volume waits", "reason", f.reason, "cause", cause.Error())
	}
	if isFinal(lv) {
		return reconcile.Result{}, nil
	}
	adopts := lv.Spec.Adopt != nil && lv.Spec.Adopt.LeftOver != nil
	if adopts && (errors.Is(cause, volume.ErrNotAdoptable) || errors.Is(cause, volume.ErrBusy) && recordOf(lv) == nil) {
		// Not when something happens in a pool: each look reads all PersistentVolumes. That udev looks at
		// a disk is over by then.
		return reconcile.Result{RequeueAfter: purgeInterval}, nil
	}
	r.wait(client.ObjectKeyFromObject(lv))
	if errors.Is(cause, volume.ErrNotAdoptable) && errors.Is(cause, volume.ErrInUse) && adoptedDisk(lv) == "" {
		return reconcile.Result{RequeueAfter: heldRetry}, nil
	}
	return reconcile.Result{RequeueAfter: settledRetry}, nil
}

// isSettled reports whether status, ledger and spec agree, so that neither the disks
// nor the API server need be asked.
func (r *VolumeReconciler) isSettled(lv *v1alpha1.LocalVolume) bool {
	if !isReady(lv) || lv.Status.MachineID != r.Carver.MachineID ||
		lv.Status.Capacity == nil || lv.Status.Capacity.Value() < lv.Spec.SizeBytes ||
		meta.FindStatusCondition(lv.Status.Conditions, v1alpha1.LocalVolumeResized) != nil {
		return false
	}
	e, err := r.Ledger.Get(string(lv.UID))
	rec := recordOf(lv)
	return err == nil && e.State == ledger.Ready && e.MachineID == r.Carver.MachineID &&
		rec != nil && e.Record.SameStorage(*rec) && e.Record.SizeBytes == rec.SizeBytes && r.isLimited(lv, e) && isSealTold(lv, e)
}

// finishGone ends what is left of a volume whose object is gone: nothing, unless the
// finalizer was taken away by force.
func (r *VolumeReconciler) finishGone(ctx context.Context, name string) error {
	r.written.forget(name)
	r.Limiter.Forget(name)
	e, err := r.Ledger.ByName(name)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return err
	case e.State != ledger.Deleting && e.Mode == volume.ModeDevice && e.LeftOver != nil:
		log.FromContext(ctx).Info("A volume that was to adopt a disk has no LocalVolume any more; the disk is kept as it is", "uid", e.UID)
		return r.Carver.EndAdoption(ctx, e.UID)
	case e.State != ledger.Deleting:
		log.FromContext(ctx).Info("A volume has no LocalVolume; it is kept as it is", "uid", e.UID, "state", e.State)
		r.Carver.Backends.Orphaned(e.Pool)
		return nil
	}
	err = r.end(ctx, placeOf(e.Mode, e.Pool), e.UID, name, func(ctx context.Context) error { return r.Carver.FinishRemoval(ctx, e.UID) })
	if isWorking(err) {
		return nil // it looks again when it is done
	}
	return err
}

// make is Carver.Make; a copy, which may take hours, is made apart from this worker.
func (r *VolumeReconciler) make(ctx context.Context, w Wish) (ledger.Entry, error) {
	if w.CopyOf == nil || w.Recorded != nil {
		return r.Carver.Make(ctx, w)
	}
	return r.works.do(ctx, makeKey(w.UID), "copying", func() { r.Enqueue(w.Name) },
		func(ctx context.Context, progress func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
			w.Progress = progress
			return r.Carver.Make(ctx, w)
		})
}

// placeOf is where no more than some deletions go on at once: in a pool of directories, where each
// takes a moment unless its filesystem hangs.
func placeOf(mode volume.Mode, pool string) string {
	if mode != volume.ModeHostpath {
		return ""
	}
	return pool
}

// end removes a volume, whose wiping may take hours, apart from this worker. A copy to it is
// given up.
func (r *VolumeReconciler) end(ctx context.Context, place, uid, name string, remove func(ctx context.Context) error) error {
	if err := r.works.end(ctx, makeKey(uid)); err != nil {
		return err
	}
	_, err := r.works.doIn(ctx, place, uid+"/remove", "wiping", func() { r.Enqueue(name) },
		func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
			return ledger.Entry{}, remove(ctx)
		})
	return err
}

func makeKey(uid string) string { return uid + "/make" }

// ReconcileDeleted handles a LocalVolume whose deletion was asked for. The object
// goes last.
func (r *VolumeReconciler) ReconcileDeleted(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	lv := &v1alpha1.LocalVolume{}
	if err := r.Client.Get(ctx, req.NamespacedName, lv); err != nil {
		if apierrors.IsNotFound(err) {
			return reconcile.Result{}, r.finishGone(ctx, req.Name)
		}
		return reconcile.Result{}, fmt.Errorf("read LocalVolume %s: %w", req.Name, err)
	}
	if lv.DeletionTimestamp.IsZero() || r.written.isBehind(lv) || !controllerutil.ContainsFinalizer(lv, v1alpha1.AgentFinalizer) {
		return reconcile.Result{}, nil
	}
	base := lv.DeepCopy()
	w := wishOf(lv)
	if r.stoodAfterAll(lv) {
		log.FromContext(ctx).Info("A volume was deleted as one that was never made, and it was; it is kept as it is", "uid", w.UID)
		r.announce(lv, corev1.EventTypeWarning, "Kept",
			"it was deleted because its status never said that it stands, and this node has made it and handed it out, as before a restore of etcd: what it holds is kept as a left-over (kubectl berth orphans list)")
		controllerutil.RemoveFinalizer(lv, v1alpha1.AgentFinalizer)
		err := r.patch(ctx, lv, base, false)
		if apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: conflictRetry}, nil
		}
		return reconcile.Result{}, err
	}
	if err := r.end(ctx, placeOf(w.Mode, w.Pool), w.UID, w.Name, func(ctx context.Context) error { return r.Carver.Remove(ctx, w) }); err != nil {
		if errors.Is(err, volume.ErrPoolUnavailable) && !r.Carver.Backends.Synced() {
			r.wait(req.NamespacedName)
			return reconcile.Result{}, nil
		}
		if ctx.Err() != nil {
			return reconcile.Result{}, ctx.Err()
		}
		f := classify(err)
		setCondition(lv, v1alpha1.LocalVolumeReady, f.status, f.reason, "the deletion waits: "+err.Error())
		return r.conclude(ctx, lv, base, err)
	}
	controllerutil.RemoveFinalizer(lv, v1alpha1.AgentFinalizer)
	err := r.patch(ctx, lv, base, false)
	if apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	}
	return reconcile.Result{}, err
}

// stoodAfterAll reports whether a volume that is deleted because no agent has ever said that it stands
// does stand, as far as the ledger knows. A person may have said that it is to go all the same.
func (r *VolumeReconciler) stoodAfterAll(lv *v1alpha1.LocalVolume) bool {
	if lv.Annotations[v1alpha1.AnnotationNeverReady] != "true" || lv.Annotations[v1alpha1.AnnotationAllowDelete] == "true" || recordOf(lv) != nil {
		return false
	}
	e, err := r.Ledger.Get(string(lv.UID))
	return err == nil && e.State == ledger.Ready
}

// patch writes what changed, if the object is still the one that was read.
func (r *VolumeReconciler) patch(ctx context.Context, lv, base *v1alpha1.LocalVolume, status bool) error {
	before := lv.ResourceVersion
	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	var err error
	if status {
		err = r.Client.Status().Patch(ctx, lv, patch)
	} else {
		err = r.Client.Patch(ctx, lv, patch)
	}
	if err != nil {
		if !status {
			err = client.IgnoreNotFound(err)
		}
		return err
	}
	r.written.wrote(lv, before)
	return nil
}

// wish translates a LocalVolume.
func (r *VolumeReconciler) wish(lv *v1alpha1.LocalVolume) (Wish, error) {
	w := wishOf(lv)
	name, uid := lv.Name, lv.UID // a copy is made apart from who goes on with lv
	w.Wanted = func(ctx context.Context) error { return r.stillWanted(ctx, name, uid) }
	if err := r.requireLimits(lv); err != nil {
		return w, err
	}
	if lv.Spec.DeviceSelector == nil || w.Mode != volume.ModeDevice {
		return w, nil
	}
	selects, err := r.SelectDisk(lv.Spec.DeviceSelector)
	if err != nil {
		err = fmt.Errorf("spec.deviceSelector: %w: %w", err, volume.ErrInvalid)
		if r.isUnknown(lv) {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return w, err
	}
	w.SelectDisk = selects
	return w, nil
}

// stillWanted returns errUnwanted when a LocalVolume is gone by now, or being deleted: deletions have
// workers of their own, and what is made after one of them was through nobody would delete.
func (r *VolumeReconciler) stillWanted(ctx context.Context, name string, uid types.UID) error {
	lv := &v1alpha1.LocalVolume{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: name}, lv)
	switch {
	case apierrors.IsNotFound(err), err == nil && (lv.UID != uid || !lv.DeletionTimestamp.IsZero()):
		return errUnwanted
	case err != nil:
		return fmt.Errorf("read LocalVolume %s: %w", name, err)
	}
	return nil
}

func wishOf(lv *v1alpha1.LocalVolume) Wish {
	w := Wish{
		UID: string(lv.UID), Name: lv.Name,
		Mode: volume.Mode(lv.Spec.Mode), Pool: lv.Spec.Pool, Access: volume.Access(lv.Spec.VolumeMode), FSType: lv.Spec.FSType,
		MkfsOptions: lv.Spec.MkfsOptions,
		Wipe:        volume.WipePolicy(lv.Spec.Wipe),
		SizeBytes:   lv.Spec.SizeBytes + encryptionFormat(lv.Spec.Encryption).OverheadBytes(),
		Encryption:  encryptionFormat(lv.Spec.Encryption), Sealed: encryptionOf(lv.Status.Encryption),
		RequireQuota: lv.Spec.RequireQuota, Directory: lv.Spec.Directory,
		Recorded: recordOf(lv), Formatted: lv.Status.Formatted, FSUUID: lv.Status.FilesystemUUID, MachineID: lv.Status.MachineID,
	}
	if w.Wipe == "" {
		w.Wipe = volume.WipeZero
	}
	if d := lv.Spec.RetainFor; d != nil {
		w.RetainFor = d.Duration
	}
	if c := lv.Spec.ClaimRef; c != nil {
		w.Claim = c.Namespace + "/" + c.Name
	}
	if s := lv.Spec.Source; s != nil {
		w.CopyOf = &CopyOf{Snapshot: s.Kind == v1alpha1.SourceSnapshot, Name: s.Name, UID: string(s.UID)}
	}
	if a := lv.Spec.Adopt; a != nil {
		w.Adopt = &volume.Adoption{Directory: a.Directory, Disk: a.Device, FSType: lv.Spec.FSType, FSUUID: a.FilesystemUUID}
		if l := a.LeftOver; l != nil {
			w.Adopt.LeftOver = &volume.LeftOver{ID: l.UID, Identity: l.Identity}
		}
	}
	return w
}

// wait remembers to look at a volume when a pool changes.
func (r *VolumeReconciler) wait(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = map[types.NamespacedName]bool{}
	}
	r.waiting[key] = true
}

// PoolsChanged looks again at the volumes that wait for a pool.
func (r *VolumeReconciler) PoolsChanged() {
	for _, name := range r.takeWaiting() {
		r.Enqueue(name)
	}
}

// roomChanged looks again at the volumes that wait for room, a little later: while
// volumes come and go there is a change every moment.
func (r *VolumeReconciler) roomChanged(string) {
	for _, name := range r.takeWaiting() {
		r.live.addAfter(name, touchDelay)
		r.deleted.addAfter(name, touchDelay)
	}
}

func (r *VolumeReconciler) takeWaiting() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.waiting))
	for key := range r.waiting {
		names = append(names, key.Name)
	}
	r.waiting = nil
	return names
}

func (r *VolumeReconciler) waitForDisk(disk, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.adopting == nil {
		r.adopting = map[string]string{}
	}
	r.adopting[disk] = name
}

// stopWaiting returns the volume that has waited for a disk, "" for none.
func (r *VolumeReconciler) stopWaiting(disk string) (name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name = r.adopting[disk]
	delete(r.adopting, disk)
	return name
}

// DiskChanged looks again at the volume that waits to adopt a disk.
func (r *VolumeReconciler) DiskChanged(disk string) {
	if name := r.stopWaiting(disk); name != "" {
		r.Enqueue(name)
	}
}

// Doubt has the storage of a volume looked at soon though nothing was asked of the
// volume: the disk it is on has come or gone.
func (r *VolumeReconciler) Doubt(name string) {
	r.mu.Lock()
	if r.doubted == nil {
		r.doubted = map[string]bool{}
	}
	r.doubted[name] = true
	r.mu.Unlock()
	r.Enqueue(name)
}

func (r *VolumeReconciler) takeDoubt(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	doubted := r.doubted[name]
	delete(r.doubted, name)
	return doubted
}

// Enqueue looks at a volume soon: it was unstaged, or grown by somebody else.
func (r *VolumeReconciler) Enqueue(name string) {
	r.live.add(name)
	r.deleted.add(name)
}
