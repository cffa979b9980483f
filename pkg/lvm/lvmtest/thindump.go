// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostexec"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// heldRoot is the block of each snapshot of a pool's metadata.
const heldRoot = 44

// activePool returns an active thin pool. The lock is held.
func (n nodes) activePool(ctx context.Context, id lvm.NodeID) (*logicalVolume, error) {
	if err := n.h.alive(ctx, n.boot); err != nil {
		return nil, err
	}
	for _, g := range n.h.groups {
		for _, lv := range g.volumes {
			if g.uuid == id.GroupUUID && lv.uuid == id.UUID && lv.node != "" {
				return lv, nil
			}
		}
	}
	return nil, fmt.Errorf("lvmtest: %s: %w: it is not active", id, volume.ErrNotFound)
}

// HoldThinMetadata implements lvm.Nodes. A pool that holds one snapshot of its metadata
// refuses another.
func (n nodes) HoldThinMetadata(ctx context.Context, id lvm.NodeID) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	pool, err := n.activePool(ctx, id)
	if err != nil {
		return err
	}
	if pool.heldRoot != 0 {
		return unix.EBUSY
	}
	if err := n.h.step(); err != nil {
		return err
	}
	pool.heldRoot = heldRoot
	return n.h.step()
}

// ReleaseThinMetadata implements lvm.Nodes.
func (n nodes) ReleaseThinMetadata(ctx context.Context, id lvm.NodeID) error {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	pool, err := n.activePool(ctx, id)
	if err != nil || pool.heldRoot == 0 {
		return err
	}
	if err := n.h.step(); err != nil {
		return err
	}
	pool.heldRoot = 0
	return n.h.step()
}

// ThinMetadataPath implements lvm.Nodes.
func (n nodes) ThinMetadataPath(ctx context.Context, id lvm.NodeID) (string, error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	_, err := n.activePool(ctx, id)
	return "/dev/mapper/" + id.GroupName + "-" + id.Name + "_tmeta", err
}

// HoldMetadata has somebody else hold snapshots of the metadata of all thin pools, or give
// them back.
func (h *Host) HoldMetadata(holds bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		for _, lv := range g.volumes {
			if lv.isThinPool() {
				lv.heldRoot = 0
				if holds {
					lv.heldRoot = heldRoot
				}
			}
		}
	}
}

// SetThinDump has the host have thin_dump, or not.
func (h *Host) SetThinDump(there bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noThinDump = !there
}

// SetOtherTransaction has the metadata of thin pools be of another transaction than lvm
// expects, so that it does not activate them, or not.
func (h *Host) SetOtherTransaction(other bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.otherTransaction = other
}

// thinDump is the program: it writes the volumes of the one pool whose metadata are held.
func (p *process) thinDump(cmd hostexec.Command) error {
	if p.h.noThinDump {
		return fmt.Errorf("lvmtest: thin_dump: %w", volume.ErrToolMissing)
	}
	switch mode := p.h.take(cmd.Name); mode {
	case DieBefore, DieWithin, HangBefore, HangAfter:
		if mode == DieWithin {
			_, _ = fmt.Fprintf(cmd.Stdout, "<superblock transaction=\"1\" nr_data_blocks=\"0\">\n  <dev")
		}
		return killed(cmd.Name, mode == HangBefore || mode == HangAfter)
	case Refuse:
		return &hostexec.ExitError{Command: cmd.String(), ExitCode: 1, Stderr: "no current metadata snap"}
	case Garbage:
		_, err := cmd.Stdout.Write([]byte("nothing of use\n"))
		return err
	default:
	}
	for _, g := range p.h.groups {
		for _, pool := range g.volumes {
			if pool.heldRoot == 0 || len(cmd.Args) != 2 || cmd.Args[0] != "--metadata-snap" ||
				cmd.Args[1] != "/dev/mapper/"+g.name+"-"+pool.name+"_tmeta" {
				continue
			}
			// The snapshot does not have the pool's size.
			_, err := fmt.Fprintf(cmd.Stdout, "<superblock uuid=\"\" transaction=\"%d\" nr_data_blocks=\"0\">\n", g.seqno)
			for _, lv := range g.volumes {
				if lv.thin == pool && err == nil {
					_, err = fmt.Fprintf(cmd.Stdout, "  <device dev_id=\"%d\">\n  </device>\n", lv.number)
				}
			}
			if err == nil {
				_, err = fmt.Fprint(cmd.Stdout, "</superblock>\n\n")
			}
			if err != nil {
				return fmt.Errorf("lvmtest: thin_dump: %w", err)
			}
			return nil
		}
	}
	return &hostexec.ExitError{Command: cmd.String(), ExitCode: 1, Stderr: "no current metadata snap"}
}
