// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Instants returns what takes group snapshots during the present boot.
func (h *Host) Instants() lvm.Instants {
	h.mu.Lock()
	defer h.mu.Unlock()
	return instants{h, h.boot}
}

// InstantCommand is how Inject knows an instant. Of the modes it takes those that a process
// may be killed in, and Refuse and Lie.
const InstantCommand = "instant"

type instants struct {
	h    *Host
	boot int
}

// Take implements lvm.Instants. One who is killed while he is at it leaves the volumes
// standing still.
func (n instants) Take(ctx context.Context, i lvm.Instant) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return err
	}
	mode := n.h.take(InstantCommand)
	if mode == DieBefore || mode == HangBefore || mode == Refuse {
		return killed(InstantCommand, mode == HangBefore)
	}
	g, copies, err := n.h.instantOf(i)
	if err != nil {
		return err
	}
	for _, c := range copies {
		if err := n.h.step(); err != nil {
			return err
		}
		c.from.suspended = c.from.node != ""
	}
	for _, c := range copies {
		// It is deleted first.
		if err := os.Remove(n.h.thinFile(c.to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.h.must(err)
		}
		if mode == DieWithin {
			return killed(InstantCommand, false)
		}
		if err := n.h.step(); err != nil {
			return err
		}
		n.h.copyThin(g, c.from, c.to)
		if n.h.betweenCopies != nil {
			n.h.betweenCopies(c.from.suspended)
		}
	}
	if mode == DieAfter || mode == HangAfter {
		return killed(InstantCommand, mode == HangAfter)
	}
	for _, c := range copies {
		c.from.suspended = false
	}
	return n.h.step()
}

type instantCopy struct{ from, to *logicalVolume }

func (h *Host) instantOf(i lvm.Instant) (*group, []instantCopy, error) {
	g := h.groupNamed(i.GroupName)
	if g == nil || g.uuid != i.GroupUUID || g.seqno != i.Seqno {
		return nil, nil, fmt.Errorf("lvmtest: the group of the instant %+v has changed: %w", i, volume.ErrBusy)
	}
	var copies []instantCopy
	for _, c := range i.Copies {
		var found instantCopy
		for _, lv := range g.volumes {
			if lv.thin == nil || lv.thin.uuid != i.PoolUUID {
				continue
			}
			if lv.uuid == c.OriginUUID && lv.number == c.Origin {
				found.from = lv
			}
			if lv.uuid == c.SnapshotUUID && lv.number == c.Snapshot && lv.node == "" {
				found.to = lv
			}
		}
		if found.from == nil || found.to == nil {
			return nil, nil, fmt.Errorf("lvmtest: the numbers %+v are not those of the pool: they would destroy another volume", c)
		}
		copies = append(copies, found)
	}
	return g, copies, nil
}

// BetweenCopies calls f after each copy of an instant, with whether the origin stood still.
func (h *Host) BetweenCopies(f func(still bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.betweenCopies = f
}

// Suspended returns the names of the volumes that are suspended.
func (h *Host) Suspended() (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		for _, lv := range g.volumes {
			if lv.suspended && lv.node != "" {
				names = append(names, lv.name)
			}
		}
	}
	return names
}

// ResumeAll implements lvm.Nodes.
func (n nodes) ResumeAll(ctx context.Context, groupName, _ string, not []string) (resumed int, err error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return 0, err
	}
	if g := n.h.groupNamed(groupName); g != nil {
		for _, lv := range g.withParts() {
			if lv.suspended && lv.node != "" && !slices.Contains(not, lv.uuid) {
				lv.suspended = false
				resumed++
			}
		}
	}
	return resumed, nil
}

// ThinContent returns what a thin volume, active or not, holds.
func (h *Host) ThinContent(t testing.TB, name string) []byte {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		if lv := g.volume(name); lv != nil && lv.thin != nil {
			content, err := os.ReadFile(h.thinFile(lv))
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
	t.Fatalf("there is no thin volume %s", name)
	return nil
}
