// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/volume"
)

// provenLeftOver is something that was proven to be nobody's. entry is the ledger's, or one that
// was made up from what is on the disk.
type provenLeftOver struct {
	entry ledger.Entry
	known bool
	exam  volume.Examination
}

// names are what it is called by the ledger and by the mark on the disk, each once, that of the
// mark last.
func (f provenLeftOver) names() (names []string) {
	for _, name := range []string{f.entry.Name, f.exam.Name} {
		if name != "" && (len(names) == 0 || names[0] != name) {
			names = append(names, name)
		}
	}
	return names
}

// prove returns nil when what a request names is there, is Berth's, is the very thing that was
// named, belongs to no object and is not in use; an error that wraps errKept when it is
// proven that it is not so.
func (p *Purger) prove(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) (provenLeftOver, error) {
	found, err := p.identify(ctx, place, req)
	if err != nil {
		return found, err
	}
	e := found.entry
	names := found.names()
	if len(names) == 0 {
		return found, fmt.Errorf("%w: what it was called is not known, so it cannot be told whether a PersistentVolume leads to it", errKept)
	}
	if err := p.proveNobodys(ctx, behind(req.UID, names, found.exam.NameCut, e.Record, place.linksTo(e)...)); err != nil {
		return found, err
	}
	if req.Kind == v1alpha1.LeftOverRecord {
		return found, nil
	}
	return found, p.proveUnused(ctx, place.Backend, req.Kind, found)
}

func (p *Purger) proveNobodys(ctx context.Context, l leftBehind) error {
	for _, e := range p.Ledger.All() {
		if e.LeftOver != nil && e.LeftOver.UID == l.uid && e.UID != l.adopter {
			return fmt.Errorf("%w: the node's ledger says that its adoption as volume %s (%s) has begun", errKept, e.Name, e.UID)
		}
	}
	owner, err := ownerOf(ctx, p.Live, l)
	if err != nil {
		return fmt.Errorf("look for what it belongs to: %w", err)
	}
	if owner != "" {
		return fmt.Errorf("%w: it belongs to %s", errKept, owner)
	}
	return nil
}

func (p *Purger) proveUnused(ctx context.Context, b volume.Backend, kind v1alpha1.LeftOverKind, found provenLeftOver) error {
	x, err := examinerOf(b, kind)
	if err != nil {
		return err
	}
	e := found.entry
	switch err = x.ProveUnused(ctx, e.UID, *e.Record); {
	case err != nil:
	case kind == v1alpha1.LeftOverSnapshot:
		err = p.proveSnapshotUnpublished(ctx, found.exam)
	default:
		err = p.Carver.proveUnpublished(ctx, b, e)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, volume.ErrInUse), errors.Is(err, volume.ErrIdentity), errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("%w: %w", errKept, err)
	}
	return fmt.Errorf("look whether it is in use: %w", err)
}

