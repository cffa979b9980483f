// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/berth-dev/berth/pkg/volume"
)

// ErrPoolNotFound: no PoolSet of that name gives this node a pool, and there is
// none left over from one. Nothing of a volume can be there.
var ErrPoolNotFound = errors.New("no such pool on this node")

// PoolBackend is one pool of the node as its volumes see it.
type PoolBackend struct {
	// Name of the PoolSet.
	Name string
	Mode volume.Mode
	// Backend carves its volumes; nil while the pool cannot be used.
	Backend volume.Backend
	// Reason says why Backend is nil, or why the pool takes no new volumes.
	Reason string
	// Closed pools serve the volumes they have and take no new ones: the PoolSet is
	// gone, or does not want this node any more.
	Closed bool
}

// Backends finds the backend of a volume. It is filled by the pool reconciler and
// safe for concurrent use.
type Backends struct {
	mu     sync.RWMutex
	synced bool
	device volume.Backend
	pools  map[string]PoolBackend

	onChange []func()
	onTouch  []func(pool string)
	onJudge  []func(pool string)
	onOrphan []func(pool string)
}

// NewBackends returns a registry that knows no pool yet. device serves the volumes
// that are whole disks; nil means that the node has none.
func NewBackends(device volume.Backend) *Backends {
	return &Backends{device: device, pools: map[string]PoolBackend{}}
}

// OnChange registers a function that is called after every change of the set, and when the disks of a
// pool in it have gone or come. It must return at once. Call it before anything runs.
func (b *Backends) OnChange(f func()) { b.onChange = append(b.onChange, f) }

// OnTouch registers a function that is called when volumes have taken or given back
// room; the name is empty in mode device. It must return at once. Call it before
// anything runs.
func (b *Backends) OnTouch(f func(pool string)) { b.onTouch = append(b.onTouch, f) }

// OnJudge registers a function that is called when the volumes of a pool may be better or
// worse than they were. It must return at once. Call it before anything runs.
func (b *Backends) OnJudge(f func(pool string)) { b.onJudge = append(b.onJudge, f) }

// Judge says that the volumes of a pool may be better or worse than they were.
func (b *Backends) Judge(pool string) {
	for _, f := range b.onJudge {
		f(pool)
	}
}

// OnOrphan registers a function that is called when an object of a volume in the pool is gone
// without the volume; the name is empty in mode device. It must return at once. Call it before
// anything runs.
func (b *Backends) OnOrphan(f func(pool string)) { b.onOrphan = append(b.onOrphan, f) }

// Orphaned says that an object of a volume in the pool is gone without the volume.
func (b *Backends) Orphaned(pool string) {
	for _, f := range b.onOrphan {
		f(pool)
	}
}

// Touch says that a volume has taken or given back room in the pool.
func (b *Backends) Touch(pool string) {
	for _, f := range b.onTouch {
		f(pool)
	}
}

func (b *Backends) changed() {
	for _, f := range b.onChange {
		f()
	}
}

// Set adds or replaces a pool. Setting what is there already changes nothing.
func (b *Backends) Set(p PoolBackend) {
	b.mu.Lock()
	same := b.pools[p.Name] == p
	b.pools[p.Name] = p
	b.mu.Unlock()
	if !same {
		b.changed()
	}
}

// Forget drops a pool that was proven gone.
func (b *Backends) Forget(name string) {
	b.mu.Lock()
	_, known := b.pools[name]
	delete(b.pools, name)
	b.mu.Unlock()
	if known {
		b.changed()
	}
}

// SetSynced says that every pool of the node was looked at once: from now on a name
// that is not there is an answer.
func (b *Backends) SetSynced() {
	b.mu.Lock()
	b.synced = true
	b.mu.Unlock()
	b.changed()
}

// Synced reports whether SetSynced was called.
func (b *Backends) Synced() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.synced
}

// Has reports whether a pool of that name is known, usable or not.
func (b *Backends) Has(name string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.pools[name]
	return ok
}

// Pools returns the pools, ordered by name.
func (b *Backends) Pools() []PoolBackend {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return slices.SortedFunc(maps.Values(b.pools), func(x, y PoolBackend) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
}

// ForNew returns the backend that makes a new volume. ErrPoolNotFound and
// volume.ErrInvalid are answers for good; volume.ErrPoolUnavailable is one for now.
func (b *Backends) ForNew(mode volume.Mode, pool string) (volume.Backend, error) {
	return b.find(mode, pool, true)
}

// ForExisting returns the backend that a volume was made by. It serves closed pools
// too.
func (b *Backends) ForExisting(mode volume.Mode, pool string) (volume.Backend, error) {
	return b.find(mode, pool, false)
}

func (b *Backends) find(mode volume.Mode, pool string, forNew bool) (volume.Backend, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if mode == volume.ModeDevice {
		if b.device == nil {
			return nil, fmt.Errorf("mode device: %w", volume.ErrPoolUnavailable)
		}
		return b.device, nil
	}
	p, ok := b.pools[pool]
	switch {
	case !ok && !b.synced:
		return nil, fmt.Errorf("pool %q: the agent has not looked at its pools yet: %w", pool, volume.ErrPoolUnavailable)
	case !ok:
		return nil, fmt.Errorf("pool %q: no PoolSet of that name selects this node: %w", pool, ErrPoolNotFound)
	case p.Backend == nil:
		return nil, fmt.Errorf("pool %q: %s: %w", pool, p.Reason, volume.ErrPoolUnavailable)
	case p.Mode != mode:
		return nil, fmt.Errorf("pool %q is of kind %s and the volume of mode %s: %w", pool, p.Mode, mode, volume.ErrInvalid)
	case p.Closed && forNew && !b.synced:
		return nil, fmt.Errorf("pool %q: the agent has not looked at its PoolSets yet: %w", pool, volume.ErrPoolUnavailable)
	case p.Closed && forNew:
		return nil, fmt.Errorf("pool %q takes no new volumes: %s: %w", pool, p.Reason, ErrPoolNotFound)
	}
	return p.Backend, nil
}
