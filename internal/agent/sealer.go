// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/pkg/luks"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
)

// The keys of the Secret that a StorageClass names for staging.
const (
	// SecretPassphrase is the passphrase of the volume, byte for byte.
	SecretPassphrase = "passphrase"
	// SecretPreviousPassphrase is the one that it takes the place of.
	SecretPreviousPassphrase = "passphrase-previous"
)

// Cryptsetup is what the Sealer needs of the host's LUKS; *luks.Client is it.
type Cryptsetup interface {
	// Header returns luks.ErrNoHeader or luks.ErrDamaged where there is none to use.
	Header(ctx context.Context, device string) (luks.Header, error)
	Format(ctx context.Context, req luks.FormatRequest) error
	Find(ctx context.Context, m luks.Mapping) (luks.Opened, bool, error)
	Open(ctx context.Context, m luks.Mapping, key luks.Key) (luks.Opened, error)
	Resize(ctx context.Context, m luks.Mapping, key luks.Key) (luks.Opened, error)
	Close(ctx context.Context, id string) error
	// Node returns where the volume is open, whatever that lies on; "" when it is not.
	Node(id string) (path string, err error)
	Suspend(m luks.Mapping) error
	Resume(m luks.Mapping) error
	Slot(ctx context.Context, device string, key luks.Key) (int, error)
	AddKey(ctx context.Context, device string, present, added luks.Key) error
	RemoveSlot(ctx context.Context, device string, slot int, key luks.Key) error
	ClearEnds(ctx context.Context, path string) error
	DestroyKeys(ctx context.Context, device string) error
}

// Filesystems is what the Sealer needs of the host's filesystems; *mount.Mounter is it.
type Filesystems interface {
	Mounts
	// Inspect returns mount.ErrNoFilesystem where there is none.
	Inspect(ctx context.Context, device string) (mount.Superblock, error)
}

// SealRecord is what the Sealer needs of the ledger.
type SealRecord interface {
	Get(uid string) (ledger.Entry, error)
	ByName(name string) (ledger.Entry, error)
	// Put is durable when it returns nil.
	Put(e ledger.Entry) error
}

// Sealer encrypts volumes when they are staged first, and opens and closes them. Every
// method may be called again after being killed at any point, and converges (I7). The
// caller holds the volume's lock.
type Sealer struct {
	Ledger      SealRecord
	Cryptsetup  Cryptsetup
	Formatter   Formatter
	Filesystems Filesystems
	// Changed is told of a volume whose status says less than the ledger; it may be nil.
	Changed func(name string)
	Log     *slog.Logger
}

var (
	_ csi.Encryption = (*Sealer)(nil)
	_ Encrypted      = (*Sealer)(nil)
)

// keys are what a Secret holds.
type keys struct{ current, previous luks.Key }

func keysOf(secrets map[string]string) (keys, error) {
	k := keys{current: luks.Key(secrets[SecretPassphrase]), previous: luks.Key(secrets[SecretPreviousPassphrase])}
	if len(k.current) == 0 {
		return keys{}, fmt.Errorf("%w: the volume is encrypted, and the Secret that its StorageClass names for staging has no %q (docs: encrypt)", volume.ErrKey, SecretPassphrase)
	}
	for _, key := range []luks.Key{k.current, k.previous} {
		if len(key) == 0 {
			continue
		}
		if err := key.Validate(); err != nil {
			return keys{}, err
		}
	}
	return k, nil
}

// mappingOf names the open device of a volume whose storage is that device.
func mappingOf(e ledger.Entry, device string) luks.Mapping {
	return luks.Mapping{ID: e.UID, UUID: e.Encryption.UUID, Device: device}
}

// Opened returns where an encrypted volume is open; no device when it is not. It starts no
// program.
func (s *Sealer) Opened(ctx context.Context, e ledger.Entry, device string) (volume.Location, error) {
	opened, ok, err := s.Cryptsetup.Find(ctx, mappingOf(e, device))
	if err != nil || !ok {
		return volume.Location{}, err
	}
	return volume.Location{Device: opened.Path, SizeBytes: opened.SizeBytes}, nil
}

