// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/quietqueue"
)

// defaultOrphanGrace is how long a volume stays in quarantine.
const defaultOrphanGrace = 10 * time.Minute

// Orphans finds LocalVolumes that nothing leads to any more: no PersistentVolume
// names them and their claim is gone or has another. The library forgets, when its process ends,
// which volumes were being made for claims that were deleted meanwhile.
//
// One that was never ready was never mounted, so no data is on it: it is deleted,
// in two phases. One that was ready may be what somebody kept by the reclaim
// policy Retain, and the objects do not tell: it is never touched, only named.
type Orphans struct {
	// Cached reads from a cache with LocalVolumes, claims and PersistentVolumes;
	// Live from the API server.
	Cached, Live client.Reader
	Writer       client.Writer
	// Driven reports whether the library is still at work for a claim.
	Driven   func(claim types.UID) bool
	Recorder events.EventRecorder
	Log      *slog.Logger
	// Grace is how long an orphan is watched before it is deleted; 0 is ten
	// minutes.
	Grace time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	mu    sync.Mutex
	since map[types.UID]time.Time
	// kept are those of which it was said that they are.
	kept map[types.UID]struct{}
}

// SetupWithManager runs the search in the manager's leader, driven by the events
// that can make an orphan.
func (o *Orphans) SetupWithManager(mgr manager.Manager) error {
	enqueue := func(name string, q queue) {
		q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}, offerDebounce)
	}
	return builder.ControllerManagedBy(mgr).
		Named("orphans").
		WithOptions(controller.Options{NewQueue: quietqueue.New}).
		Watches(&berth.LocalVolume{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(e.Object.GetName(), q) },
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, _ queue) { o.acquit(e.Object.GetUID()) },
		}).
		Watches(&corev1.PersistentVolumeClaim{}, handler.Funcs{
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) {
				enqueue(VolumeName(e.Object.GetUID()), q)
			},
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) {
				if claim, ok := e.ObjectNew.(*corev1.PersistentVolumeClaim); ok && boundElsewhere(claim) {
					enqueue(VolumeName(claim.UID), q)
				}
			},
		}).
		Watches(&corev1.PersistentVolume{}, handler.Funcs{
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(e.Object.GetName(), q) },
		}).
		Complete(o)
}

// VolumeName is the name that the library gives to the PersistentVolume of a
// claim (getProvisionedVolumeNameForClaim), and so that of the LocalVolume.
func VolumeName(claim types.UID) string { return "pvc-" + string(claim) }

// Reconcile looks at one LocalVolume.
func (o *Orphans) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	lv := &berth.LocalVolume{}
	if err := o.Cached.Get(ctx, req.NamespacedName, lv); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	orphan, err := o.isOrphan(ctx, o.Cached, lv)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !orphan {
		o.acquit(lv.UID)
		return reconcile.Result{}, nil
	}
	if !neverReady(lv) {
		// Also of one that was made in the end, after it was said that it would be deleted.
		if o.keep(lv.UID) {
			o.Recorder.Eventf(lv, nil, corev1.EventTypeNormal, "Unclaimed", "Keep",
				"no PersistentVolume names this volume and its claim %s/%s is gone or has another; its data is kept. When it is not needed any more: kubectl annotate localvolume %s berth.dev/allow-delete=true, then kubectl delete localvolume %s",
				lv.Spec.ClaimRef.Namespace, lv.Spec.ClaimRef.Name, lv.Name, lv.Name)
		}
		return reconcile.Result{}, nil
	}
	first, watched := o.suspect(lv.UID)
	if first {
		o.Recorder.Eventf(lv, nil, corev1.EventTypeWarning, "Orphaned", "Quarantine",
			"the claim %s/%s was deleted, or got another volume, before this one was made; it is deleted in %s", lv.Spec.ClaimRef.Namespace, lv.Spec.ClaimRef.Name, o.grace())
	}
	if left := o.grace() - watched; left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	return reconcile.Result{}, o.remove(ctx, lv)
}

// isOrphan reports whether nothing leads to the volume. Any error is a no.
func (o *Orphans) isOrphan(ctx context.Context, reader client.Reader, lv *berth.LocalVolume) (bool, error) {
	ref := lv.Spec.ClaimRef
	if ref == nil || lv.DeletionTimestamp != nil || lv.Name != VolumeName(ref.UID) {
		return false, nil
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := reader.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, claim)
	gone := apierrors.IsNotFound(err) || err == nil && claim.UID != ref.UID
	switch {
	case err != nil && !gone:
		return false, fmt.Errorf("read claim %s/%s: %w", ref.Namespace, ref.Name, err)
	case gone && o.Driven(ref.UID), !gone && !boundElsewhere(claim):
		return false, nil
	}
	switch err := reader.Get(ctx, types.NamespacedName{Name: lv.Name}, &corev1.PersistentVolume{}); {
	case err == nil:
		return false, nil
	case !apierrors.IsNotFound(err):
		return false, fmt.Errorf("read PersistentVolume %s: %w", lv.Name, err)
	}
	return true, nil
}

// boundElsewhere reports whether a claim has a volume other than the one that was
// made for it: somebody gave it a PersistentVolume by hand.
func boundElsewhere(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && claim.Spec.VolumeName != VolumeName(claim.UID)
}

// remove checks everything again against the API server and deletes the volume if
// it is still exactly what was checked.
func (o *Orphans) remove(ctx context.Context, seen *berth.LocalVolume) error {
	lv := &berth.LocalVolume{}
	if err := o.Live.Get(ctx, types.NamespacedName{Name: seen.Name}, lv); err != nil {
		return client.IgnoreNotFound(err)
	}
	if lv.UID != seen.UID || !neverReady(lv) {
		return nil
	}
	orphan, err := o.isOrphan(ctx, o.Live, lv)
	if err != nil || !orphan {
		return err
	}
	o.Log.Info("deleting a volume that was never ready and whose claim is gone", "localVolume", lv.Name, "node", lv.Spec.NodeName)
	// The status may be older than what is on the disk. The agent is told why the volume is
	// deleted, and has the last word.
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"resourceVersion":%q,"annotations":{%q:"true"}}}`, lv.UID, lv.ResourceVersion, berth.AnnotationNeverReady)
	marked := named(lv.Name)
	if err := o.Writer.Patch(ctx, marked, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return client.IgnoreNotFound(err)
	}
	version := marked.ResourceVersion
	err = o.Writer.Delete(ctx, named(lv.Name), client.Preconditions{UID: &lv.UID, ResourceVersion: &version})
	return client.IgnoreNotFound(err)
}

// suspect notes an orphan; first is true when it was none before. watched is how
// long it has been one.
func (o *Orphans) suspect(uid types.UID) (first bool, watched time.Duration) {
	now := time.Now()
	if o.Now != nil {
		now = o.Now()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since, known := o.since[uid]
	if !known {
		if o.since == nil {
			o.since = map[types.UID]time.Time{}
		}
		o.since[uid] = now
		return true, 0
	}
	return false, now.Sub(since)
}

// keep notes that an orphan is kept, and reports whether that is new.
func (o *Orphans) keep(uid types.UID) (first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.kept[uid]; known {
		return false
	}
	if o.kept == nil {
		o.kept = map[types.UID]struct{}{}
	}
	o.kept[uid] = struct{}{}
	return true
}

func (o *Orphans) acquit(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.since, uid)
	delete(o.kept, uid)
}

func (o *Orphans) grace() time.Duration {
	if o.Grace > 0 {
		return o.Grace
	}
	return defaultOrphanGrace
}
