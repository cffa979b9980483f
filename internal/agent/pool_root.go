// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Roots makes the roots of hostpath pools; HostRoots is the real one.
type Roots interface {
	// Init makes a root, once, and returns the identity in its marker.
	Init(ctx context.Context, where hostpath.Where, poolUID string) (rootID string, err error)
	// Backend returns the backend over a root that stands.
	Backend(o hostpath.Options) (RootBackend, error)
}

// RootBackend is the backend of one root; *hostpath.Backend is one.
type RootBackend interface {
	volume.Backend
	LimitingBackend
	RetainingBackend
	// Run removes deleted volumes in the background until the context ends.
	Run(ctx context.Context) error
}

// CopyingBackend is a backend that may be able to copy its volumes; *hostpath.Backend is one.
type CopyingBackend interface {
	// Copies returns nil when it is, and an error that wraps hostpath.ErrNoCopies when not;
	// instant is true when somebody may write to new volumes meanwhile.
	Copies(ctx context.Context) (instant bool, err error)
}

// HostRoots are directories of the host.
type HostRoots struct{}

// Init implements Roots.
func (HostRoots) Init(ctx context.Context, where hostpath.Where, poolUID string) (string, error) {
	return hostpath.Init(ctx, where, poolUID)
}

// Backend implements Roots.
func (HostRoots) Backend(o hostpath.Options) (RootBackend, error) { return hostpath.New(o) }

func (r *PoolReconciler) where(rec *poolRecord) hostpath.Where {
	return hostpath.Where{Root: rec.Path, HostRoot: r.HostRoot}
}

// bringUpRoot makes the root of a pool or finds it. Init is called until its answer
// is recorded and never again: a root whose marker is gone is not mounted.
func (r *PoolReconciler) bringUpRoot(ctx context.Context, pool *v1alpha1.Pool, rec *poolRecord, p *livePool) (poolView, error) {
	if rec.RootID == "" {
		id, err := r.Roots.Init(ctx, r.where(rec), rec.PoolUID)
		switch {
		case errors.Is(err, volume.ErrInvalid), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrNotBlank), errors.Is(err, volume.ErrIdentity):
			return failed(v1alpha1.ReasonRootUnavailable, err.Error()), nil
		case err != nil:
			return poolView{ready: metav1.ConditionUnknown, reason: v1alpha1.ReasonPoolError, message: err.Error()}, err
		}
		rec.RootID = id
		if err := r.records.save(rec); err != nil {
			rec.RootID = ""
			return failed(v1alpha1.ReasonPoolError, err.Error()), err
		}
		r.Log.Info("Made the root of a pool", "pool", rec.PoolSet, "path", rec.Path, "rootID", id)
	}
	if p.backend == nil {
		b, err := r.rootBackend(rec, p) //nolint:contextcheck // its background work outlives this look
		if err != nil {
			return failed(v1alpha1.ReasonPoolError, err.Error()), err
		}
		p.backend = b
	}
	// Before it is measured: what it says of itself is one look.
	kept, keptErr := r.retained(ctx, pool, p.backend)
	view, err := measure(ctx, p.backend, healthy(), v1alpha1.ReasonRootUnavailable)
	if err != nil || view.ready != metav1.ConditionTrue {
		return view, err
	}
	if keptErr != nil {
		return unknown(keptErr), keptErr
	}
	if view.retained = kept; kept != nil && kept.again {
		view.again = poolRetry
	}
	limits, ok := p.backend.(LimitingBackend)
	if !ok {
		return view, nil
	}
	switch err := limits.Limits(ctx); {
	case err == nil:
		view.quota = v1alpha1.QuotaEnforced
	case errors.Is(err, quota.ErrUnsupported):
		view.quota = v1alpha1.QuotaNone
		view.message += "; their sizes are promised and not enforced: " + err.Error()
		if errors.Is(err, quota.ErrOff) || errors.Is(err, quota.ErrUncounted) {
			view.again = poolRetry // nobody tells when that changes
		}
	default:
		return unknown(err), err
	}
	tellCopies(ctx, p.backend, &view)
	return view, nil
}

// tellCopies says whether the volumes of a root can be copied. That it is not known keeps
// nobody from making volumes.
func tellCopies(ctx context.Context, b volume.Backend, view *poolView) {
	c, ok := b.(CopyingBackend)
	if !ok {
		return
	}
	switch instant, err := c.Copies(ctx); {
	case err == nil && instant:
		view.copies = v1alpha1.CopiesSubvolume
	case err == nil:
		view.copies = v1alpha1.CopiesReflink
	case errors.Is(err, hostpath.ErrNoCopies):
		view.copies = v1alpha1.CopiesNone
		view.message += "; " + err.Error()
	default:
		view.message += "; whether they can be snapshotted is not known: " + err.Error()
	}
}

// rootBackend makes the backend and starts its background work.
func (r *PoolReconciler) rootBackend(rec *poolRecord, p *livePool) (volume.Backend, error) {
	b, err := r.Roots.Backend(hostpath.Options{
		Where: r.where(rec), RootID: rec.RootID, PoolUID: rec.PoolUID, Reserve: p.reserve.bytes, Log: r.Log,
		OtherRoots: r.records.roots,
		Trash: hostpath.TrashOptions{
			EntriesPerSecond: r.TrashEntriesPerSecond,
			Observer:         rootObserver{trash: &p.trash, changed: func() { r.Backends.Touch(rec.PoolSet) }},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open the root %s: %w", rec.Path, err)
	}
	ctx, stop := context.WithCancel(r.lifetime)
	p.stop = stop
	go func() {
		if err := b.Run(ctx); err != nil && ctx.Err() == nil {
			r.Log.Error("The removal of deleted volumes has ended", "pool", rec.PoolSet, "error", err)
		}
	}()
	return b, nil
}
