// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// carryOut removes what was confirmed. It may take hours, and goes on apart from this worker.
func (p *Purger) carryOut(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest, rec *purgeRecord) v1alpha1.PurgeStatus {
	_, err := p.works.do(ctx, req.UID, "wiping", place.Again, func(ctx context.Context, _ func(doneBytes, totalBytes int64)) (ledger.Entry, error) {
		return ledger.Entry{}, p.purge(ctx, place, req)
	})
	now, readErr := p.records.get(req.UID)
	if readErr != nil || now == nil {
		now = rec
	}
	// Not the token: there is nothing to confirm any more.
	begun := func(message string) v1alpha1.PurgeStatus {
		status := quarantined(now, v1alpha1.PurgePurging, message)
		status.Token = ""
		return status
	}
	switch {
	case isWorking(err):
		return begun(err.Error())
	case now.State == v1alpha1.PurgePurged:
		return purged(now)
	case now.State == v1alpha1.PurgePurging:
		return begun(fmt.Sprintf("its removal has begun, and is tried again: %v", err))
	case err == nil:
		err = fmt.Errorf("%w: it was withdrawn", errKept)
	}
	return p.give(now, req.UID, err)
}

// purge is the second phase, under the volume's lock.
func (p *Purger) purge(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) error {
	rec, err := p.records.get(req.UID)
	if err != nil {
		return err // which says nothing about the quarantine
	}
	if rec == nil {
		return fmt.Errorf("%w: it is in no quarantine any more", errKept)
	}
	unlock, err := p.Carver.Locks.Lock(ctx, rec.name())
	if err != nil {
		return err
	}
	defer unlock()
	rec, found, err := p.begin(ctx, place, req, rec)
	if err != nil {
		return err
	}
	if err := p.remove(ctx, place, rec, found); err != nil {
		return err
	}
	done := *rec
	done.State, done.Storage, done.Wipe = v1alpha1.PurgePurged, nil, found.entry.Wipe
	if err := p.records.put(rec, &done); err != nil {
		return err
	}
	p.touch(place.PoolSet)
	p.Log.Info("Purged a left-over", "kind", rec.Kind, "uid", rec.UID, "name", rec.name(), "pool", rec.PoolSet, "held", rec.Holds, "wipe", found.entry.Wipe)
	return nil
}

// begin proves everything once more and writes down that the removal begins. One that had begun
// before is gone on with.
func (p *Purger) begin(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest, rec *purgeRecord) (*purgeRecord, provenLeftOver, error) {
	if rec.State == v1alpha1.PurgePurging {
		found, err := p.resume(ctx, place, rec)
		return rec, found, err
	}
	if rec.State != v1alpha1.PurgeQuarantined || !rec.isFor(place.PoolSet, req) || !isConfirmed(rec, req) {
		return rec, provenLeftOver{}, fmt.Errorf("%w: it is not confirmed", errKept)
	}
	found, err := p.prove(ctx, place, req)
	if err == nil {
		err = p.proveShown(ctx, place, rec, found)
	}
	if err != nil {
		return rec, found, err
	}
	begun := *rec
	begun.State, begun.Storage, begun.Wipe = v1alpha1.PurgePurging, found.entry.Record, found.entry.Wipe
	return &begun, found, p.records.put(rec, &begun)
}