// Open implements csi.Encryption.
func (s *Sealer) Open(ctx context.Context, v csi.Volume, secrets map[string]string) (volume.Location, error) {
	e, err := s.Ledger.Get(v.UID)
	if err != nil {
		return volume.Location{}, err
	}
	device := v.Location.Device
	m := mappingOf(e, device)
	opened, ok, err := s.Cryptsetup.Find(ctx, m)
	if err != nil {
		return volume.Location{}, err
	}
	if ok && opened.Suspended {
		if err := s.Cryptsetup.Resume(m); err != nil {
			return volume.Location{}, err
		}
	}
	if ok && e.Encryption.Seal == ledger.Sealed && opened.SizeBytes >= v.UsableBytes() {
		return volume.Location{Device: opened.Path, SizeBytes: opened.SizeBytes}, nil
	}
	k, err := keysOf(secrets)
	if err != nil {
		return volume.Location{}, err
	}
	switch {
	case e.Encryption.Seal == ledger.Sealed && ok:
		opened, err = s.Cryptsetup.Resize(ctx, m, k.current)
		if errors.Is(err, luks.ErrWrongKey) && len(k.previous) > 0 {
			// The passphrase changes when the volume is opened the next time.
			opened, err = s.Cryptsetup.Resize(ctx, m, k.previous)
		}
	case e.Encryption.Seal == ledger.Sealed:
		opened, err = s.unlock(ctx, &e, m, k)
	default:
		opened, err = s.seal(ctx, e, m, k)
	}
	if err != nil {
		return volume.Location{}, err
	}
	return volume.Location{Device: opened.Path, SizeBytes: opened.SizeBytes}, nil
}

// seal encrypts a volume that no pod had, and formats what is behind the header.
//
// Sealing is written into the ledger only after the storage was found blank, by this
// attempt or an earlier one, so that storage with content never comes to the state in
// which what is on it may be written over.
func (s *Sealer) seal(ctx context.Context, e ledger.Entry, m luks.Mapping, k keys) (luks.Opened, error) {
	opened, err := s.openUnused(ctx, &e, m, k)
	if err != nil {
		return luks.Opened{}, fmt.Errorf("encrypt volume %s: %w", e.Name, err)
	}
	header, err := s.Cryptsetup.Header(ctx, m.Device)
	if err != nil {
		return luks.Opened{}, err
	}
	if err := s.fill(ctx, e, opened.Path); err != nil {
		return luks.Opened{}, fmt.Errorf("format encrypted volume %s: %w", e.Name, err)
	}
	e.Encryption.Seal, e.Encryption.Cipher, e.Encryption.KeyGeneration = ledger.Sealed, header.Cipher, 1
	return opened, s.put(e)
}

// openUnused opens a volume that no pod had, after it made the header where there is none
// that opens with the passphrase.
func (s *Sealer) openUnused(ctx context.Context, e *ledger.Entry, m luks.Mapping, k keys) (luks.Opened, error) {
	if e.Encryption.Seal == ledger.Sealing {
		opened, err := s.openBegun(ctx, m, k)
		if err == nil {
			return opened, nil
		}
		// What a killed attempt has left: no header, a part of one, or one for a passphrase
		// that is not used any more.
		if !errors.Is(err, luks.ErrNoHeader) && !errors.Is(err, luks.ErrDamaged) && !errors.Is(err, luks.ErrWrongKey) && !isUnopenable(ctx, s.Cryptsetup, m) {
			return luks.Opened{}, err
		}
	}
	err := s.Cryptsetup.Format(ctx, luks.FormatRequest{
		Device: m.Device, UUID: m.UUID, Label: e.Name, Key: k.current,
		Begun: e.Encryption.Seal == ledger.Sealing,
		Begin: func(context.Context) error {
			begun := *e
			encryption := *e.Encryption
			encryption.Seal = ledger.Sealing
			begun.Encryption = &encryption
			if err := s.Ledger.Put(begun); err != nil {
				return err
			}
			e.Encryption = &encryption
			return nil
		},
	})
	if err != nil {
		return luks.Opened{}, err
	}
	return s.Cryptsetup.Open(ctx, m, k.current)
}

