// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// retained is the record of a deleted volume whose directory is kept. It is written before
// the directory is moved and removed after that is gone, so that a record without a
// directory means nothing, and a directory without a record is nobody's to remove.
type retained struct {
	// Entry names the record and the directory.
	Entry string `json:"entry"`
	// Volume is what it was promised.
	Volume  promise   `json:"volume"`
	Deleted time.Time `json:"deleted"`
	// KeptUntil is for people: by the time of day when it was deleted.
	KeptUntil time.Time `json:"keptUntil"`
	// DueSeconds is when it is removed, by the root's clock.
	DueSeconds int64 `json:"dueSeconds"`
	// TakenBack is when an operator took it back; from then on it is never removed.
	TakenBack *time.Time `json:"takenBack,omitempty"`
}

// Retained is what is kept of a deleted volume.
type Retained struct {
	// Entry names it, also among others of the same volume.
	Entry string
	// Name of the volume, and the namespace and the name of its claim with a slash between
	// them; empty when that was not known.
	Name, Claim string
	// SizeBytes it was promised, which stay promised.
	SizeBytes int64
	// UsedBytes it holds; negative where nobody counts them.
	UsedBytes int64
	// Deleted and KeptUntil are by the time of day when it was deleted. It is removed
	// later than that by as long as nobody looked after the root.
	Deleted, KeptUntil time.Time
	// TakenBack is set when it is kept for good.
	TakenBack bool
	// Directory is where it is on the host.
	Directory string
}

func retainedFile(entry string) string { return retainedRecordDir + "/" + entry + recordSuffix }

