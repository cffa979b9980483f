// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// errGone ends a wait for an object that was seen to be deleted.
var errGone = errors.New("deleted")

// goneMemory is how many proven deletions are remembered.
const goneMemory = 4096

// Tracker knows every LocalVolume and wakes those who wait for one. It is fed by
// the events of one informer (add it with AddEventHandler) and asks the API
// nothing, so any number of waits costs no request.
//
// The zero value is not usable; see NewTracker. All methods are safe for
// concurrent use.
type Tracker struct {
	mu      sync.Mutex
	volumes map[string]*berth.LocalVolume
	waiters map[string]map[*Subscription]struct{}

	// gone are the last names that were seen to be deleted, oldest first.
	gone      map[string]types.UID
	goneOrder []string

	// silent are the nodes that let a wait run out without a sign of life.
	silent map[string]struct{}
	// heard counts the signs of life of each node.
	heard map[string]uint64

	unattended func(name string, claim *berth.ClaimReference, gone bool)
}

var _ toolscache.ResourceEventHandler = (*Tracker)(nil)

// NewTracker returns an empty tracker.
func NewTracker() *Tracker {
	return &Tracker{
		volumes: map[string]*berth.LocalVolume{},
		waiters: map[string]map[*Subscription]struct{}{},
		gone:    map[string]types.UID{},
		silent:  map[string]struct{}{},
		heard:   map[string]uint64{},
	}
}

// OnUnattended sets what is called when a volume gets its agent's answer, or goes,
// and nobody waits for it. Set it before events arrive. The function must not
// block.
func (t *Tracker) OnUnattended(call func(name string, claim *berth.ClaimReference, gone bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unattended = call
}

// OnAdd takes in a new object.
func (t *Tracker) OnAdd(obj any, _ bool) { t.observe(obj) }

// OnUpdate takes in a changed object.
func (t *Tracker) OnUpdate(_, obj any) {
	if lv, attended := t.observe(obj); lv != nil && !attended && settled(lv) {
		t.announce(lv, false)
	}
}

// OnDelete takes in that an object is gone.
func (t *Tracker) OnDelete(obj any) {
	if unknown, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		obj = unknown.Obj
	}
	lv, ok := obj.(*berth.LocalVolume)
	if !ok {
		return
	}
	t.mu.Lock()
	if cur := t.volumes[lv.Name]; cur == nil || cur.UID == lv.UID {
		delete(t.volumes, lv.Name)
		t.rememberGone(lv.Name, lv.UID)
	}
	t.alive(lv.Spec.NodeName) // the agent has removed its finalizer
	attended := t.wake(lv.Name, lv.UID)
	t.mu.Unlock()
	if !attended {
		t.announce(lv, true)
	}
}

func (t *Tracker) announce(lv *berth.LocalVolume, gone bool) {
	t.mu.Lock()
	call := t.unattended
	t.mu.Unlock()
	if call != nil {
		call(lv.Name, lv.Spec.ClaimRef, gone)
	}
}

// observe takes in the state of an object and reports whether somebody waits for
// it.
func (t *Tracker) observe(obj any) (*berth.LocalVolume, bool) {
	lv, ok := obj.(*berth.LocalVolume)
	if !ok {
		return nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.volumes[lv.Name]
	t.volumes[lv.Name] = lv
	delete(t.gone, lv.Name)
	var goneUID types.UID
	switch {
	case old == nil:
	case old.UID != lv.UID:
		// An informer that lost its watch may see a deletion and a new object of
		// the same name as one update.
		goneUID = old.UID
	case !equality.Semantic.DeepEqual(old.Status, lv.Status):
		t.alive(lv.Spec.NodeName)
	}
	return lv, t.wake(lv.Name, goneUID)
}

// unmade sums up, by pool, the sizes of a node's volumes that were asked for and whose agent
// has not said that they stand.
func (t *Tracker) unmade(node string) map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	bytes := map[string]int64{}
	for _, lv := range t.volumes {
		if lv.Spec.NodeName == node && lv.Spec.Pool != "" && lv.DeletionTimestamp == nil && lv.Status.Capacity == nil {
			bytes[lv.Spec.Pool] += lv.Spec.SizeBytes
		}
	}
	return bytes
}

