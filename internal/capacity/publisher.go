// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package capacity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	// relist is how often the publisher compares what it believes to have written with
	// what is there, in case somebody else changed it.
	relist = 30 * time.Minute
	// unavailableRetry is how soon a class is looked at again, at first, of which the pool could
	// not be used. Nothing may tell when it can: a disk was just joining it, or an operator's lvm
	// had it.
	unavailableRetry = 5 * time.Second
)

// ErrNoPlace: volumes of the class cannot be made on this node, now or ever. It is an
// answer; any other error of Options.Room leaves open how much room there is.
var ErrNoPlace = errors.New("no place for volumes of the class")

// ErrNotYet: the agent does not know yet, and kicks when it does.
var ErrNotYet = errors.New("the room is not known yet")

// Options of a Publisher.
type Options struct {
	// Client reads StorageClasses from the informers' cache and writes.
	Client client.Client
	// Live reads from the API server itself.
	Live client.Reader
	// Namespace of the objects, and NodeName whose room they tell.
	Namespace string
	NodeName  string
	// Owner is who the objects go with: the Node.
	Owner func(ctx context.Context) (metav1.OwnerReference, error)
	// Room says what volumes with these class parameters may use here. ErrNoPlace when
	// nothing, also for parameters that are not valid.
	Room func(ctx context.Context, parameters map[string]string) (volume.Capacity, error)
	Log  *slog.Logger
}

// Publisher keeps the CSIStorageCapacity objects of one node. It writes nothing while
// nothing changes.
type Publisher struct {
	o    Options
	kick chan struct{}
	// published is what the API server holds, by object name; only Start's goroutine
	// uses it.
	published map[string]published
	// lookedAt is when it was read from there last.
	lookedAt time.Time
	// again is how soon classes are looked at again of which the pool cannot be used; zero
	// while there are none.
	again time.Duration
}

type published struct {
	class     string
	room      Room
	owner     metav1.OwnerReference
	lastWrite time.Time
	// changed is when the room was first seen to differ from it; zero while it does not.
	changed time.Time
}

// New returns a Publisher. Start runs it.
func New(o Options) *Publisher {
	return &Publisher{o: o, kick: make(chan struct{}, 1)}
}

// Kick says that the room, a class or the node may have changed. It never blocks.
func (p *Publisher) Kick() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// NeedLeaderElection says that every node's agent publishes.
func (p *Publisher) NeedLeaderElection() bool { return false }

// Start publishes until the context ends. It always returns nil: what cannot be
// written is tried again.
func (p *Publisher) Start(ctx context.Context) error {
	p.Kick()
	retry := firstRetry
	timer := time.NewTimer(relist)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.kick:
			// What follows at once is published with it.
			if !sleep(ctx, settle) {
				return nil
			}
			select {
			case <-p.kick:
			default:
			}
		case <-timer.C:
		}
		next, err := p.publish(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.o.Log.Error("Publishing the node's capacity failed; it is tried again", "error", err, "in", retry)
			timer.Reset(retry)
			retry = min(2*retry, lastRetry)
			continue
		}
		retry = firstRetry
		timer.Reset(next)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// publish compares and writes what is due, and returns when to look again.
