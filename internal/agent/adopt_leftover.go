// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// LeftOvers proves of left-overs what must be true before somebody gets one; *Purger does.
type LeftOvers interface {
	// Adoptable returns nil when what the wish names is there, is the very thing, belongs to
	// nobody and is not in use, with what the node's ledger has of it and the name of its
	// filesystem; and nobody else can stage or purge it until release is called. An error that
	// wraps volume.ErrNotAdoptable proves that it is not so.
	Adoptable(ctx context.Context, b volume.Backend, w Wish) (found ledger.Entry, release func(), err error)
	// FilesystemOf a volume; volume.ErrNotAdoptable when it has none of that type.
	FilesystemOf(ctx context.Context, b volume.Backend, e ledger.Entry, fsType string) (fsUUID string, err error)
}

// errAtWork: a left-over is being staged or purged right now. It is tried again at once.
var errAtWork = errors.New("somebody is at work on it")

// leftOverOf is the left-over that a wish names; nil for none.
func (w Wish) leftOverOf() *volume.LeftOver {
	if w.Adopt == nil {
		return nil
	}
	return w.Adopt.LeftOver
}

// takeOver gives a left-over to the volume. The ledger says what is meant before anything is
// changed, and forgets the entry that the left-over had when nothing is there under that any
// more: as long as both stand, one of the two is where the backend finds it, and the call
// repeated goes on. Of a whole disk, which carries no mark, it says before that who has it now.
func (c *Carver) takeOver(ctx context.Context, b volume.Backend, e ledger.Entry, w Wish) (ledger.Entry, error) {
	taker, ok := b.(volume.LeftOverTaker)
	from := w.leftOverOf()
	if !ok || from == nil || c.LeftOvers == nil || e.LeftOver.UID != from.ID || e.LeftOver.Identity != from.Identity {
		return e, fmt.Errorf("volume %s: no left-over can be taken over in mode %s: %w", w.Name, w.Mode, volume.ErrInvalid)
	}
	release := func() {}
	rec, err := taker.TakeOver(ctx, volume.Spec{
		ID: w.UID, Name: w.Name, SizeBytes: w.SizeBytes, Access: w.Access, Limited: w.RequireQuota, Claim: w.Claim,
	}, *from, func(ctx context.Context) error {
		found, unlock, err := c.LeftOvers.Adoptable(ctx, b, w)
		if err != nil {
			return err
		}
		release = unlock
		e.FSUUID, e.Copied = found.FSUUID, found.Copied
		e.Adopted = found.Adopted && w.Mode == volume.ModeDevice // a directory says so itself
		return c.Journal.Put(e)
	})
	defer func() { release() }()
	if err != nil {
		return e, err
	}
	e.Record = &rec
	if e.FSType != "" && (e.FSUUID == "" || w.Mode == volume.ModeDevice) {
		// Only the ledger knew of it, and has lost it since. In the place of a disk there may be
		// another one by now that says the same of itself.
		fsUUID, err := c.LeftOvers.FilesystemOf(ctx, b, e, e.FSType)
		if err != nil {
			return e, err
		}
		if e.FSUUID != "" && !strings.EqualFold(e.FSUUID, fsUUID) {
			return e, fmt.Errorf("volume %s: %w: on the disk is the filesystem %s, and it was %s: %w", w.Name, volume.ErrNotAdoptable, fsUUID, e.FSUUID, volume.ErrIdentity)
		}
		e.FSUUID = fsUUID
	}
	if w.Mode == volume.ModeDevice {
		if err := c.inherit(e); err != nil {
			return e, err
		}
	} else if err := c.Journal.Remove(from.ID); err != nil {
		return e, err
	}
	c.Backends.Touch(e.Pool)
	e.State = ledger.Carved
	return e, nil
}

// inherit has the ledger say that a volume has the disk that a left-over had: at each moment an
// entry of one of the two has it.
func (c *Carver) inherit(e ledger.Entry) error {
	e.State = ledger.Carved
	if err := c.Journal.Put(e); err != nil {
		return err
	}
	return c.Journal.Remove(e.LeftOver.UID)
}

