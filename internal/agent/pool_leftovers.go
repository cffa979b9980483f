// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
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

// leftOvers is what a pool has on its node and no object stands for. It is told, and not
// touched unless somebody asks to purge it.
type leftOvers struct {
	// looked is when it was looked through last, and next how long after that to do so again.
	looked time.Time
	next   time.Duration
	// since is when each was first seen to be left over.
	since map[leftOverKey]time.Time
	// asked is set by whoever knows that something is left over now.
	asked atomic.Bool
	// counts are how many of each kind are told; nil before the first look.
	counts atomic.Pointer[map[v1alpha1.LeftOverKind]int]
}

// leftOverKey tells left-overs apart, whatever else is told of them.
type leftOverKey struct {
	kind                    v1alpha1.LeftOverKind
	uid, identity, location string
}

// lookAgain has it looked through at the next occasion.
func (l *leftOvers) lookAgain() { l.looked = time.Time{} }

// reset forgets what was seen.
func (l *leftOvers) reset() {
	l.looked, l.next, l.since = time.Time{}, 0, nil
	l.counts.Store(nil)
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
	since := map[leftOverKey]time.Time{}
	view := &leftOverView{}
	counts := map[v1alpha1.LeftOverKind]int{v1alpha1.LeftOverVolume: 0, v1alpha1.LeftOverSnapshot: 0, v1alpha1.LeftOverRecord: 0, v1alpha1.LeftOverDirectory: 0}
	l.looked, l.next = now, leftOverInterval
	for _, f := range found {
		key := leftOverKey{f.Kind, string(f.UID), f.Identity, f.Location}
		first, seen := l.since[key]
		if !seen {
			first = now
		}
		since[key] = first
		if now.Sub(first) >= leftOverGrace {
			view.all = append(view.all, f)
			counts[f.Kind]++
		}
	}
	l.counts.Store(&counts)
	switch {
	case len(view.all) < len(found):
		l.next = leftOverGrace
	case len(found) > 0:
		l.next = leftOverRetry
	}
	l.since = since
	slices.SortFunc(view.all, func(a, b v1alpha1.LeftOver) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.UID, b.UID), cmp.Compare(a.Location, b.Location))
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
	if p.leftOvers.asked.Swap(false) {
		p.leftOvers.lookAgain()
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

// lookThrough has a pool looked through for what is left over, which somebody has seen to be so.
func (r *PoolReconciler) lookThrough(name string) {
	r.mu.Lock()
	p := r.pools[name]
	r.mu.Unlock()
	if p != nil { // else it is looked through when it is found
		p.leftOvers.asked.Store(true)
		r.queue.add(name)
	}
}

// strayFinder is a backend that has a place of its own in which others could put something;
// *hostpath.Backend is one.
type strayFinder interface {
	// Strays returns what is there and is no volume, by the path on the host.
	Strays(ctx context.Context) ([]string, error)
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
	var strays []string
	if s, ok := backend.(strayFinder); ok {
		if strays, err = s.Strays(ctx); err != nil {
			return nil, err
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
		if wanted.uids[types.UID(v.ID)] || e.State == ledger.Deleting {
			continue
		}
		found = append(found, r.examined(ctx, backend, leftOver(v1alpha1.LeftOverVolume, v, e.Name)))
	}
	for _, s := range snapshots {
		onDisk[s.ID] = true
		if !wanted.uids[types.UID(s.ID)] {
			found = append(found, r.examined(ctx, backend, leftOver(v1alpha1.LeftOverSnapshot, s, "")))
		}
	}
	for _, dir := range strays {
		found = append(found, v1alpha1.LeftOver{Kind: v1alpha1.LeftOverDirectory, Location: dir})
	}
	for _, lv := range wanted.ready {
		if lv.pool == rec.PoolSet && !onDisk[lv.uid] && r.Doubt != nil {
			r.Doubt(lv.name) // its condition says it when its storage is gone
		}
	}
	for _, s := range wanted.snapshots {
		if s.pool == rec.PoolSet && onDisk[s.uid] == s.missing && r.DoubtSnapshot != nil {
			r.DoubtSnapshot(s.name)
		}
	}
	for uid, e := range recorded {
		if e.Pool == rec.PoolSet && e.State != ledger.Deleting && !onDisk[uid] && !wanted.uids[types.UID(uid)] {
			l := v1alpha1.LeftOver{Kind: v1alpha1.LeftOverRecord, UID: types.UID(uid), Name: e.Name, Identity: identityOfEntry(e)}
			if e.Record != nil {
				l.SizeBytes = e.Record.SizeBytes
			}
			found = append(found, l)
		}
	}
	return found, nil
}

// wantedObjects are those of this node that stand for something on its disks.
type wantedObjects struct {
	uids map[types.UID]bool
	// ready are the LocalVolumes that say so, and snapshots the LocalSnapshots.
	ready     []readyVolume
	snapshots []readySnapshot
}

type readyVolume struct{ name, uid, pool string }

// readySnapshot is one that stands, or that is said to be missing.
type readySnapshot struct {
	readyVolume

	missing bool
}

// objectsOf returns this node's LocalVolumes and LocalSnapshots.
func (r *PoolReconciler) objectsOf(ctx context.Context) (wantedObjects, error) {
	volumes, snapshots := &v1alpha1.LocalVolumeList{}, &v1alpha1.LocalSnapshotList{}
	if err := r.Client.List(ctx, volumes); err != nil {
		return wantedObjects{}, fmt.Errorf("list LocalVolumes: %w", err)
	}
	if err := r.Client.List(ctx, snapshots); err != nil {
		return wantedObjects{}, fmt.Errorf("list LocalSnapshots: %w", err)
	}
	all := wantedObjects{uids: map[types.UID]bool{}}
	for i := range volumes.Items {
		lv := &volumes.Items[i]
		all.uids[lv.UID] = true
		if isReady(lv) && lv.DeletionTimestamp.IsZero() {
			all.ready = append(all.ready, readyVolume{lv.Name, string(lv.UID), lv.Spec.Pool})
		}
	}
	for i := range snapshots.Items {
		s := &snapshots.Items[i]
		all.uids[s.UID] = true
		if isTaken(s) && s.DeletionTimestamp.IsZero() {
			all.snapshots = append(all.snapshots, readySnapshot{readyVolume{s.Name, string(s.UID), s.Spec.Pool}, isMissing(s)})
		}
	}
	return all, nil
}

// examined adds what the pool itself knows of a volume or snapshot. What cannot be examined is told without,
// and cannot be purged.
func (r *PoolReconciler) examined(ctx context.Context, backend volume.Backend, l v1alpha1.LeftOver) v1alpha1.LeftOver {
	x, err := examinerOf(backend, l.Kind)
	if err != nil {
		return l
	}
	e, err := x.Examine(ctx, string(l.UID))
	if err != nil {
		r.Log.Debug("A left-over cannot be examined", "uid", l.UID, "error", err)
		return l
	}
	l.Identity, l.Claim, l.Name = e.Identity, e.Claim, cmp.Or(l.Name, e.Name)
	l.Of, _ = volumeOf(r.Ledger.Get, e)
	switch {
	case e.Record.Hostpath != nil:
		if errors.Is(x.ProveUnused(ctx, string(l.UID), e.Record), volume.ErrInUse) {
			l.InUse = "it is mounted, or something in it is"
		}
	case e.Device != "" && r.Mounts != nil:
		if mounts, err := r.Mounts.MountsOf(ctx, e.Device); err == nil && len(mounts) > 0 {
			l.InUse = "mounted at " + mounts[0]
		}
	}
	return l
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