// identify finds what a request names, and proves that it is the very thing.
func (p *Purger) identify(ctx context.Context, place PurgePlace, req v1alpha1.PurgeRequest) (found provenLeftOver, err error) {
	if !isPurgeable(req.Kind) || place.Mode == volume.ModeDevice && req.Kind != v1alpha1.LeftOverVolume {
		return found, fmt.Errorf("%w: what is of kind %q cannot be purged", errKept, req.Kind)
	}
	if place.Kept != "" {
		return found, fmt.Errorf("%w: %s", errKept, place.Kept)
	}
	x, err := examinerOf(place.Backend, req.Kind)
	if err != nil {
		return found, err
	}
	e, err := p.recorded(req.Kind, req.UID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
	case err != nil:
		return found, fmt.Errorf("%w: %w", errKept, err)
	case e.MachineID != p.Carver.MachineID || e.Mode != place.Mode || e.Pool != place.ledgerPool():
		return found, fmt.Errorf("%w: the node's ledger has it in pool %q on the machine %s", errKept, e.Pool, e.MachineID)
	case e.State == ledger.Deleting:
		return found, fmt.Errorf("%w: its deletion has begun, and is ended without anybody's asking", errKept)
	default:
		found.entry, found.known = e, true
	}
	if req.Kind == v1alpha1.LeftOverRecord {
		return found, p.identifyRecord(ctx, x, place.Backend, req, found)
	}
	found.exam, err = x.Examine(ctx, req.UID)
	switch {
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrIdentity):
		return found, fmt.Errorf("%w: %w", errKept, err)
	case err != nil:
		return found, fmt.Errorf("look at it: %w", err)
	case found.exam.Identity != req.Identity:
		return found, fmt.Errorf("%w: it is another one than was named: this is %q, named is %q", errKept, found.exam.Identity, req.Identity)
	case found.known && e.Record != nil && !e.Record.SameStorage(found.exam.Record):
		return found, fmt.Errorf("%w: the node's ledger names other storage for it: %w", errKept, volume.ErrIdentity)
	case len(found.exam.Snapshots) > 0:
		return found, fmt.Errorf("%w: first its snapshots go, and then it does: delete the VolumeSnapshots of those that have one, and purge those that are left over: %s", errKept, firstOf(found.exam.Snapshots))
	case place.Mode == volume.ModeDevice && found.known && e.Record != nil && e.Record.SizeBytes > found.exam.Record.SizeBytes:
		return found, fmt.Errorf("%w: the disk has %d bytes, and the node's ledger says %d: %w", errKept, found.exam.Record.SizeBytes, e.Record.SizeBytes, volume.ErrIdentity)
	}
	rec := found.exam.Record
	if !found.known {
		wipe := volume.WipeZero
		if req.Kind == v1alpha1.LeftOverSnapshot {
			wipe = "" // a mark on the snapshot says it
		}
		found.entry = p.unrecorded(place, req.UID, found.exam.Name, wipe)
	}
	found.entry.Record = &rec
	if place.Mode == volume.ModeDevice {
		return found, p.identifyDisk(ctx, place, found)
	}
	return found, nil
}

// unrecorded is the entry of a volume that the ledger does not know.
func (p *Purger) unrecorded(place PurgePlace, uid, name string, wipe volume.WipePolicy) ledger.Entry {
	e := ledger.Entry{
		UID: uid, Name: name, MachineID: p.Carver.MachineID, Mode: place.Mode, Pool: place.ledgerPool(), Wipe: wipe,
		State: ledger.Carved, Access: volume.AccessFilesystem,
	}
	if place.Mode != volume.ModeHostpath {
		e.Access = volume.AccessBlock // so that it is looked for in pods as such, too
	}
	return e
}

// identifyRecord proves that an entry of the ledger is the one that was named, and that there is
// nothing on the disks for it.
func (p *Purger) identifyRecord(ctx context.Context, x volume.Examiner, b volume.Backend, req v1alpha1.PurgeRequest, found provenLeftOver) error {
	if !found.known {
		return fmt.Errorf("%w: the node's ledger has no entry of that UID", errKept)
	}
	if identity := identityOfEntry(found.entry); identity != req.Identity {
		return fmt.Errorf("%w: the entry is another one than was named: this is %q, named is %q", errKept, identity, req.Identity)
	}
	_, err := x.Examine(ctx, req.UID)
	if errors.Is(err, volume.ErrNotFound) && found.entry.Record != nil {
		_, err = b.Locate(ctx, req.UID, *found.entry.Record)
	}
	switch {
	case err == nil, errors.Is(err, volume.ErrExists), errors.Is(err, volume.ErrIdentity):
		return fmt.Errorf("%w: there is storage of that name on the node", errKept)
	case !errors.Is(err, volume.ErrNotFound):
		return fmt.Errorf("look whether there is storage: %w", err)
	}
	return nil
}

// identityOfEntry names one entry of the ledger as it is now.
func identityOfEntry(e ledger.Entry) string {
	data, err := ledger.Encode(e)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return "entry " + hex.EncodeToString(sum[:16])
}