// openBegun opens what a killed attempt has left. That may have left it open, and the Secret
// may hold another passphrase by now, which would not open it ever again: then it is closed.
func (s *Sealer) openBegun(ctx context.Context, m luks.Mapping, k keys) (luks.Opened, error) {
	opened, open, err := s.Cryptsetup.Find(ctx, m)
	if err != nil {
		return luks.Opened{}, err
	}
	if !open {
		return s.Cryptsetup.Open(ctx, m, k.current)
	}
	_, err = s.Cryptsetup.Slot(ctx, m.Device, k.current)
	if errors.Is(err, luks.ErrWrongKey) {
		if closeErr := s.Cryptsetup.Close(ctx, m.ID); closeErr != nil {
			return luks.Opened{}, closeErr
		}
	}
	return opened, err
}

// isUnopenable reports whether a header is there and none of its slots holds a key yet.
func isUnopenable(ctx context.Context, c Cryptsetup, m luks.Mapping) bool {
	h, err := c.Header(ctx, m.Device)
	return err == nil && len(h.Keyslots) == 0
}

// fill makes what a pod shall find in a volume that none had: the filesystem, or zeroes at
// both ends of a block device.
func (s *Sealer) fill(ctx context.Context, e ledger.Entry, path string) error {
	if e.FSType != "" {
		found, err := s.Filesystems.Inspect(ctx, path)
		switch {
		case err == nil && found.FSType == e.FSType && found.UUID == e.FSUUID && found.Complete:
			return nil // made by an attempt that was killed before it wrote that
		case err != nil && !errors.Is(err, mount.ErrNoFilesystem) && !errors.Is(err, mount.ErrDamaged):
			return err
		}
	}
	// Behind a new header there is noise, which mkfs could take for content.
	if err := s.Cryptsetup.ClearEnds(ctx, path); err != nil {
		return err
	}
	if e.FSType == "" {
		return nil
	}
	return s.Formatter.Format(ctx, mount.FormatRequest{
		Device: path, FSType: e.FSType, UUID: e.FSUUID, Options: e.MkfsOptions, NeverFormatted: true,
	})
}

// unlock opens a volume that may hold data, and lets the passphrase take the place of the
// previous one where only that opens it. Killed at any point, one of the two opens it.
func (s *Sealer) unlock(ctx context.Context, e *ledger.Entry, m luks.Mapping, k keys) (luks.Opened, error) {
	opened, err := s.Cryptsetup.Open(ctx, m, k.current)
	if errors.Is(err, luks.ErrWrongKey) {
		if len(k.previous) == 0 {
			return luks.Opened{}, fmt.Errorf("volume %s: the %q of the Secret does not open it, and the Secret has no %q: %w", e.Name, SecretPassphrase, SecretPreviousPassphrase, err)
		}
		if err := s.addKey(ctx, e, m, k); err != nil {
			return luks.Opened{}, err
		}
		opened, err = s.Cryptsetup.Open(ctx, m, k.current)
	}
	if err != nil {
		return luks.Opened{}, s.explain(*e, err)
	}
	return opened, s.settle(ctx, *e, m, k)
}

// explain says of a header that is not there what that means.
func (s *Sealer) explain(e ledger.Entry, err error) error {
	if errors.Is(err, luks.ErrNoHeader) {
		return fmt.Errorf("volume %s has no LUKS header any more; Berth does not make another one on a volume that may hold data: %w: %w", e.Name, volume.ErrIdentity, err)
	}
	return fmt.Errorf("volume %s: %w", e.Name, err)
}

// addKey gives the passphrase a slot beside the previous one's, of which the ledger has
// the number before.
func (s *Sealer) addKey(ctx context.Context, e *ledger.Entry, m luks.Mapping, k keys) error {
	slot, err := s.Cryptsetup.Slot(ctx, m.Device, k.previous)
	if err != nil {
		return fmt.Errorf("volume %s: neither %q nor %q of the Secret opens it: %w", e.Name, SecretPassphrase, SecretPreviousPassphrase, err)
	}
	encryption := *e.Encryption
	encryption.RetiringSlot = &slot
	e.Encryption = &encryption
	if err := s.Ledger.Put(*e); err != nil {
		return err
	}
	if err := s.Cryptsetup.AddKey(ctx, m.Device, k.previous, k.current); err != nil {
		return fmt.Errorf("change the passphrase of volume %s: %w", e.Name, err)
	}
	return nil
}

