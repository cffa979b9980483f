// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// Delete implements volume.Backend. It returns when the directory is in the trash
// and the promise is gone; what the volume held is removed in the background by
// Run. Of a volume that is retained the directory is kept apart first, unless it is
// empty. One that was adopted is given back: it is kept apart for good. The wipe policy changes nothing; see the package's documentation.
func (b *Backend) Delete(ctx context.Context, id string, rec *volume.Record, _ volume.WipePolicy) error {
	root, p, err := b.find(ctx, id, rec)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := b.discard(root, p); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	b.Kick()
	return nil
}

func (b *Backend) discard(root *os.Root, p promise) error {
	err := requireDir(root, p)
	switch {
	case err == nil:
		if p.TakenFrom != "" {
			if err := b.endTakeOver(root, p); err != nil {
				return err
			}
		}
		if err := b.moveAway(root, p); err != nil {
			return err
		}
	case !errors.Is(err, volume.ErrNotFound): // else it is in the trash, or was never made
		return err
	}
	if p.Path != "" {
		if err := b.removeParents(root, p.Path); err != nil {
			return err
		}
	}
	return b.removePromise(root, p)
}

// removePromise ends a volume, of which nothing else is there, and returns when that is durable.
func (b *Backend) removePromise(root *os.Root, p promise) error {
	if err := b.step("remove promise"); err != nil {
		return err
	}
	if err := b.dropTmp(root, p.file()); err != nil {
		return err
	}
	if err := root.Remove(p.file()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := b.step("sync promises"); err != nil {
		return err
	}
	return syncDir(root, path.Dir(p.file()))
}

// moveAway moves a volume's directory to where it is kept, if it is retained or was adopted,
// and into the trash otherwise.
func (b *Backend) moveAway(root *os.Root, p promise) error {
	if err := b.requireUnused(p.dir()); err != nil {
		return err
	}
	if p.AdoptedFrom != "" {
		return b.giveBack(root, p)
	}
	parent, name := p.parent()
	if p.RetainSeconds > 0 {
		switch empty, err := isEmpty(root, parent, name); {
		case err != nil:
			return err
		case !empty:
			return b.retain(root, p)
		}
	}
	if err := b.unlimit(root, parent, name, p); err != nil {
		return fmt.Errorf("give up the limit of project %d: %w", p.Project, err)
	}
	if err := b.step("move to trash"); err != nil {
		return err
	}
	return b.move(root, parent, name, trashDir, trashName(p.ID))
}

// requireUnused returns ErrInUse when a directory of the root is mounted somewhere, or
// has a mount in it.
func (b *Backend) requireUnused(dir string) error {
	dir, used, err := b.mounted(dir, b.InUse)
	if err != nil {
		return fmt.Errorf("look whether %s is in use: %w", dir, err)
	}
	if used {
		return fmt.Errorf("%s is mounted: %w", dir, volume.ErrInUse)
	}
	return nil
}

// mounted asks a mount table about a directory of the root, and returns how that is called there: a
// table knows no links, and there may be some above the root, as where /srv is a link to var/srv.
func (b *Backend) mounted(dir string, ask func(dir string) (bool, error)) (onHost string, is bool, err error) {
	root, err := b.unlinked()
	if err != nil {
		return path.Join(b.Root, dir), false, err
	}
	onHost = path.Join(root, dir)
	is, err = ask(onHost)
	return onHost, is, err
}

// move moves a name from one directory of the root to another one, where it must be new,
// and returns when that is durable.
func (b *Backend) move(root *os.Root, from, name, to, newName string) error {
	err := withRealDir(root, from, func(fromFD int) error {
		return withRealDir(root, to, func(toFD int) error {
			if err := renameNew(fromFD, name, toFD, newName); err != nil {
				return err
			}
			if err := b.step("sync the move"); err != nil {
				return err
			}
			// The new name first: between the two the directory has both, never none. By their
			// descriptors: who is empty now may be removed already.
			return errors.Join(unix.Fsync(toFD), unix.Fsync(fromFD))
		})
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w: %w", path.Join(b.Root, from, name), volume.ErrInUse, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("move %s: there is a %s already: %w", path.Join(from, name), path.Join(b.Root, to, newName), volume.ErrExists)
	case err != nil:
		return fmt.Errorf("move %s to %s: %w", path.Join(from, name), path.Join(to, newName), err)
	}
	return nil
}

// renameNew renames to a name that must be new (EEXIST). Not every filesystem can say so
// while it renames; there it is looked up before, for nobody but us makes such names.
func renameNew(from int, name string, to int, newName string) error {
	err := unix.Renameat2(from, name, to, newName, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(to, newName, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	return unix.Renameat(from, name, to, newName)
}

// trashName is unique: an ID may be used, and deleted, more than once. So are what is kept
// of it called.
func trashName(id string) string {
	return id + "." + strings.ToLower(rand.Text()[:13])
}
