// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
)

// Locks is a set of locks by key, here the names of volumes. The reconcilers and
// the CSI node service share one, so that a volume is not deleted while it is being
// staged. The zero value is ready to use.
type Locks struct {
	mu   sync.Mutex
	held map[string]*heldLock
}

type heldLock struct {
	// token is in the channel while the lock is free.
	token chan struct{}
	users int
}

// Lock waits until nobody holds the key, or until the context ends.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	h := l.join(key)
	select {
	case <-h.token:
		return l.unlocker(key, h), nil
	case <-ctx.Done():
		l.leave(key, h)
		return nil, ctx.Err()
	}
}

// TryLock takes the key if nobody holds it.
func (l *Locks) TryLock(key string) (unlock func(), ok bool) {
	h := l.join(key)
	select {
	case <-h.token:
		return l.unlocker(key, h), true
	default:
		l.leave(key, h)
		return nil, false
	}
}

func (l *Locks) join(key string) *heldLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[key]
	if h == nil {
		if l.held == nil {
			l.held = map[string]*heldLock{}
		}
		h = &heldLock{token: make(chan struct{}, 1)}
		h.token <- struct{}{}
		l.held[key] = h
	}
	h.users++
	return h
}

// leave forgets a lock that nobody holds or waits for, so that the set does not
// grow with every volume there ever was.
func (l *Locks) leave(key string, h *heldLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.held, key)
	}
}

func (l *Locks) unlocker(key string, h *heldLock) func() {
	return sync.OnceFunc(func() {
		h.token <- struct{}{}
		l.leave(key, h)
	})
}
