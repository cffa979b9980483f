// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/berth-dev/berth/internal/durable"
)

var (
	// ErrNotFound: the ledger has no file for the volume. Nothing was ever begun
	// here, as far as this disk can tell.
	ErrNotFound = errors.New("not in the ledger")
	// ErrCorrupt: there is a file and it cannot be understood. Nothing may be
	// concluded from it but that the volume exists.
	ErrCorrupt = errors.New("ledger file is damaged")
)

const suffix = ".json"

// Ledger is the set of entries in one directory. Reads are answered from memory
// and never wait for a write; writes of different volumes do not wait for each
// other. The caller never writes one volume from two places at once.
type Ledger struct {
	dir string

	// entries maps a UID to an Entry or, for a damaged file, to an error.
	entries sync.Map
}

// Open reads every entry of dir, which is made when it is missing. A damaged file
// does not fail Open, for the other volumes of the node go on; it is reported by
// Get, ByName and Damaged.
func Open(dir string) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make ledger: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	l := &Ledger{dir: dir}
	for _, f := range files {
		if durable.IsTemporary(f.Name()) {
			// Left behind by a crash before the rename: it never counted.
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, fmt.Errorf("clean ledger: %w", err)
			}
			continue
		}
		uid, isEntry := strings.CutSuffix(f.Name(), suffix)
		if !isEntry || !uidPattern.MatchString(uid) {
			continue
		}
		e, err := l.read(uid)
		if err != nil {
			l.entries.Store(uid, err)
			continue
		}
		l.entries.Store(uid, e)
	}
	return l, nil
}

func (l *Ledger) path(uid string) string { return filepath.Join(l.dir, uid+suffix) }

func (l *Ledger) read(uid string) (Entry, error) {
	path := l.path(uid)
	data, err := os.ReadFile(path)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	e, err := Decode(data)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
	}
	if e.UID != uid {
		return Entry{}, fmt.Errorf("%w: %s: names the volume %s", ErrCorrupt, path, e.UID)
	}
	return e, nil
}

// Get returns the entry of a UID, ErrNotFound, or ErrCorrupt with the file's name.
func (l *Ledger) Get(uid string) (Entry, error) {
	v, ok := l.entries.Load(uid)
	if !ok {
		return Entry{}, fmt.Errorf("volume %s: %w", uid, ErrNotFound)
	}
	switch v := v.(type) {
	case Entry:
		return clone(v), nil
	case error:
		return Entry{}, v
	}
	return Entry{}, fmt.Errorf("volume %s: %w: %T is remembered", uid, ErrCorrupt, v)
}

// ByName returns the entry of a LocalVolume's name. When two entries have the name
// (the object was deleted by force and made anew), the one that is not Deleting is
// meant. ErrNotFound is only returned when no damaged file could be the one.
func (l *Ledger) ByName(name string) (Entry, error) {
	var found []Entry
	var damaged error
	l.entries.Range(func(_, v any) bool {
		switch v := v.(type) {
		case Entry:
			if v.Name == name {
				found = append(found, v)
			}
		case error:
			damaged = errors.Join(damaged, v)
		}
		return true
	})
	live := slices.DeleteFunc(slices.Clone(found), func(e Entry) bool { return e.State == Deleting })
	switch {
	case len(live) == 1:
		return clone(live[0]), nil
	case len(live) > 1:
		return Entry{}, fmt.Errorf("%w: %d volumes are named %s", ErrCorrupt, len(live), name)
	case len(found) > 0:
		return clone(found[0]), nil
	case damaged != nil:
		return Entry{}, damaged
	}
	return Entry{}, fmt.Errorf("volume %s: %w", name, ErrNotFound)
}

// All returns every entry that can be read, in no particular order.
func (l *Ledger) All() []Entry {
	var all []Entry
	l.entries.Range(func(_, v any) bool {
		if e, ok := v.(Entry); ok {
			all = append(all, clone(e))
		}
		return true
	})
	return all
}

// Damaged returns one error per file that cannot be understood, each naming it.
func (l *Ledger) Damaged() []error {
	var errs []error
	l.entries.Range(func(_, v any) bool {
		if err, ok := v.(error); ok {
			errs = append(errs, err)
		}
		return true
	})
	return errs
}

// Put writes the entry durably: when it returns nil, the entry is there after a
// loss of power. After an error either the old or the new one is on the disk; the
// old one is what Get goes on to return. A damaged entry is never overwritten, and
// a volume that was Ready never becomes one that may be formatted.
func (l *Ledger) Put(e Entry) error {
	e.SchemaVersion = SchemaVersion
	old, err := l.Get(e.UID)
	switch {
	case err == nil:
		if err := allowed(old, e); err != nil {
			return fmt.Errorf("record volume %s: %w", e.Name, err)
		}
	case !errors.Is(err, ErrNotFound):
		return err
	}
	data, err := Encode(e)
	if err != nil {
		return fmt.Errorf("record volume %s: %w", e.Name, err)
	}
	if err := durable.WriteFile(l.path(e.UID), data, 0o600); err != nil {
		return fmt.Errorf("record volume %s: %w", e.Name, err)
	}
	l.entries.Store(e.UID, clone(e))
	return nil
}

// allowed guards the one-way doors of a volume's life, whatever a caller's mistake.
func allowed(old, e Entry) error {
	order := map[State]int{Carving: 0, Carved: 1, Formatting: 2, Ready: 3, Deleting: 4}
	if order[e.State] < order[old.State] {
		return fmt.Errorf("state %s cannot follow %s", e.State, old.State)
	}
	if old.Mode != e.Mode || old.Pool != e.Pool || old.MachineID != e.MachineID {
		return fmt.Errorf("mode, pool and machine cannot change from %s/%s/%s to %s/%s/%s",
			old.Mode, old.Pool, old.MachineID, e.Mode, e.Pool, e.MachineID)
	}
	if old.Record != nil && (e.Record == nil || !old.Record.SameStorage(*e.Record)) {
		return errors.New("the record cannot come to name other storage")
	}
	return allowedEncryption(old, e)
}

// Remove forgets a volume durably. It returns nil when there is no entry. A damaged
// entry is not removed: an operator looks at it first.
func (l *Ledger) Remove(uid string) error {
	switch _, err := l.Get(uid); {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	if err := durable.Remove(l.path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget volume %s: %w", uid, err)
	}
	l.entries.Delete(uid)
	return nil
}

// clone keeps callers from changing what is remembered through the pointers.
func clone(e Entry) Entry {
	if e.Limits != nil {
		limits := *e.Limits
		e.Limits = &limits
	}
	if e.Encryption != nil {
		encryption := *e.Encryption
		if slot := encryption.RetiringSlot; slot != nil {
			number := *slot
			encryption.RetiringSlot = &number
		}
		e.Encryption = &encryption
	}
	if e.LeftOver != nil {
		leftOver := *e.LeftOver
		e.LeftOver = &leftOver
	}
	if e.Record == nil {
		return e
	}
	r := *e.Record
	if r.LVM != nil {
		v := *r.LVM
		r.LVM = &v
	}
	if r.Device != nil {
		v := *r.Device
		r.Device = &v
	}
	if r.Hostpath != nil {
		v := *r.Hostpath
		r.Hostpath = &v
	}
	e.Record = &r
	return e
}
