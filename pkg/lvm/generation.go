// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm

import "fmt"

// Generation is a state of a volume group's metadata of which every byte is on the
// medium of its devices.
//
// lvm commits a change by two writes to each device: the new text into a ring, then the
// header that points to it (_vg_write_raw and _vg_commit_raw_rlocn in
// lib/format_text/format-text.c). It flushes neither, so a device with a volatile cache
// may keep the second and lose a part of the first with the power. Then the header
// points to half a text, on every device of the group, and lvm does not know the group
// any more: not its volumes, nor what it was before. The text before it is still in the
// ring. With the header that pointed to it the change that was cut short is undone, as
// if it had never begun; nobody was told that it was made.
type Generation struct {
	GroupUUID string `json:"groupUUID"`
	// Seqno is 0, and there are no headers, where only Behind is known.
	Seqno uint64 `json:"seqno"`
	// Acting is true while several changes are made in one process: then each of the
	// generations after this one is of that process, until the next one is kept.
	Acting bool `json:"acting,omitempty"`
	// Headers of the metadata areas of all devices.
	Headers []AreaHeader `json:"headers"`
	// Behind are the UUIDs of images of redundant volumes that miss what was written while
	// their device was away.
	Behind []string `json:"behind,omitempty"`
}

// AreaHeader is the first sector of a metadata area.
type AreaHeader struct {
	// PVUUID of the device, without hyphens, and where on it the area begins.
	PVUUID      string `json:"pvUUID"`
	OffsetBytes int64  `json:"offsetBytes"`
	Sector      []byte `json:"sector"`
}

// Journal keeps the last generation of each volume group, elsewhere than on its devices.
type Journal interface {
	// Keep is durable when it returns nil.
	Keep(g Generation) error
	// Kept returns false when no generation of the group was ever kept. An error says
	// nothing.
	Kept(groupUUID string) (Generation, bool, error)
}

// Metadata is the metadata on devices, below lvm.
type Metadata interface {
	// Headers returns the headers of those of a device's metadata areas that lead to the
	// whole text of that generation.
	Headers(devicePath, groupUUID string, seqno uint64) ([]AreaHeader, error)
	// Text returns the whole text of that generation of the group; nil when the device holds
	// no metadata. volume.ErrBusy: it holds another one, or is being written.
	Text(devicePath, groupUUID string, seqno uint64) ([]byte, error)
	// RollBack puts a device's headers back that lead to half a text, and reports
	// whether there were any. It changes nothing, and returns an error, unless it is
	// proven that the change that was cut short is the one that followed that
	// generation, whose text is whole. What leads to a whole text is left alone, whatever
	// it says.
	RollBack(devicePath, groupName string, to Generation) (changed bool, err error)
}

// rollBack undoes changes that a loss of power has cut short.
func (q *queue) rollBack() (changed bool, err error) {
	if q.journal == nil {
		return false, nil
	}
	kept, found, err := q.journal.Kept(q.groupUUID)
	if err != nil || !found {
		return false, err
	}
	for _, path := range q.devices() {
		rolled, e := q.metadata.RollBack(path, q.groupName, kept)
		if e != nil && err == nil {
			err = e
		}
		if rolled {
			changed = true
			q.rolledBack(path, kept.Seqno)
		}
	}
	return changed, err
}

// keepBefore makes sure that there is a way back from the changes that are about to be
// made. Of one change it is known by its place that it follows the generation that is
// kept; that there may be several is written down before.
func (q *queue) keepBefore(g *Group, changes int) error {
	if q.journal == nil || changes == 0 {
		return nil
	}
	several := changes > 1
	if q.kept != nil && q.kept.Seqno == g.Seqno && q.kept.Acting == several {
		return nil
	}
	if q.unflushed || q.kept == nil || q.kept.Seqno != g.Seqno {
		if err := q.client.makeDurable(g); err != nil {
			return err
		}
		q.unflushed = false
	}
	return q.keep(g, several)
}

// keep writes down a generation that was flushed.
func (q *queue) keep(g *Group, acting bool) error {
	if q.journal == nil {
		return nil
	}
	gen := Generation{GroupUUID: g.UUID, Seqno: g.Seqno, Acting: acting}
	q.kept = nil
	if acting {
		q.concluded = false
	}
	for _, pv := range g.PVs {
		if pv.Path == "" {
			continue
		}
		headers, err := q.metadata.Headers(pv.Path, g.UUID, g.Seqno)
		if err != nil {
			return fmt.Errorf("%w: read back the metadata on %s: %w", errNotDurable, pv.Path, err)
		}
		gen.Headers = append(gen.Headers, headers...)
	}
	if len(gen.Headers) == 0 {
		q.known = nil // somebody may have changed it meanwhile
		return fmt.Errorf("%w: generation %d of its metadata is on none of its devices", errNotDurable, g.Seqno)
	}
	q.keeping.Lock()
	defer q.keeping.Unlock()
	was, _, err := q.journal.Kept(g.UUID)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotDurable, err)
	}
	gen.Behind = was.Behind
	if err := q.journal.Keep(gen); err != nil {
		return fmt.Errorf("%w: %w", errNotDurable, err)
	}
	q.kept = &gen
	return nil
}

// conclude ends what a process that is gone had begun, an agent before this one or an lvm
// whose end was not seen: the group was read, so nothing is to be rolled back, and what is
// changed from now on by others is not ours to undo.
func (q *queue) conclude(g *Group) {
	if q.journal == nil || q.concluded || g.State() != StateReady {
		return
	}
	kept, found, err := q.journal.Kept(q.groupUUID)
	if err != nil || found && kept.Acting && (q.client.makeDurable(g) != nil || q.keep(g, false) != nil) {
		return // at the next look, or before the next change
	}
	q.concluded = true
}