// letGo ends the adoption of a left-over that the volume's object has never said to have: what is
// there is kept, under whichever ID.
func (c *Carver) letGo(ctx context.Context, w Wish) error {
	if w.Mode == volume.ModeDevice {
		return c.letDiskGo(ctx, w.UID)
	}
	b, err := c.Backends.ForExisting(w.Mode, w.Pool)
	if errors.Is(err, ErrPoolNotFound) || errors.Is(err, volume.ErrInvalid) {
		// There is no place where it could be. What the ledger has of it, if anything, is told as
		// left over.
		return nil
	}
	if err != nil {
		return err
	}
	if taker, ok := b.(volume.LeftOverTaker); ok {
		if err := taker.LetGo(ctx, w.UID); err != nil {
			return err
		}
	}
	if err := c.Journal.Remove(w.UID); err != nil {
		return err
	}
	c.Backends.Touch(w.Pool)
	return nil
}

// letDiskGo is letGo for a whole disk, of which only the ledger and its claim say whose it is. If
// the volume has claimed it, it is left over as that one's, and the ledger goes on to have it;
// otherwise it is as it was.
func (c *Carver) letDiskGo(ctx context.Context, uid string) error {
	e, err := c.Journal.Get(uid)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil
	case err != nil:
		return err
	case e.LeftOver == nil:
		return nil
	}
	b, err := c.Backends.ForExisting(volume.ModeDevice, "")
	if err != nil {
		return err
	}
	held, err := b.List(ctx)
	if err != nil {
		return fmt.Errorf("look whether volume %s has its disk: %w", e.Name, err)
	}
	i := slices.IndexFunc(held, func(v volume.Found) bool { return v.ID == uid })
	switch {
	case i < 0 && e.State == ledger.Carving:
		return c.Journal.Remove(uid)
	case i >= 0:
		e.Record = &held[i].Record
	}
	if err := c.inherit(e); err != nil {
		return err
	}
	e.State, e.LeftOver = ledger.Ready, nil
	return c.Journal.Put(e)
}

// EndAdoption lets go of a disk whose adoption by a volume had begun and was never said to be done,
// now that the volume's object was taken away by force: nobody would go on with it, and it would
// keep everybody from the disk.
func (c *Carver) EndAdoption(ctx context.Context, uid string) error {
	return c.withEntry(ctx, uid, func(e ledger.Entry) error {
		if e.Mode != volume.ModeDevice || e.MachineID != c.MachineID {
			return nil
		}
		return c.letDiskGo(ctx, uid)
	})
}

var _ LeftOvers = (*Purger)(nil)

// Adoptable implements LeftOvers, by the same proofs as before a purge.
func (p *Purger) Adoptable(ctx context.Context, b volume.Backend, w Wish) (found ledger.Entry, release func(), err error) {
	from := w.leftOverOf()
	place := PurgePlace{PoolSet: w.Pool, Mode: w.Mode, Backend: b}
	if w.Mode == volume.ModeDevice {
		if err = p.endFormer(ctx, w); err == nil {
			place, err = p.placeOfLeftOver(ctx, b, *from)
		}
	}
	var proven provenLeftOver
	if err == nil {
		proven, release, err = p.proveAdoptable(ctx, place, w, *from)
	}
	if err == nil {
		return proven.entry, release, nil
	}
	if errors.Is(err, errKept) {
		err = fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
	}
	return ledger.Entry{}, nil, fmt.Errorf("adopt left-over %s as volume %s: %w", from.ID, w.Name, err)
}

