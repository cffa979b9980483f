// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

// follow looks at a pool again after each event of device-mapper.
func (r *PoolReconciler) follow(rec *poolRecord) {
	r.live(rec.PoolSet).follows.Store(true)
	r.watchDeviceMapper()
}

// watchDeviceMapper runs from the first pool that follows its events until the process
// ends.
func (r *PoolReconciler) watchDeviceMapper() {
	r.watch.Do(func() {
		go func() {
			retry := time.NewTicker(poolRetry)
			defer retry.Stop()
			for {
				err := r.Events.WatchEvents(r.lifetime, r.enqueueFollowing)
				if r.lifetime.Err() != nil {
					return
				}
				r.Log.Error("Thin and redundant pools are looked at once a minute only", "error", err)
				select {
				case <-r.lifetime.Done():
					return
				case <-retry.C:
				}
			}
		}()
	})
}

// enqueueFollowing looks at the pools again that the events may be about. Several events
// come together: one look is enough for them.
func (r *PoolReconciler) enqueueFollowing() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, p := range r.pools {
		if p.follows.Load() {
			r.queue.addAfter(name, eventDelay)
		}
	}
}
