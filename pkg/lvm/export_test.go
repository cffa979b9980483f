// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
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
		if differences := differences(inOrder(g), inOrder(wanted)); len(differences) > 0 {
			panic("a group that was followed is not as lvm reports it:\n" + strings.Join(differences, "\n"))
		}
	}
	return b
}

// differences names the fields in which two groups differ, and of volumes and devices those that do.
func differences(got, want Group) (out []string) {
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range g.NumField() {
		name, a, b := g.Type().Field(i).Name, fmt.Sprintf("%+v", g.Field(i)), fmt.Sprintf("%+v", w.Field(i))
		if a == b {
			continue
		}
		if g.Field(i).Kind() != reflect.Slice || g.Field(i).Len() != w.Field(i).Len() {
			out = append(out, fmt.Sprintf("%s: %s\nlvm: %s", name, a, b))
			continue
		}
		for j := range g.Field(i).Len() {
			if a, b := fmt.Sprintf("%+v", g.Field(i).Index(j)), fmt.Sprintf("%+v", w.Field(i).Index(j)); a != b {
				out = append(out, fmt.Sprintf("%s[%d]: %s\nlvm: %s", name, j, a, b))
			}
		}
	}
	if len(out) == 0 && !reflect.DeepEqual(got, want) {
		out = append(out, fmt.Sprintf("something that does not show: %+v\nlvm: %+v", got, want))
	}
	return out
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