// resume takes up a removal that had begun. What is still there must be the very thing, and
// nobody's.
func (p *Purger) resume(ctx context.Context, place PurgePlace, rec *purgeRecord) (found provenLeftOver, err error) {
	e, err := p.recorded(rec.Kind, rec.UID)
	switch {
	case err == nil:
		found.known = true
	case !errors.Is(err, ledger.ErrNotFound):
		return found, err
	default:
		e = p.unrecorded(place, rec.UID, rec.name(), rec.Wipe)
	}
	if err := p.proveNobodys(ctx, behind(rec.UID, rec.Names, rec.NameCut, rec.Storage, place.linksTo(e)...)); err != nil {
		return found, err
	}
	if e.Record == nil {
		e.Record = rec.Storage
	}
	found.entry = e
	if rec.Kind == v1alpha1.LeftOverRecord {
		if found.known && identityOfEntry(e) != rec.Identity {
			return found, fmt.Errorf("%w: the entry of the ledger is another one by now", errKept)
		}
		return found, nil
	}
	x, err := examinerOf(place.Backend, rec.Kind)
	if err != nil {
		return found, err
	}
	found.exam, err = x.Examine(ctx, rec.UID)
	switch {
	case errors.Is(err, volume.ErrNotFound) && place.Mode == volume.ModeDevice && e.State != ledger.Deleting:
		return found, p.proveReleased(ctx, place, rec.UID)
	case errors.Is(err, volume.ErrNotFound):
		// It is gone, or has the name of what was deleted: the backend knows by its record.
		return found, nil
	case err != nil:
		return found, fmt.Errorf("look at it: %w", err)
	case found.exam.Gone && found.exam.Record.SameStorage(*rec.Storage):
		return found, nil // its mark is what is left
	case found.exam.Identity != rec.Identity:
		return found, fmt.Errorf("%w: it is another one by now: this is %q, named is %q", errKept, found.exam.Identity, rec.Identity)
	case e.State == ledger.Deleting:
		return found, nil // that nobody has it was proven before
	case place.Mode == volume.ModeDevice:
		if place.Kept != "" {
			return found, fmt.Errorf("%w: %s", errKept, place.Kept)
		}
		if err := p.identifyDisk(ctx, place, found); err != nil {
			return found, err
		}
		if err := p.proveShown(ctx, place, rec, found); err != nil {
			return found, err
		}
	}
	return found, p.proveUnused(ctx, place.Backend, rec.Kind, found)
}

// describe says in words what is lost with a left-over.
func (p *Purger) describe(ctx context.Context, place PurgePlace, kind v1alpha1.LeftOverKind, found provenLeftOver) string {
	e, x := found.entry, found.exam
	snapshot := kind == v1alpha1.LeftOverSnapshot
	parts := []string{"volume " + e.Name}
	if x.Claim != "" {
		parts = append(parts, "of claim "+x.Claim)
	}
	switch {
	case snapshot:
		parts = p.describeSnapshot(ctx, place, x)
	case e.Record == nil:
		return strings.Join(append(parts, "an entry of the ledger in state "+string(e.State)), ", ")
	default:
		parts = append(parts, mebibytes(e.Record.SizeBytes), p.contents(ctx, place, found))
	}
	if !x.Made.IsZero() {
		parts = append(parts, "made "+x.Made.UTC().Format(time.RFC3339))
	}
	if !x.Changed.IsZero() {
		parts = append(parts, "its uppermost directory last changed "+x.Changed.UTC().Format(time.RFC3339))
	}
	if snapshot {
		return strings.Join(parts, ", ")
	}
	if !found.known {
		parts = append(parts, "not in the node's ledger")
	}
	return strings.Join(append(parts, "wipe policy "+string(e.Wipe)), ", ")
}

// holdsUnread is said of what a volume holds where nobody knows.
const holdsUnread = "what is on it could not be read"

// contents says what is on a volume.
func (p *Purger) contents(ctx context.Context, place PurgePlace, found provenLeftOver) string {
	e := found.entry
	switch {
	case place.Mode == volume.ModeHostpath:
		return "a directory"
	case e.Encryption != nil && place.Mode != volume.ModeDevice:
		return "encrypted"
	}
	location, err := place.Backend.Locate(ctx, e.UID, *e.Record)
	if err != nil {
		return holdsUnread
	}
	if e.Encryption == nil {
		return p.filesystemAt(ctx, location.Device)
	}
	switch has, err := p.Carver.Encrypted.HasHeader(ctx, e, location.Device); {
	case err != nil:
		return holdsUnread
	case !has:
		return "encrypted but without its LUKS header"
	}
	return "encrypted"
}

// filesystemAt says what is on a device.
func (p *Purger) filesystemAt(ctx context.Context, device string) string {
	s, err := p.Filesystems.Inspect(ctx, device)
	switch {
	case errors.Is(err, mount.ErrNoFilesystem):
		return "no ext4, xfs or btrfs, which does not say that nothing is on it"
	case err != nil:
		return holdsUnread
	}
	said := s.FSType
	if s.Label != "" {
		said += fmt.Sprintf(" %q", s.Label)
	}
	said += " (" + s.UUID + ")"
	if !s.Made.IsZero() {
		said += " made " + s.Made.UTC().Format(time.RFC3339)
	}
	if !s.Written.IsZero() {
		said += " and last mounted or unmounted " + s.Written.UTC().Format(time.RFC3339)
	}
	return said
}