func (p *Publisher) publish(ctx context.Context) (time.Duration, error) {
	if p.published == nil || time.Since(p.lookedAt) >= relist {
		if err := p.read(ctx); err != nil {
			return 0, err
		}
	}
	owner, err := p.o.Owner(ctx)
	if err != nil {
		return 0, fmt.Errorf("find the owner of the capacity objects: %w", err)
	}
	var classes storagev1.StorageClassList
	if err := p.o.Client.List(ctx, &classes); err != nil {
		return 0, fmt.Errorf("list StorageClasses: %w", err)
	}

	next := relist + time.Duration(rand.Int64N(int64(relist/5)))
	wanted := map[string]bool{}
	unavailable := false
	var errs, failedWrites []error
	for i := range classes.Items {
		class := &classes.Items[i]
		if class.Provisioner != v1alpha1.DriverName {
			continue
		}
		n := name(class.Name, p.o.NodeName)
		c, err := p.o.Room(ctx, class.Parameters)
		switch {
		case errors.Is(err, ErrNoPlace):
			unavailable = unavailable || errors.Is(err, volume.ErrPoolUnavailable)
			continue
		case errors.Is(err, ErrNotYet):
			wanted[n] = true
			continue
		case err != nil:
			// Not known: what was published stands until it is.
			wanted[n] = true
			errs = append(errs, fmt.Errorf("class %s: %w", class.Name, err))
			continue
		}
		room := Room{FreeBytes: c.FreeBytes, MaxVolumeBytes: c.MaxVolumeBytes}
		if room.None() {
			continue
		}
		wanted[n] = true
		wait, err := p.write(ctx, class.Name, n, owner, room)
		if err != nil {
			failedWrites = append(failedWrites, err)
		} else if wait > 0 {
			next = min(next, wait)
		}
	}
	for n := range p.published {
		if wanted[n] {
			continue
		}
		if err := p.remove(ctx, n); err != nil {
			failedWrites = append(failedWrites, err)
		}
	}
	if !unavailable {
		p.again = 0
	} else {
		p.again = min(max(2*p.again, unavailableRetry), lastRetry)
		next = min(next, p.again)
	}
	if len(failedWrites) > 0 {
		p.published = nil // whether they were written is not known: read again
	}
	return next, errors.Join(append(errs, failedWrites...)...)
}

// read learns what is published, by an earlier process too.
func (p *Publisher) read(ctx context.Context) error {
	var list storagev1.CSIStorageCapacityList
	err := p.o.Live.List(ctx, &list, client.InNamespace(p.o.Namespace), client.MatchingLabels(labels(p.o.NodeName)))
	if err != nil {
		return fmt.Errorf("list the node's CSIStorageCapacity objects: %w", err)
	}
	found := make(map[string]published, len(list.Items))
	for i := range list.Items {
		o := &list.Items[i]
		was := published{class: o.StorageClassName, room: roomOf(o)}
		if len(o.OwnerReferences) == 1 {
			was.owner = o.OwnerReferences[0]
		}
		found[o.Name] = was
	}
	p.published, p.lookedAt = found, time.Now()
	return nil
}

// write brings one object to the room, now or, if it may wait, after the time it
// returns.
func (p *Publisher) write(ctx context.Context, class, n string, owner metav1.OwnerReference, room Room) (time.Duration, error) {
	was, exists := p.published[n]
	now := time.Now()
	if exists && sameOwner(was.owner, owner) {
		switch {
		case was.room == room:
			was.changed = time.Time{}
		case was.changed.IsZero():
			was.changed = now
		}
		p.published[n] = was
		if was.room == room {
			return 0, nil
		}
		if wait := due(was.room, room, was.lastWrite, was.changed).Sub(now); wait > 0 {
			return wait, nil
		}
	}
	o := object(p.o.Namespace, class, p.o.NodeName, owner, room)
	if exists {
		base := o.DeepCopy()
		base.Capacity, base.MaximumVolumeSize, base.OwnerReferences = nil, nil, nil
		err := p.o.Client.Patch(ctx, o, client.MergeFrom(base))
		switch {
		case apierrors.IsNotFound(err):
			exists = false // somebody removed it
			o = object(p.o.Namespace, class, p.o.NodeName, owner, room)
		case err != nil:
			return 0, fmt.Errorf("write CSIStorageCapacity %s of class %s: %w", n, class, err)
		}
	}
	if !exists {
		if err := p.o.Client.Create(ctx, o); err != nil {
			return 0, fmt.Errorf("create CSIStorageCapacity %s of class %s: %w", n, class, err)
		}
	}
	p.published[n] = published{class: class, room: room, owner: owner, lastWrite: now}
	return 0, nil
}

func (p *Publisher) remove(ctx context.Context, n string) error {
	o := &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Name: n, Namespace: p.o.Namespace}}
	if err := client.IgnoreNotFound(p.o.Client.Delete(ctx, o)); err != nil {
		return fmt.Errorf("delete CSIStorageCapacity %s of class %s: %w", n, p.published[n].class, err)
	}
	delete(p.published, n)
	return nil
}

func sameOwner(a, b metav1.OwnerReference) bool {
	return a.APIVersion == b.APIVersion && a.Kind == b.Kind && a.Name == b.Name && a.UID == b.UID
}
