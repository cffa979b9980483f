// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// Journal is what the Carver needs of the ledger.
type Journal interface {
	// Get returns ledger.ErrNotFound when nothing was ever begun; any other error
	// says nothing about the volume.
	Get(uid string) (ledger.Entry, error)
	// Put is durable when it returns nil.
	Put(e ledger.Entry) error
	// Remove is durable when it returns nil.
	Remove(uid string) error
}

// Mounts is what the Carver needs of the host's mounts; *mount.Mounter is it.
type Mounts interface {
	// MountsOf returns every mount point on the host that shows a block device: of its
	// filesystem or of its node.
	MountsOf(ctx context.Context, device string) ([]string, error)
}

// Carver makes, grows and removes the volumes of this node. Every method may be
// called again after being killed at any point, and converges (I7). It is safe for
// concurrent use; calls for one volume wait for each other.
type Carver struct {
	Journal   Journal
	Backends  *Backends
	Formatter Formatter
	Tools     Tools
	Mounts    Mounts
	// MachineID is the host's /etc/machine-id.
	MachineID string
	// Locks by volume name, shared with the CSI node service.
	Locks *Locks
	// Copies finds what volumes begin as copies of.
	Copies *Copies
	// LeftOvers proves that one can be adopted; nil where none can be.
	LeftOvers LeftOvers
	// Encrypted ends encrypted volumes; it may be nil where there are none.
	Encrypted Encrypted
}

// Wish is what a LocalVolume asks for and what its status remembers.
type Wish struct {
	UID    string
	Name   string
	Mode   volume.Mode
	Pool   string
	Access volume.Access
	FSType string
	// MkfsOptions are words for mkfs.
	MkfsOptions []string
	Wipe        volume.WipePolicy
	// SizeBytes of storage: what the encryption takes is part of it.
	SizeBytes  int64
	SelectDisk func(volume.Disk) bool
	// RequireQuota makes the volume only where its size is enforced.
	RequireQuota bool
	// Directory is where a volume of mode hostpath lies; empty for its ID.
	Directory string
	// RetainFor keeps what the volume holds for that long after it was deleted.
	RetainFor time.Duration
	// Claim is the namespace and the name of the claim, with a slash between them; empty for
	// none.
	Claim      string
	Encryption volume.Encryption
	// CopyOf is what the volume begins as a copy of; nil for an empty one.
	CopyOf *CopyOf
	// Progress, if not nil, is told how much of that is copied, where it takes long.
	Progress func(doneBytes, totalBytes int64)
	// Adopt is the disk that is handed over with its filesystem, or the directory with what
	// is in it; nil for a volume that is made.
	Adopt *volume.Adoption

	// Recorded, Formatted, FSUUID and MachineID are what the status says was made. A
	// status can be older than the disk (etcd restored), never newer.
	Recorded  *volume.Record
	Formatted bool
	FSUUID    string
	MachineID string
	// Sealed is what the status says of the encryption; nil when it says nothing.
	Sealed *ledger.Encryption

	// Wanted, if not nil, is asked once nobody else can make or remove the volume, and returns an
	// error unless the LocalVolume still asks for it: a deletion may have been quicker.
	Wanted func(ctx context.Context) error
}

var (
	// errDeletionBegan: the ledger says that the volume's deletion had begun, and the
	// object says that it lives. Its data may be wiped in part.
	errDeletionBegan = errors.New("its deletion had begun before the object was restored; its data must be taken for lost")
	// errRefused marks a refusal that was proven to have left nothing behind.
	errRefused = errors.New("refused, nothing was made")
	// errUnwanted: the LocalVolume is gone or being deleted by now.
	errUnwanted = errors.New("nobody asks for it any more")
)

