// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"time"

	"github.com/berth-dev/berth/pkg/device"
	"github.com/berth-dev/berth/pkg/volume"
)

// showWipeEvery is the least time between two writes that tell how far a wipe is. One
// of a large disk takes a day.
const showWipeEvery = 10 * time.Second

var _ device.WipeObserver = (*Inventory)(nil)

// WipeStarted implements device.WipeObserver.
func (inv *Inventory) WipeStarted(diskName string, _ volume.WipePolicy) {
	inv.metrics.wiping.Inc()
	inv.metrics.wiped.WithLabelValues(diskName).Set(0)
	inv.setWiped(diskName, 0, time.Now())
}

// WipeProgress implements device.WipeObserver.
func (inv *Inventory) WipeProgress(diskName string, doneBytes, _ int64) {
	inv.metrics.wiped.WithLabelValues(diskName).Set(float64(doneBytes))
	inv.mu.Lock()
	d := inv.disk(diskName)
	d.wiped = doneBytes
	show := time.Since(d.shownAt) >= showWipeEvery
	if show {
		d.shownAt = time.Now()
	}
	inv.mu.Unlock()
	if show {
		inv.queue.Add(diskName)
	}
}

// WipeEnded implements device.WipeObserver.
func (inv *Inventory) WipeEnded(diskName string, policy volume.WipePolicy, err error) {
	inv.metrics.wiping.Dec()
	inv.metrics.wiped.DeleteLabelValues(diskName)
	result := "clean"
	if err != nil {
		result = "failed"
	}
	inv.metrics.wipes.WithLabelValues(string(policy), result).Inc()
	inv.setWiped(diskName, 0, time.Time{})
}

func (inv *Inventory) setWiped(name string, bytes int64, shownAt time.Time) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	d := inv.disk(name)
	d.wiped, d.shownAt = bytes, shownAt
}