// isEntry reports whether a name is one that trashName makes.
func isEntry(name string) bool {
	id, random, ok := strings.Cut(name, ".")
	if !ok || volume.ValidateID(id) != nil || random == "" {
		return false
	}
	return strings.Trim(random, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func readRetained(root *os.Root, entry string) (retained, error) {
	file := retainedFile(entry)
	data, err := root.ReadFile(file)
	if err != nil {
		return retained{}, err
	}
	var r retained
	if err := json.Unmarshal(data, &r); err != nil {
		return retained{}, fmt.Errorf("read %s: %w", file, err)
	}
	if r.Entry != entry || !strings.HasPrefix(entry, r.Volume.ID+".") || r.Volume.SizeBytes <= 0 || r.DueSeconds <= 0 || r.DueSeconds > maxSeconds {
		return retained{}, fmt.Errorf("read %s: it is the record of %q, volume %q of %d bytes, due at %d: %w",
			file, r.Entry, r.Volume.ID, r.Volume.SizeBytes, r.DueSeconds, volume.ErrIdentity)
	}
	return r, nil
}

// allRetained returns the records of all that is kept.
func (b *Backend) allRetained(root *os.Root) ([]retained, error) {
	all, err := b.retained.all(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was ever kept here
	}
	return all, err
}

// counted is what the root's clock shows.
func (b *Backend) counted(root *os.Root) (time.Duration, error) {
	return b.clock.read(root, func() (time.Duration, error) {
		var least time.Duration
		all, err := b.allRetained(root)
		for _, r := range all {
			least = max(least, time.Duration(r.DueSeconds-r.Volume.RetainSeconds)*time.Second)
		}
		return least, err
	})
}

// retain moves the directory of a volume to what is kept.
func (b *Backend) retain(root *os.Root, p promise) error {
	b.retaining.RLock()
	defer b.retaining.RUnlock()
	counted, err := b.counted(root)
	if err != nil {
		return fmt.Errorf("read the clock of %s: %w", b.Root, err)
	}
	for _, dir := range []string{retainedRecordDir, retainedDir} {
		if err := b.step("make " + dir); err != nil {
			return err
		}
		if err := ensureDir(root, dir); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := retained{
		Entry: trashName(p.ID), Volume: p, Deleted: now,
		KeptUntil: now.Add(time.Duration(p.RetainSeconds) * time.Second),
		// Rounded up, for the second that has begun.
		DueSeconds: min(int64(counted/time.Second)+1+p.RetainSeconds, maxSeconds),
	}
	if err := b.writeRetained(root, r); err != nil {
		return err
	}
	if err := b.step("move to what is kept"); err != nil {
		return err
	}
	parent, name := p.parent()
	if err := b.move(root, parent, name, retainedDir, r.Entry); err != nil {
		return err
	}
	b.Log.Info("A deleted volume is kept", "root", b.Root, "volume", p.Name, "claim", p.Claim, "until", r.KeptUntil, "entry", r.Entry)
	return nil
}

// giveBack moves the directory of a volume that was adopted to where nobody removes it. It is
// recorded like one that was taken back, so that it counts until whoever wants it has moved it
// away.
func (b *Backend) giveBack(root *os.Root, p promise) error {
	b.retaining.RLock()
	defer b.retaining.RUnlock()
	for _, dir := range []string{retainedRecordDir, takenBackDir} {
		if err := b.step("make " + dir); err != nil {
			return err
		}
		if err := ensureDir(root, dir); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := retained{Entry: trashName(p.ID), Volume: p, Deleted: now, DueSeconds: 1, TakenBack: &now}
	if err := b.writeRetained(root, r); err != nil {
		return err
	}
	if err := b.step("give back"); err != nil {
		return err
	}
	parent, name := p.parent()
	if err := b.move(root, parent, name, takenBackDir, r.Entry); err != nil {
		return err
	}
	b.Log.Info("A volume that was adopted is deleted, and its directory is kept", "root", b.Root, "volume", p.Name, "claim", p.Claim,
		"adoptedFrom", p.AdoptedFrom, "directory", path.Join(b.Root, takenBackDir, r.Entry))
	return nil
}

func (b *Backend) writeRetained(root *os.Root, r retained) error {
	file := retainedFile(r.Entry)
	if err := b.step("write what is kept"); err != nil {
		return err
	}
	if err := writeFile(root, file, r); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := b.step("record what is kept"); err != nil {
		return err
	}
	if err := root.Rename(file+tmpSuffix, file); err != nil {
		return err
	}
	return syncDir(root, retainedRecordDir)
}

// Retained returns what is kept of deleted volumes, from a complete look.
func (b *Backend) Retained(ctx context.Context) ([]Retained, error) {
	root, err := b.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("list what is kept of deleted volumes: %w", err)
	}
	defer closeRoot(root)
	all, err := b.allRetained(root)
	if err != nil {
		return nil, fmt.Errorf("list what %s keeps of deleted volumes: %w", b.Root, err)
	}
	kept := make([]Retained, 0, len(all))
	for _, r := range all {
		r.Volume.at = path.Join(r.dir(), r.Entry)
		kept = append(kept, Retained{
			Entry: r.Entry, Name: r.Volume.Name, Claim: r.Volume.Claim,
			SizeBytes: r.Volume.SizeBytes, UsedBytes: b.usedBytes(root, r.Volume),
			Deleted: r.Deleted, KeptUntil: r.KeptUntil, TakenBack: r.TakenBack != nil,
			Directory: path.Join(b.Root, r.dir(), r.Entry),
		})
	}
	return kept, nil
}

// dir is where the directory is.
func (r retained) dir() string {
	if r.TakenBack != nil {
		return takenBackDir
	}
	return retainedDir
}

// TakeBack moves what is kept of a deleted volume to a directory of its own, where nobody
// removes it, and returns the path of that on the host. It is named by its entry, or by the
// volume if nothing else is kept of one of that name. It makes no volume of it, keeps its
// limit, and what it was promised stays promised until the directory is removed.
//
// Repeated, it returns the same path, as long as the directory is there. ErrNotFound:
// nothing of that name is kept, or not any more. ErrInvalid: the name means several.
func (b *Backend) TakeBack(ctx context.Context, name string) (dir string, err error) {
	root, err := b.open(ctx)
	if err != nil {
		return "", fmt.Errorf("take back %q: %w", name, err)
	}
	defer closeRoot(root)
	b.retaining.Lock()
	defer b.retaining.Unlock()
	r, err := b.findRetained(root, name)
	if err != nil {
		return "", fmt.Errorf("take back %q: %w", name, err)
	}
	if r.TakenBack == nil {
		now := time.Now().UTC().Truncate(time.Second)
		r.TakenBack = &now
		if err := b.writeRetained(root, r); err != nil {
			return "", fmt.Errorf("take back %q: %w", name, err)
		}
	}
	if err := b.finishTakingBack(root, r); err != nil {
		return "", fmt.Errorf("take back %q: %w", name, err)
	}
	return path.Join(b.Root, takenBackDir, r.Entry), nil
}

// findRetained finds what is kept and is there.
func (b *Backend) findRetained(root *os.Root, name string) (retained, error) {
	all, err := b.allRetained(root)
	if err != nil {
		return retained{}, err
	}
	var found []retained
	for _, r := range all {
		if name != r.Entry && name != r.Volume.Name {
			continue
		}
		switch where, err := b.whereIs(root, r); {
		case err != nil:
			return retained{}, err
		case where != "":
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 0:
		return retained{}, fmt.Errorf("%s keeps nothing of that name: %w", b.Root, volume.ErrNotFound)
	case len(found) > 1:
		return retained{}, fmt.Errorf("%d volumes of that name were deleted, say which by its entry, as %s: %w", len(found), found[0].Entry, volume.ErrInvalid)
	}
	return found[0], nil
}

// whereIs returns the directory in which what is kept lies; "" when it is in none.
func (b *Backend) whereIs(root *os.Root, r retained) (dir string, err error) {
	for _, dir := range []string{retainedDir, takenBackDir} {
		if dir == takenBackDir && r.TakenBack == nil {
			continue
		}
		err := withRealDir(root, dir, func(parent int) error {
			fd, err := openDir(parent, r.Entry)
			if err == nil {
				closeFD(fd)
			}
			return err
		})
		switch {
		case err == nil:
			return dir, nil
		case !errors.Is(err, unix.ENOENT):
			return "", fmt.Errorf("look at %s: %w", path.Join(b.Root, dir, r.Entry), err)
		}
	}
	return "", nil
}

// finishTakingBack moves the directory of what was taken back, unless that is done.
func (b *Backend) finishTakingBack(root *os.Root, r retained) error {
	where, err := b.whereIs(root, r)
	if err != nil || where != retainedDir {
		return err
	}
	if err := b.requireUnused(path.Join(retainedDir, r.Entry)); err != nil {
		return err
	}
	if err := b.step("make " + takenBackDir); err != nil {
		return err
	}
	if err := ensureDir(root, takenBackDir); err != nil {
		return fmt.Errorf("make %s: %w", takenBackDir, err)
	}
	if err := b.step("take back"); err != nil {
		return err
	}
	if err := b.move(root, retainedDir, r.Entry, takenBackDir, r.Entry); err != nil {
		return err
	}
	b.Log.Info("A deleted volume was taken back", "root", b.Root, "volume", r.Volume.Name, "claim", r.Volume.Claim,
		"directory", path.Join(b.Root, takenBackDir, r.Entry))
	return nil
}