// settle ends a change of the passphrase, now that the new one was seen to open the volume.
func (s *Sealer) settle(ctx context.Context, e ledger.Entry, m luks.Mapping, k keys) error {
	if e.Encryption.RetiringSlot == nil {
		return nil
	}
	encryption := *e.Encryption
	slot, err := s.Cryptsetup.Slot(ctx, m.Device, k.current)
	if err != nil {
		return fmt.Errorf("change the passphrase of volume %s: %w", e.Name, err)
	}
	if retiring := *encryption.RetiringSlot; slot != retiring { // otherwise the Secret was set back meanwhile
		if err := s.Cryptsetup.RemoveSlot(ctx, m.Device, retiring, k.current); err != nil {
			return fmt.Errorf("change the passphrase of volume %s: %w", e.Name, err)
		}
		encryption.KeyGeneration++
		s.Log.InfoContext(ctx, "The passphrase of a volume was changed", "volume", e.Name, "keyGeneration", encryption.KeyGeneration)
	}
	encryption.RetiringSlot = nil
	e.Encryption = &encryption
	return s.put(e)
}

// put writes the ledger, and has the status told.
func (s *Sealer) put(e ledger.Entry) error {
	if err := s.Ledger.Put(e); err != nil {
		return err
	}
	if s.Changed != nil {
		s.Changed(e.Name)
	}
	return nil
}

// Grow implements csi.Encryption.
func (s *Sealer) Grow(ctx context.Context, v csi.Volume, secrets map[string]string) (volume.Location, error) {
	if v.Opened.Device == "" {
		return volume.Location{}, fmt.Errorf("volume %s is encrypted and not open: %w", v.Name, volume.ErrBusy)
	}
	return s.Open(ctx, v, secrets)
}

// Close implements csi.Encryption.
func (s *Sealer) Close(ctx context.Context, name string) error {
	return s.close(ctx, name, s.Cryptsetup.Close)
}

// CloseGone implements csi.Encryption.
func (s *Sealer) CloseGone(ctx context.Context, name string) error {
	return s.close(ctx, name, func(ctx context.Context, id string) error {
		err := s.requireUnpublished(ctx, id)
		if err == nil {
			err = s.Cryptsetup.Close(ctx, id)
		}
		if errors.Is(err, volume.ErrInUse) {
			return fmt.Errorf("the disk was pulled out while the volume was used, and what is open on it is still held: the pod that had the volume then must be gone before it can be used again (kubectl delete pod, with --force if it does not end; restart the node if its processes stay): %w", err)
		}
		return err
	})
}

