// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// leftOverGrace is how long something must have been without an object before it is told:
	// what is seen of the objects may be old.
	leftOverGrace = 2 * time.Minute
	// leftOverInterval is how often a pool is looked through, and leftOverRetry how often as
	// long as something is left over there.
	leftOverInterval = time.Hour
	leftOverRetry    = 10 * time.Minute
	// mostLeftOvers are told one by one.
	mostLeftOvers = 32
)

// leftOvers is what a pool has on its node and no object stands for. It is told, and never
// touched.
type leftOvers struct {
	// looked is when it was looked through last, and next how long after that to do so again.
	looked time.Time
	next   time.Duration
	// since is when each was first seen to be left over.
	since map[v1alpha1.LeftOver]time.Time
}

// leftOverView is what is told of it.
type leftOverView struct {
	all   []v1alpha1.LeftOver
	count int32
}

// wait is how long it may be left until the next look.
func (l *leftOvers) wait(now time.Time) time.Duration {
	if l.looked.IsZero() {
		return 0
	}
	return max(0, l.looked.Add(l.next).Sub(now))
}

// judge takes what a look has found and returns what is to be told.
func (l *leftOvers) judge(now time.Time, found []v1alpha1.LeftOver) *leftOverView {
	since := map[v1alpha1.LeftOver]time.Time{}
	view := &leftOverView{}
	l.looked, l.next = now, leftOverInterval
	for _, f := range found {
		first, seen := l.since[f]
		if !seen {
			first = now
		}
		since[f] = first
		if now.Sub(first) >= leftOverGrace {
			view.all = append(view.all, f)
		}
	}
	switch {
	case len(view.all) < len(found):
		l.next = leftOverGrace
	case len(found) > 0:
		l.next = leftOverRetry
	}
	l.since = since
	slices.SortFunc(view.all, func(a, b v1alpha1.LeftOver) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.UID, b.UID))
	})
	view.count = int32(min(len(view.all), 1<<31-1))
	view.all = view.all[:min(len(view.all), mostLeftOvers)]
	return view
}

// lookForLeftOvers looks the pool through when it is time, and returns when to do so again; 0
// for not before something happens.
func (r *PoolReconciler) lookForLeftOvers(ctx context.Context, name string, view *poolView) time.Duration {
	p := r.live(name)
	if p.backend == nil || view.record == nil {
		return 0
	}
	now := time.Now()
	if wait := p.leftOvers.wait(now); wait > 0 {
		return wait
	}
	found, err := r.findLeftOvers(ctx, view.record, p.backend)
	if err != nil {
		// A pool that cannot be looked through says so in its conditions.
		r.Log.Debug("A pool was not looked through for left-overs", "pool", name, "error", err)
		p.leftOvers.looked, p.leftOvers.next = now, leftOverGrace
		return leftOverGrace
	}
	view.leftOvers = p.leftOvers.judge(now, found)
	return p.leftOvers.next
}

// findLeftOvers returns what is in the pool, or recorded on the node as being there, without a
// LocalVolume or LocalSnapshot. The storage is read before the objects: an object is there
// before anything is made for it.
func (r *PoolReconciler) findLeftOvers(ctx context.Context, rec *poolRecord, backend volume.Backend) ([]v1alpha1.LeftOver, error) {
	volumes, err := backend.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the volumes of pool %s: %w", rec.PoolSet, err)
	}
	var snapshots []volume.Found
	if s, ok := backend.(volume.Snapshotter); ok {
		if snapshots, err = s.ListSnapshots(ctx); err != nil {
			return nil, fmt.Errorf("list the snapshots of pool %s: %w", rec.PoolSet, err)
		}
	}
	recorded := map[string]ledger.Entry{}
	for _, e := range r.Ledger.All() {
		recorded[e.UID] = e
	}
	wanted, err := r.objectsOf(ctx)
	if err != nil {
		return nil, err
	}
	var found []v1alpha1.LeftOver
	onDisk := map[string]bool{}
	for _, v := range volumes {
		onDisk[v.ID] = true
		e := recorded[v.ID]
		if wanted[types.UID(v.ID)] || e.State == ledger.Deleting {
			continue
		}
		found = append(found, leftOver(v1alpha1.LeftOverVolume, v, e.Name))
	}
	for _, s := range snapshots {
		if !wanted[types.UID(s.ID)] {
			found = append(found, leftOver(v1alpha1.LeftOverSnapshot, s, ""))
		}
	}
	for uid, e := range recorded {
		if e.Pool == rec.PoolSet && e.State != ledger.Deleting && !onDisk[uid] && !wanted[types.UID(uid)] {
			l := v1alpha1.LeftOver{Kind: v1alpha1.LeftOverRecord, UID: types.UID(uid), Name: e.Name}
			if e.Record != nil {
				l.SizeBytes = e.Record.SizeBytes
			}
			found = append(found, l)
		}
	}
	return found, nil
}

// objectsOf returns the UIDs of this node's LocalVolumes and LocalSnapshots.
func (r *PoolReconciler) objectsOf(ctx context.Context) (map[types.UID]bool, error) {
	volumes, snapshots := &v1alpha1.LocalVolumeList{}, &v1alpha1.LocalSnapshotList{}
	if err := r.Client.List(ctx, volumes); err != nil {
		return nil, fmt.Errorf("list LocalVolumes: %w", err)
	}
	if err := r.Client.List(ctx, snapshots); err != nil {
		return nil, fmt.Errorf("list LocalSnapshots: %w", err)
	}
	all := map[types.UID]bool{}
	for i := range volumes.Items {
		all[volumes.Items[i].UID] = true
	}
	for i := range snapshots.Items {
		all[snapshots.Items[i].UID] = true
	}
	return all, nil
}

func leftOver(kind v1alpha1.LeftOverKind, f volume.Found, name string) v1alpha1.LeftOver {
	l := v1alpha1.LeftOver{Kind: kind, UID: types.UID(f.ID), Name: name, SizeBytes: f.Record.SizeBytes}
	switch {
	case f.Record.LVM != nil:
		l.Location = f.Record.LVM.VGName + "/" + f.Record.LVM.LVName
	case f.Record.Hostpath != nil:
		l.Location = f.Record.Hostpath.Root + "/" + f.Record.Hostpath.Directory
	}
	return l
}
