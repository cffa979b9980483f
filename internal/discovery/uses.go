// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/berth-dev/berth/pkg/block"
)

// watchTables tells of changes of the mount and swap tables until the context ends.
func (inv *Inventory) watchTables(ctx context.Context, tables chan<- struct{}) {
	for ctx.Err() == nil {
		err := inv.sysfs.WatchTables(ctx, func() {
			select {
			case tables <- struct{}{}:
			default: // it was told already
			}
		})
		if err == nil {
			return
		}
		inv.log.Error(err, "cannot watch the mount table; trying again")
		select {
		case <-ctx.Done():
		case <-time.After(unreadableRetry):
		}
	}
}

// refreshUses reads who uses the block devices and judges those anew that are used
// otherwise than before.
func (inv *Inventory) refreshUses(ctx context.Context) error {
	inv.mu.Lock()
	topology, filters, version := inv.devices, inv.filters, inv.version
	inv.mu.Unlock()
	if filters == nil {
		return nil // no disk is judged by its use yet
	}
	now, err := inv.readUses(ctx, topology, filters)
	if err != nil {
		return err
	}
	now.version = version
	inv.mu.Lock()
	defer inv.mu.Unlock()
	// Not what was read last: that may have been for one disk alone.
	before := inv.usesTold
	inv.uses, inv.usesTold = now, now
	for name, kernelNames := range inv.index {
		if before == nil || slices.ContainsFunc(kernelNames, func(k string) bool { return usedOtherwise(before, now, k) }) {
			inv.queue.Add(name)
		}
	}
	return nil
}

func usedOtherwise(before, now *uses, kernelName string) bool {
	return !slices.Equal(mountPoints(before.usage, kernelName), mountPoints(now.usage, kernelName)) ||
		before.usage.Swap(kernelName) != now.usage.Swap(kernelName) || before.system[kernelName] != now.system[kernelName]
}

// ofPod are the mount points that kubelet makes for the volumes of a pod.
var ofPod = regexp.MustCompile(`/pods/[0-9a-f-]{36}/volume`)

// mountPoints are where a device is mounted, without the places where pods are shown
// a part of it: these come and go with the pods, and say nothing that the first mount
// does not. A device that is mounted for pods only has those.
func mountPoints(usage *block.Usage, kernelName string) []string {
	if usage == nil {
		return nil
	}
	all := usage.MountPoints(kernelName)
	own := slices.DeleteFunc(slices.Clone(all), ofPod.MatchString)
	if len(own) == 0 {
		return all
	}
	return own
}