func (t *Tracker) alive(node string) {
	t.heard[node]++
	delete(t.silent, node)
}

func (t *Tracker) rememberGone(name string, uid types.UID) {
	if _, known := t.gone[name]; !known {
		t.goneOrder = append(t.goneOrder, name)
	}
	t.gone[name] = uid
	for len(t.goneOrder) > goneMemory {
		delete(t.gone, t.goneOrder[0])
		t.goneOrder = t.goneOrder[1:]
	}
}

func (t *Tracker) wake(name string, goneUID types.UID) (attended bool) {
	for s := range t.waiters[name] {
		if goneUID != "" {
			s.gone[goneUID] = struct{}{}
		}
		select {
		case s.changed <- struct{}{}:
		default: // it has not looked since the last change
		}
	}
	return len(t.waiters[name]) > 0
}

// Get returns the last seen state of a LocalVolume; nil if none was seen. The
// object is shared: do not change it.
func (t *Tracker) Get(name string) *berth.LocalVolume {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.volumes[name]
}

// List returns every LocalVolume seen, sorted by name. The objects are shared.
func (t *Tracker) List() []*berth.LocalVolume {
	t.mu.Lock()
	out := make([]*berth.LocalVolume, 0, len(t.volumes))
	for _, lv := range t.volumes {
		out = append(out, lv)
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b *berth.LocalVolume) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ProvenGone reports whether the last thing seen of that name was its deletion.
// False says nothing: it may never have been seen.
func (t *Tracker) ProvenGone(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.gone[name]
	return ok
}

// lifeSigns counts what was heard of a node's agent. A wait that ends with the
// count it began with has heard nothing.
func (t *Tracker) lifeSigns(node string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heard[node]
}

// markSilent notes that a wait for the node ran out without a sign of life.
func (t *Tracker) markSilent(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.silent[node] = struct{}{}
}

// isSilent reports whether the last wait for the node was in vain.
func (t *Tracker) isSilent(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.silent[node]
	return ok
}

// Subscription sees what happens to one name from the moment it was made. Make it
// before the request whose effect is waited for: then no event is missed. It
// serves one goroutine.
type Subscription struct {
	tracker *Tracker
	name    string
	changed chan struct{}
	gone    map[types.UID]struct{} // guarded by tracker.mu
}

// Subscribe begins to watch a name. Close the subscription when done.
func (t *Tracker) Subscribe(name string) *Subscription {
	s := &Subscription{tracker: t, name: name, changed: make(chan struct{}, 1), gone: map[types.UID]struct{}{}}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiters[name] == nil {
		t.waiters[name] = map[*Subscription]struct{}{}
	}
	t.waiters[name][s] = struct{}{}
	return s
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.tracker.mu.Lock()
	defer s.tracker.mu.Unlock()
	delete(s.tracker.waiters[s.name], s)
	if len(s.tracker.waiters[s.name]) == 0 {
		delete(s.tracker.waiters, s.name)
	}
}

// Until waits until the object with that UID is as wanted and returns it. It
// returns errGone when that object was deleted since the subscription began, and
// the context's error when that ends first, with the last state seen (nil if
// none).
func (s *Subscription) Until(ctx context.Context, uid types.UID, wanted func(*berth.LocalVolume) bool) (*berth.LocalVolume, error) {
	for {
		lv, gone := s.look(uid)
		if gone {
			return nil, errGone
		}
		if lv != nil && wanted(lv) {
			return lv, nil
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return lv, ctx.Err()
		}
	}
}

// UntilGone waits until the object with that UID was seen to be deleted: its
// agent has removed the finalizer, so nothing of it is left on the disk.
func (s *Subscription) UntilGone(ctx context.Context, uid types.UID) error {
	_, err := s.Until(ctx, uid, func(*berth.LocalVolume) bool { return false })
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// look returns the object of that UID, if it is the one now seen under the name,
// and whether it was seen to be deleted.
func (s *Subscription) look(uid types.UID) (*berth.LocalVolume, bool) {
	s.tracker.mu.Lock()
	defer s.tracker.mu.Unlock()
	if _, gone := s.gone[uid]; gone {
		return nil, true
	}
	if cur := s.tracker.volumes[s.name]; cur != nil && cur.UID == uid {
		return cur, false
	}
	return nil, false
}