// Make brings a volume to Ready and returns its entry. A volume that is Ready
// already is verified, not changed: not made again when it is missing
// (volume.ErrNotFound), not formatted again whatever is on it.
//
// An error that wraps errRefused promises that nothing of the volume is on the
// node.
func (c *Carver) Make(ctx context.Context, w Wish) (ledger.Entry, error) {
	unlock, err := c.Locks.Lock(ctx, w.Name)
	if err != nil {
		return ledger.Entry{}, err
	}
	defer unlock()

	if w.Wanted != nil {
		if err := w.Wanted(ctx); err != nil {
			return ledger.Entry{}, fmt.Errorf("make volume %s: %w", w.Name, err)
		}
	}
	e, known, err := c.recall(w)
	if err != nil {
		return ledger.Entry{}, err
	}
	if !known {
		if err := validate(w); err != nil {
			return ledger.Entry{}, fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	if e.State == ledger.Deleting {
		return ledger.Entry{}, fmt.Errorf("volume %s: %w", w.Name, errDeletionBegan)
	}

	find := c.Backends.ForNew
	if known {
		find = c.Backends.ForExisting
	}
	b, err := find(w.Mode, w.Pool)
	if err != nil {
		if !known && (errors.Is(err, ErrPoolNotFound) || errors.Is(err, volume.ErrInvalid)) {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return ledger.Entry{}, err
	}
	switch {
	case e.State == ledger.Ready:
		return c.verify(ctx, b, e)
	case e.LeftOver != nil:
		e, err = c.takeOver(ctx, b, e, w)
	case e.State == ledger.Carving:
		switch {
		case e.Adopted:
			e, err = c.adopt(ctx, b, e, w, known)
		default:
			e, err = c.carve(ctx, b, e, w, known)
		}
	default:
		e, err = c.resume(ctx, b, e, w)
	}
	if err != nil {
		return ledger.Entry{}, err
	}
	return c.finish(ctx, b, e)
}

// recall combines the ledger with the status. Whichever of the two says that the
// volume was handed out is believed. known is false when neither knows anything.
func (c *Carver) recall(w Wish) (e ledger.Entry, known bool, err error) {
	if w.MachineID != "" && w.MachineID != c.MachineID {
		return e, false, madeElsewhere("volume "+w.Name, w.MachineID, c.MachineID)
	}
	e, err = c.Journal.Get(w.UID)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		e = c.newEntry(w)
	case err != nil:
		return e, false, err
	default:
		known = true
	}
	if e.MachineID != c.MachineID {
		return e, false, madeElsewhere("volume "+w.Name, e.MachineID, c.MachineID)
	}
	if err := recallEncryption(&e, w); err != nil {
		return e, false, err
	}
	if w.Recorded == nil {
		return e, known, nil
	}
	if e.Record != nil && !e.Record.SameStorage(*w.Recorded) {
		return e, false, fmt.Errorf("volume %s: the ledger and the status name different storage: %w", w.Name, volume.ErrIdentity)
	}
	if e.Record == nil {
		e.Record = w.Recorded
	}
	if e.State != ledger.Deleting && (w.Formatted || e.FSType == "" || e.LeftOver != nil) {
		e.State, e.LeftOver = ledger.Ready, nil
	} else if e.State == ledger.Carving {
		e.State = ledger.Carved
	}
	return e, true, nil
}

// newEntry is where a volume begins. The UUID of its filesystem is its own UID, so
// that a filesystem of ours is known before it is made.
func (c *Carver) newEntry(w Wish) ledger.Entry {
	e := ledger.Entry{
		SchemaVersion: ledger.SchemaVersion,
		UID:           w.UID, Name: w.Name, MachineID: c.MachineID, State: ledger.Carving,
		Mode: w.Mode, Pool: w.Pool, Access: w.Access, FSType: w.FSType, Wipe: w.Wipe,
		MkfsOptions: w.MkfsOptions,
	}
	switch {
	case w.leftOverOf() != nil:
		// What is on it says which filesystem it is.
		e.LeftOver, e.FSUUID = &ledger.LeftOver{UID: w.Adopt.LeftOver.ID, Identity: w.Adopt.LeftOver.Identity}, w.FSUUID
	case w.Adopt != nil:
		e.Adopted, e.FSUUID = true, w.Adopt.FSUUID
	case w.CopyOf != nil:
		// The filesystem comes with the source, which says which it is. A directory has none
		// of its own.
		e.Copied, e.FSUUID = w.Mode != volume.ModeHostpath, w.FSUUID
	case e.FSType != "":
		e.FSUUID = w.UID
	}
	e.Encryption = newEncryption(w)
	return e
}

func validate(w Wish) error {
	switch w.Mode {
	case volume.ModeLVM, volume.ModeHostpath, volume.ModeDevice:
	default:
		return fmt.Errorf("mode %q is unknown: %w", w.Mode, volume.ErrInvalid)
	}
	if (w.Pool == "") != (w.Mode == volume.ModeDevice) {
		return fmt.Errorf("pool %q in mode %s: %w", w.Pool, w.Mode, volume.ErrInvalid)
	}
	if w.SizeBytes <= 0 {
		return fmt.Errorf("a size of %d bytes: %w", w.SizeBytes, volume.ErrInvalid)
	}
	switch w.Access {
	case volume.AccessBlock:
		if w.Mode == volume.ModeHostpath {
			return fmt.Errorf("mode hostpath has no block volumes: %w", volume.ErrInvalid)
		}
		if w.FSType != "" {
			return fmt.Errorf("filesystem %q on a block volume: %w", w.FSType, volume.ErrInvalid)
		}
	case volume.AccessFilesystem:
		if (w.FSType == "") != (w.Mode == volume.ModeHostpath) {
			return fmt.Errorf("filesystem %q in mode %s: %w", w.FSType, w.Mode, volume.ErrInvalid)
		}
	default:
		return fmt.Errorf("volume mode %q is unknown: %w", w.Access, volume.ErrInvalid)
	}
	if err := validateAdoption(w); err != nil {
		return err
	}
	if w.CopyOf != nil && (w.Mode == volume.ModeDevice || w.Adopt != nil || len(w.MkfsOptions) > 0) {
		return fmt.Errorf("a copy needs mode lvm or hostpath, and neither adopts a disk nor is formatted: %w", volume.ErrInvalid)
	}
	if w.RetainFor < 0 || w.RetainFor > 0 && w.Mode != volume.ModeHostpath {
		return fmt.Errorf("retainFor %s in mode %s: %w", w.RetainFor, w.Mode, volume.ErrInvalid)
	}
	if w.Directory != "" && w.Mode != volume.ModeHostpath {
		return fmt.Errorf("directory %q in mode %s: %w", w.Directory, w.Mode, volume.ErrInvalid)
	}
	if err := validateEncryption(w); err != nil {
		return err
	}
	if err := mount.CheckMkfsOptions(w.FSType, w.MkfsOptions); err != nil {
		return err
	}
	return volume.CheckWipe(w.Mode, w.Wipe)
}

// verify looks whether a volume that was handed out is still there, and renews the
// ledger's entry if it was the status that knew.
func (c *Carver) verify(ctx context.Context, b volume.Backend, e ledger.Entry) (ledger.Entry, error) {
	if _, err := b.Locate(ctx, e.UID, *e.Record); err != nil {
		return ledger.Entry{}, fmt.Errorf("verify volume %s: %w", e.Name, err)
	}
	return e, c.putIfChanged(e)
}

func (c *Carver) putIfChanged(e ledger.Entry) error {
	old, err := c.Journal.Get(e.UID)
	if err == nil && old.State == e.State && old.Record != nil && e.Record != nil && old.Record.SizeBytes == e.Record.SizeBytes && sameSeal(old, e) {
		return nil
	}
	return c.Journal.Put(e)
}

// carve asks the backend for the volume. The source of a copy that waits for others is not
// locked meanwhile.
func (c *Carver) carve(ctx context.Context, b volume.Backend, e ledger.Entry, w Wish, begun bool) (ledger.Entry, error) {
	return inTurn(ctx, func() (ledger.Entry, error) {
		made, err := c.carveNow(ctx, b, e, w, begun)
		if _, waits := errors.AsType[*volume.NoTurn](err); waits {
			e, begun = made, true
		}
		return made, err
	})
}

// carveNow writes the ledger first.
func (c *Carver) carveNow(ctx context.Context, b volume.Backend, e ledger.Entry, w Wish, begun bool) (ledger.Entry, error) {
	var from *volume.Source
	var source copySource
	release := func() {}
	if w.CopyOf != nil {
		opened, unlock, err := c.Copies.open(ctx, w)
		switch {
		case err == nil:
			source, release = opened, unlock
			e.FSUUID, e.Encryption = source.FSUUID, source.copiedEncryption()
		case errors.Is(err, volume.ErrInvalid) && begun && isCopied(ctx, b, e):
			// The ledger has the rest.
			source.ID, source.Snapshot = w.CopyOf.UID, w.CopyOf.Snapshot
		default:
			return e, c.refuse(ctx, b, e, begun, fmt.Errorf("make volume %s: %w", w.Name, err))
		}
		defer release()
		from = &source.Source
		from.Wipe, from.Progress, from.NoWait = cmp.Or(from.Wipe, e.Wipe), w.Progress, true
	} else if err := c.requireMkfs(ctx, e.FSType); err != nil {
		return e, c.refuse(ctx, b, e, begun, fmt.Errorf("make volume %s: %w", w.Name, err))
	}
	if err := c.requireEncryption(ctx, e); err != nil {
		return e, c.refuse(ctx, b, e, begun, fmt.Errorf("make volume %s: %w", w.Name, err))
	}
	if !begun {
		var err error
		if e.Fresh, err = absent(ctx, b, e.UID); err != nil {
			return e, c.refuse(ctx, b, e, begun, fmt.Errorf("make volume %s: %w", w.Name, err))
		}
		if err := c.Journal.Put(e); err != nil {
			return e, err
		}
	}
	resume, err := quiesce(ctx, c.Encrypted, b, source)
	if err != nil {
		return e, fmt.Errorf("make volume %s: %w", w.Name, err)
	}
	letGo := sync.OnceValue(func() error {
		err := resume()
		release()
		return err
	})
	if from != nil {
		from.Secured = func() { _ = letGo() }
	}
	rec, err := b.Create(ctx, volume.Spec{
		ID: w.UID, Name: w.Name, SizeBytes: w.SizeBytes, Access: w.Access, SelectDisk: w.SelectDisk, Fresh: e.Fresh, Source: from,
		Limited: w.RequireQuota, Directory: w.Directory, RetainFor: w.RetainFor, Claim: w.Claim,
	})
	if err := letGo(); err != nil {
		return e, fmt.Errorf("let the source of volume %s go on: %w", w.Name, err)
	}
	if err != nil {
		return e, c.refuse(ctx, b, e, begun, fmt.Errorf("make volume %s: %w", w.Name, err))
	}
	c.Backends.Touch(e.Pool)
	e.Record, e.State = &rec, ledger.Carved
	return e, nil
}

// isCopied reports whether a copy that was begun is whole, so that what it was made of may be
// gone: the agent was killed before the ledger could say so. What is not whole is removed.
func isCopied(ctx context.Context, b volume.Backend, e ledger.Entry) bool {
	s, ok := b.(volume.Snapshotter)
	if !ok || s.AbandonCopy(ctx, e.UID) != nil {
		return false // whoever refuses it looks again, and says what is wrong
	}
	found, err := b.List(ctx)
	return err == nil && slices.ContainsFunc(found, func(f volume.Found) bool { return f.ID == e.UID })
}

// absent reports whether the backend's place is seen to hold no volume of that ID. False
// where the backend has no use for the proof.
func absent(ctx context.Context, b volume.Backend, id string) (bool, error) {
	prover, ok := b.(interface {
		Absent(ctx context.Context, id string) (bool, error)
	})
	if !ok {
		return false, nil
	}
	return prover.Absent(ctx, id)
}

// refuse turns an error of a backend that promises to have made nothing into one
// that proves it: the volume is not among those that the backend holds, and the
// ledger has forgotten it. It looks and does not delete, for what is found there
// may be a volume that only the ledger had lost.
//
// Without the backend's tool nobody can look. Then it is proof enough that nothing had
// begun before: what could not be started now has made nothing.
func (c *Carver) refuse(ctx context.Context, b volume.Backend, e ledger.Entry, begun bool, cause error) error {
	if !errors.Is(cause, volume.ErrNoSpace) && !errors.Is(cause, volume.ErrInvalid) && !errors.Is(cause, volume.ErrToolMissing) {
		return cause
	}
	if s, ok := b.(volume.Snapshotter); ok && (e.Copied || e.Mode == volume.ModeHostpath) && begun {
		// What an earlier attempt has copied was handed to nobody.
		if err := s.AbandonCopy(ctx, e.UID); err != nil {
			return fmt.Errorf("volume %s cannot be made (%s), and what was copied cannot be removed: %w", e.Name, cause.Error(), err)
		}
	}
	found, err := b.List(ctx)
	if errors.Is(err, volume.ErrToolMissing) && errors.Is(cause, volume.ErrToolMissing) && !begun {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("%s; whether anything was made is not known: %w", cause.Error(), err)
	}
	for _, f := range found {
		if f.ID == e.UID {
			// The sentinel is hidden: with something there it is no answer to go elsewhere.
			return fmt.Errorf("volume %s is on the node already and cannot be finished: %s", e.Name, cause.Error())
		}
	}
	if err := c.Journal.Remove(e.UID); err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w: %w", errRefused, cause)
}

// resume takes up a volume whose storage is recorded and that was never handed out.
func (c *Carver) resume(ctx context.Context, b volume.Backend, e ledger.Entry, w Wish) (ledger.Entry, error) {
	if _, err := b.Locate(ctx, e.UID, *e.Record); err != nil {
		if errors.Is(err, volume.ErrNotFound) && w.Recorded == nil {
			// Proven absent and never handed out: begin again, at the next attempt.
			if err := c.Journal.Remove(e.UID); err != nil {
				return e, err
			}
			return e, fmt.Errorf("volume %s vanished before it was finished; it is made anew: %s", e.Name, err.Error())
		}
		return e, fmt.Errorf("take up volume %s: %w", e.Name, err)
	}
	if e.Record.SizeBytes >= w.SizeBytes {
		return e, nil
	}
	rec, err := b.Grow(ctx, e.UID, *e.Record, w.SizeBytes)
	if err != nil {
		return e, fmt.Errorf("grow volume %s: %w", e.Name, err)
	}
	c.Backends.Touch(e.Pool)
	e.Record = &rec
	return e, nil
}

// finish formats where asked and writes Ready. What is encrypted gets its filesystem when
// it is staged first: nobody knows the key before.
func (c *Carver) finish(ctx context.Context, b volume.Backend, e ledger.Entry) (ledger.Entry, error) {
	if e.FSType != "" && !e.Adopted && !e.Copied && e.LeftOver == nil && e.Encryption == nil {
		if err := c.format(ctx, b, &e); err != nil {
			return ledger.Entry{}, err
		}
	}
	e.State, e.LeftOver = ledger.Ready, nil
	if err := c.Journal.Put(e); err != nil {
		return ledger.Entry{}, err
	}
	return e, nil
}

// Grow makes a volume that is Ready at least sizeBytes large and returns its entry.
// The filesystem in it is grown by kubelet's NodeExpandVolume.
func (c *Carver) Grow(ctx context.Context, w Wish) (ledger.Entry, error) {
	unlock, err := c.Locks.Lock(ctx, w.Name)
	if err != nil {
		return ledger.Entry{}, err
	}
	defer unlock()

	e, _, err := c.recall(w)
	if err != nil {
		return ledger.Entry{}, err
	}
	if e.State != ledger.Ready {
		return ledger.Entry{}, fmt.Errorf("grow volume %s in state %s: %w", w.Name, e.State, volume.ErrBusy)
	}
	b, err := c.Backends.ForExisting(w.Mode, w.Pool)
	if err != nil {
		return ledger.Entry{}, err
	}
	rec, err := b.Grow(ctx, e.UID, *e.Record, w.SizeBytes)
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("grow volume %s: %w", w.Name, err)
	}
	c.Backends.Touch(e.Pool)
	e.Record = &rec
	return e, c.putIfChanged(e)
}