// endFormer lets go of a disk for a LocalVolume of this name that is gone, as there is another one. The
// caller has the lock of the name.
func (p *Purger) endFormer(ctx context.Context, w Wish) error {
	for _, e := range p.Ledger.All() {
		former := e.UID != w.UID && e.Name == w.Name && e.MachineID == p.Carver.MachineID
		if former && e.Mode == volume.ModeDevice && e.LeftOver != nil {
			if err := p.Carver.letDiskGo(ctx, e.UID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Purger) proveAdoptable(ctx context.Context, place PurgePlace, w Wish, from volume.LeftOver) (found provenLeftOver, release func(), err error) {
	found, err = p.identify(ctx, place, leftOverRequest(from))
	if err != nil {
		return found, nil, err
	}
	l := behind(from.ID, found.names(), found.exam.NameCut, found.entry.Record, place.linksTo(found.entry)...)
	l.adopter = w.UID
	switch {
	case len(l.names) == 0:
		return found, nil, fmt.Errorf("%w: what it was called is not known, so it cannot be told whether a PersistentVolume leads to it", errKept)
	case l.isCalled(w.Name):
		return found, nil, fmt.Errorf("%w: it was called %s, and the LocalVolume that adopts it needs another name", errKept, w.Name)
	}
	// By the first name it is staged and purged. It is not waited for: whoever has it may wait
	// for this volume.
	release, ok := p.Carver.Locks.TryLock(l.names[0])
	if !ok {
		return found, nil, fmt.Errorf("volume %s: %w", l.names[0], errAtWork)
	}
	// Once more, now that nobody can change it.
	if found, err = p.identify(ctx, place, leftOverRequest(from)); err == nil {
		err = p.proveFree(ctx, place, &found, l, w)
	}
	if err != nil {
		release()
		return found, nil, err
	}
	return found, release, nil
}

func leftOverRequest(from volume.LeftOver) v1alpha1.PurgeRequest {
	return v1alpha1.PurgeRequest{UID: from.ID, Kind: v1alpha1.LeftOverVolume, Identity: from.Identity}
}

// proveFree proves that nobody wants or has a left-over, and that it is what the volume asks for.
func (p *Purger) proveFree(ctx context.Context, place PurgePlace, found *provenLeftOver, l leftBehind, w Wish) error {
	switch rec, err := p.records.get(l.uid); {
	case err != nil:
		return fmt.Errorf("%w: %w", errKept, err)
	case rec != nil && rec.State != v1alpha1.PurgePurged:
		return fmt.Errorf("%w: somebody has asked to purge it (%s): withdraw that first", errKept, rec.State)
	}
	encrypted := found.known && found.entry.Encryption != nil
	if place.Mode == volume.ModeDevice && !found.known {
		var err error
		if encrypted, err = p.hasOwnHeader(ctx, *found); err != nil {
			return err
		}
	}
	if encrypted {
		return fmt.Errorf("%w: it is encrypted, and its key slots are named by its UID: copy what is in it on the node", errKept)
	}
	if found.known && found.entry.Access != w.Access {
		return fmt.Errorf("%w: it was of volumeMode %s", errKept, found.entry.Access)
	}
	if place.Mode == volume.ModeDevice && found.entry.Adopted && w.Wipe != volume.WipeNone {
		return fmt.Errorf("%w: the disk was handed over with its data, and is given back with them: spec.wipe must be none", errKept)
	}
	if err := p.proveNobodys(ctx, l); err != nil {
		return err
	}
	if err := p.proveUnused(ctx, place.Backend, v1alpha1.LeftOverVolume, *found); err != nil {
		return err
	}
	was := found.entry.FSUUID
	found.entry.FSUUID = ""
	if w.FSType == "" {
		return nil
	}
	fsUUID, err := p.FilesystemOf(ctx, place.Backend, found.entry, w.FSType)
	if err == nil && place.Mode == volume.ModeDevice && was != "" && !strings.EqualFold(fsUUID, was) {
		err = fmt.Errorf("%w: on the disk is the filesystem %s, and the node's ledger says %s: %w", errKept, fsUUID, was, volume.ErrIdentity)
	}
	found.entry.FSUUID = fsUUID
	return err
}

// FilesystemOf implements LeftOvers.
func (p *Purger) FilesystemOf(ctx context.Context, b volume.Backend, e ledger.Entry, fsType string) (string, error) {
	location, err := b.Locate(ctx, e.UID, *e.Record)
	if err != nil {
		return "", fmt.Errorf("look what is on it: %w", err)
	}
	s, err := p.Filesystems.Inspect(ctx, location.Device)
	switch {
	case errors.Is(err, mount.ErrNoFilesystem):
		return "", fmt.Errorf("%w: no ext4, xfs or btrfs is on it: as it is, it can be a volume of volumeMode Block", volume.ErrNotAdoptable)
	case err != nil:
		return "", fmt.Errorf("look what is on it: %w", err)
	case s.FSType != fsType:
		return "", fmt.Errorf("%w: %s is on it, and spec.fsType is %s", volume.ErrNotAdoptable, s.FSType, fsType)
	case s.UUID == "":
		return "", fmt.Errorf("%w: its %s has no UUID", volume.ErrNotAdoptable, s.FSType)
	}
	return s.UUID, nil
}
