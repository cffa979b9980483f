// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// A loss of power may leave half of a group's metadata behind, on all its disks: what lvm
// writes last is on the medium, and a part of what it wrote before is not. lvm then
// does not know the group, and only shows that its disks are in use.

// SetTearing lets each loss of power tear the metadata that was not flushed.
func (h *Host) SetTearing(tears bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tearing = tears
}

// SetTextless makes the text of all metadata unreadable below lvm.
func (h *Host) SetTextless(textless bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.textless = textless
}

// Tear leaves half of a group's metadata behind that was not flushed, as a loss of power
// does, and reboots.
func (h *Host) Tear() {
	h.mu.Lock()
	h.dead, h.tearing = true, true
	h.mu.Unlock()
	h.Reboot()
}

// tear makes unreadable what has changed since it was flushed; below it is what was
// there before.
func (h *Host) tear() {
	for i, g := range h.groups {
		j := slices.IndexFunc(h.durable.groups, func(d *group) bool { return d.uuid == g.uuid })
		if j < 0 || h.durable.groups[j].seqno == g.seqno {
			continue
		}
		before := h.durable.groups[j].clone()
		before.torn = g.seqno
		for _, d := range h.disks {
			takenOut := d.group == nil && d.pvUUID != "" && slices.Contains(before.disks, d)
			if d.group == g || takenOut {
				d.group = before
			}
		}
		h.groups[i] = before
	}
}

// Metadata is the lvm.Metadata of the host's disks.
func (h *Host) Metadata() lvm.Metadata { return metadata{h} }

type metadata struct{ h *Host }

func (m metadata) disk(path string) (*disk, error) {
	d := m.h.disks[path]
	if m.h.blind || m.h.dead || d == nil || d.missing || d.group == nil {
		return nil, errBlind
	}
	return d, nil
}

func (m metadata) Headers(path, groupUUID string, seqno uint64) ([]lvm.AreaHeader, error) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	d, err := m.disk(path)
	if err != nil {
		return nil, err
	}
	if d.group.torn > 0 || d.group.uuid != groupUUID || d.group.seqno != seqno {
		return nil, nil
	}
	return []lvm.AreaHeader{{PVUUID: d.pvUUID, Sector: strconv.AppendUint(nil, seqno, 10)}}, nil
}

func (m metadata) Text(path, groupUUID string, seqno uint64) ([]byte, error) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	d, err := m.disk(path)
	if err == nil && m.h.textless {
		err = errBlind
	}
	if err != nil {
		return nil, err
	}
	if d.group.torn > 0 || d.group.uuid != groupUUID || d.group.seqno != seqno {
		return nil, fmt.Errorf("lvmtest: %w: %s holds another generation", volume.ErrBusy, path)
	}
	return d.group.text(), nil
}

func (m metadata) RollBack(path, _ string, to lvm.Generation) (bool, error) {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	d, err := m.disk(path)
	if err != nil || d.group.torn == 0 {
		return false, err
	}
	g := d.group
	i := slices.IndexFunc(to.Headers, func(header lvm.AreaHeader) bool { return header.PVUUID == d.pvUUID })
	switch {
	case i < 0:
		return false, errors.New("lvmtest: nothing was kept")
	case to.GroupUUID != g.uuid || to.Seqno != g.seqno || string(to.Headers[i].Sector) != strconv.FormatUint(g.seqno, 10):
		return false, fmt.Errorf("lvmtest: kept was generation %d, and %d is there", to.Seqno, g.seqno)
	case !to.Acting && g.torn != g.seqno+1:
		return false, errors.New("lvmtest: there were other changes")
	}
	g.torn = 0
	return true, nil
}

// Journal is an lvm.Journal on another disk of the host: it outlives a Reboot.
func (h *Host) Journal() *Journal { return &h.journal }

// Journal keeps generations.
type Journal struct {
	h    *Host
	kept map[string]lvm.Generation
	// writes counts what was kept, fails makes Keep fail.
	writes int
	fails  bool
}

// Keep implements lvm.Journal.
func (j *Journal) Keep(g lvm.Generation) error {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	if j.h.dead {
		return errPower
	}
	if j.fails {
		return fmt.Errorf("lvmtest: no space left on the journal's disk: %w", volume.ErrBusy)
	}
	j.writes++
	j.kept[g.GroupUUID] = g
	return nil
}

// Kept implements lvm.Journal.
func (j *Journal) Kept(groupUUID string) (lvm.Generation, bool, error) {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	g, ok := j.kept[groupUUID]
	return g, ok, nil
}

// Forget is what an operator does who takes away what is kept.
func (j *Journal) Forget(groupUUID string) {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	delete(j.kept, groupUUID)
}

// Writes returns how often something was kept.
func (j *Journal) Writes() int {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	return j.writes
}

// SetFails makes Keep fail.
func (j *Journal) SetFails(fails bool) {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	j.fails = fails
}
