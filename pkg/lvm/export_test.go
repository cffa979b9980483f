// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
)

// Waiting returns how many operations wait for the next process.
func (b *Backend) Waiting() int {
	b.queue.mu.Lock()
	defer b.queue.mu.Unlock()
	return len(b.queue.pending)
}

// UnknownLegs is what RemoveUnknown removes.
func UnknownLegs(h HostNodes, groupName, groupUUID string, known func(string) bool) ([]string, error) {
	return h.unknownLegs(groupName, groupUUID, known)
}

// StaleTable is how Stale decides.
var StaleTable = staleTable

// CompareFollowed has each group that was followed without a report compared with lvm's report.
func (b *Backend) CompareFollowed() *Backend {
	b.queue.compare = func(g *Group) {
		report, _, err := b.queue.client.shell(context.Background(), b.queue.session(nil), nil)
		if err != nil {
			return
		}
		wanted := report.Group(g.UUID)
		if wanted == nil || wanted.Seqno != g.Seqno {
			return // somebody else has changed it meanwhile
		}
		got, want := inOrder(g), inOrder(wanted)
		if !reflect.DeepEqual(got, want) {
			panic(fmt.Sprintf("a group that was followed is not as lvm reports it:\n%+v\nlvm:\n%+v", got, want))
		}
	}
	return b
}

// inOrder is a group in the order of lvm, without what finds its volumes.
func inOrder(g *Group) Group {
	c := *g
	c.names, c.uuids, c.behind, c.adopted = nil, nil, nil, nil
	c.LVs = slices.SortedFunc(slices.Values(g.LVs), func(a, b LogicalVolume) int { return cmp.Compare(a.Name, b.Name) })
	for i := range c.LVs {
		c.LVs[i].Tags = slices.Sorted(slices.Values(c.LVs[i].Tags))
	}
	return c
}