// requireUnpublished returns volume.ErrInUse when the open device of a volume's ID is mounted, or its
// node published. A node keeps nothing open, and another volume could get its number.
func (s *Sealer) requireUnpublished(ctx context.Context, id string) error {
	path, err := s.Cryptsetup.Node(id)
	if err != nil || path == "" {
		return err
	}
	mounts, err := s.Filesystems.MountsOf(ctx, path)
	if err != nil {
		return fmt.Errorf("look for who has %s: %w", path, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is published at %s: %w", path, mounts[0], volume.ErrInUse)
	}
	return nil
}

func (s *Sealer) close(ctx context.Context, name string, closeID func(ctx context.Context, id string) error) error {
	e, err := s.Ledger.ByName(name)
	switch {
	case errors.Is(err, ledger.ErrNotFound), err == nil && e.Encryption == nil:
		return nil
	case err != nil:
		// Which volume it is cannot be told. Its pod must be able to go all the same; what is
		// open stays so until the node restarts or the record is repaired.
		s.Log.WarnContext(ctx, "A volume is not closed, for the ledger cannot be read", "volume", name, "error", err)
		return nil
	}
	return closeID(ctx, e.UID)
}

// ProveClosed implements Encrypted. A device that is published and that nobody happens to
// read is seen in the mount table alone.
func (s *Sealer) ProveClosed(ctx context.Context, e ledger.Entry, device string) error {
	if _, _, err := s.Cryptsetup.Find(ctx, mappingOf(e, device)); err != nil && !errors.Is(err, volume.ErrIdentity) {
		// ErrIdentity: it lies on a device that the volume is not on any more.
		return err
	}
	if err := s.requireUnpublished(ctx, e.UID); err != nil {
		return err
	}
	return s.Cryptsetup.Close(ctx, e.UID)
}

// HasHeader implements Encrypted.
func (s *Sealer) HasHeader(ctx context.Context, e ledger.Entry, device string) (bool, error) {
	switch h, err := s.Cryptsetup.Header(ctx, device); {
	case err == nil && h.UUID == e.Encryption.UUID:
		return true, nil
	case err == nil:
		return false, fmt.Errorf("on %s is the LUKS header %s, and that of volume %s is %s: %w", device, h.UUID, e.Name, e.Encryption.UUID, volume.ErrIdentity)
	case !errors.Is(err, luks.ErrNoHeader):
		return false, err
	}
	switch found, err := s.Filesystems.Inspect(ctx, device); {
	case err == nil:
		return false, fmt.Errorf("on %s is %s %s, and volume %s is encrypted: %w", device, found.FSType, found.UUID, e.Name, volume.ErrIdentity)
	case !errors.Is(err, mount.ErrNoFilesystem):
		return false, err
	}
	return false, nil
}

// DestroyKeys implements Encrypted. A disk that another one has taken the place of, of the same
// serial number, would lose what nobody has asked to delete, so that what is there is looked at.
func (s *Sealer) DestroyKeys(ctx context.Context, e ledger.Entry, device string) (bool, error) {
	switch has, err := s.HasHeader(ctx, e, device); {
	case errors.Is(err, volume.ErrIdentity):
		return false, err
	case err == nil && !has && e.Encryption.Seal == ledger.Unsealed:
		// The ledger may have been lost since, or it never had one.
		return false, nil
	}
	// What cannot be read is what an agent leaves that was killed here.
	if err := s.Cryptsetup.DestroyKeys(ctx, device); err != nil {
		return false, err
	}
	s.Log.InfoContext(ctx, "The key slots of a volume were destroyed", "volume", e.Name, "uid", e.UID)
	return true, nil
}

// Quiesce implements Encrypted: lvm freezes only the filesystem that is right on the
// storage, and this one is on the open device.
func (s *Sealer) Quiesce(ctx context.Context, id string, c ledger.Encryption, device string) (release func() error, err error) {
	m := luks.Mapping{ID: id, UUID: c.UUID, Device: device}
	nothing := func() error { return nil }
	_, ok, err := s.Cryptsetup.Find(ctx, m)
	if err != nil || !ok {
		return nothing, err
	}
	resume := func() error { return s.Cryptsetup.Resume(m) }
	if err := s.Cryptsetup.Suspend(m); err != nil {
		return nothing, errors.Join(err, resume())
	}
	return resume, nil
}

// Recover lets go on what an agent that was killed has held up. locate finds the storage of
// a volume; what it does not find is left to Open.
func (s *Sealer) Recover(ctx context.Context, entries []ledger.Entry, locks csi.Locks, locate func(ctx context.Context, name string) (csi.Volume, error)) {
	for _, e := range entries {
		if e.Encryption == nil || e.Record == nil || ctx.Err() != nil {
			continue
		}
		if err := s.recover(ctx, e, locks, locate); err != nil {
			s.Log.InfoContext(ctx, "Whether an encrypted volume is held up was not found out", "volume", e.Name, "cause", err)
		}
	}
}

func (s *Sealer) recover(ctx context.Context, e ledger.Entry, locks csi.Locks, locate func(ctx context.Context, name string) (csi.Volume, error)) error {
	unlock, err := locks.Lock(ctx, e.Name)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := locate(ctx, e.Name)
	if err != nil {
		return err
	}
	m := mappingOf(e, v.Location.Device)
	opened, ok, err := s.Cryptsetup.Find(ctx, m)
	if err != nil || !ok || !opened.Suspended {
		return err
	}
	return s.Cryptsetup.Resume(m)
}
