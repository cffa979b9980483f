// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/berth-dev/berth/pkg/block"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// Nodes returns the device nodes of the present boot.
func (h *Host) Nodes() lvm.Nodes {
	h.mu.Lock()
	defer h.mu.Unlock()
	return nodes{h, h.boot}
}

type nodes struct {
	h    *Host
	boot int
}

// Find implements lvm.Nodes.
func (n nodes) Find(ctx context.Context, id lvm.NodeID) (volume.Location, bool, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return volume.Location{}, false, err
	}
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			if g.uuid != id.GroupUUID || lv.uuid != id.UUID || lv.node == "" {
				continue
			}
			info, err := os.Stat(lv.node)
			if err != nil {
				return volume.Location{}, false, err
			}
			return volume.Location{Device: lv.node, SizeBytes: info.Size()}, true, nil
		}
	}
	return volume.Location{}, false, nil
}

// Clear implements lvm.Nodes.
func (n nodes) Clear(ctx context.Context, loc volume.Location) error {
	return n.Wipe(ctx, loc, volume.WipeSignatures)
}

// Wipe implements lvm.Nodes.
func (n nodes) Wipe(ctx context.Context, loc volume.Location, policy volume.WipePolicy) (err error) {
	n.h.mu.Lock()
	onWipe := n.h.onWipe
	n.h.mu.Unlock()
	if onWipe != nil {
		onWipe(policy)
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if err := n.h.alive(ctx, n.boot); err != nil {
		return err
	}
	if n.h.held[loc.Device] {
		return fmt.Errorf("open %s: %w", loc.Device, volume.ErrInUse)
	}
	if policy != volume.WipeNone && n.h.isReadOnly(loc.Device) {
		return fmt.Errorf("open %s: %w", loc.Device, fs.ErrPermission)
	}
	if err := n.h.step(); err != nil {
		return err
	}
	switch policy {
	case volume.WipeNone:
		return nil
	case volume.WipeZero, volume.WipeDiscard:
		err = errors.Join(os.Truncate(loc.Device, 0), os.Truncate(loc.Device, loc.SizeBytes))
	case volume.WipeSignatures:
		f := n.h.open(loc.Device)
		n.h.zeroEnds(f, loc.SizeBytes)
		n.h.close(f)
	default:
		return fmt.Errorf("%w: policy %q", volume.ErrInvalid, policy)
	}
	return errors.Join(err, n.h.step())
}

// WipeThin implements lvm.Nodes.
func (n nodes) WipeThin(ctx context.Context, loc volume.Location, policy volume.WipePolicy) error {
	if policy == volume.WipeSignatures {
		policy = volume.WipeNone
	}
	return n.Wipe(ctx, loc, policy)
}

// isReadOnly reports whether lvm would have the kernel refuse writes, or writes would go to
// what is about to be removed.
func (h *Host) isReadOnly(device string) bool {
	for _, g := range h.groups {
		for _, lv := range g.volumes {
			if lv.node == device {
				return lv.readOnly || lv.stale
			}
		}
	}
	return false
}

func (h *Host) zeroEnds(f *os.File, size int64) {
	edge := min(size, block.EdgeBytes)
	for _, at := range []int64{0, size - edge} {
		if !h.hasData(f, at, edge) {
			continue // and stays sparse
		}
		_, err := f.WriteAt(make([]byte, edge), at)
		h.must(err)
	}
}

// Hold uses a node as a mount would.
func (h *Host) Hold(device string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[device] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.held, device)
	}
}

// Seqno is the lvm.SeqnoReader of the host's disks.
func (h *Host) Seqno(path string) (groupUUID string, seqno uint64, ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.disks[path]
	if h.blind || h.dead || d == nil || d.missing || d.group == nil || d.group.torn > 0 {
		return "", 0, false, errBlind
	}
	return d.group.uuid, d.group.seqno, true, nil
}

// alive returns why a process of that boot can do nothing.
func (h *Host) alive(ctx context.Context, boot int) error {
	switch {
	case h.dead || boot != h.boot:
		return errPower
	case h.blind:
		return errBlind
	}
	return ctx.Err()
}
