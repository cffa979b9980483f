// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.LeftOverTaker = (*Backend)(nil)

// TakeOver implements volume.LeftOverTaker. The directory is renamed to the ID of the volume, also
// one at a path, and keeps its inode, its project and what was promised to it. Before it is moved
// there is a promise of the new ID that says which directory it is; the old one ends when it is
// moved, so that one of the two leads to it at each moment.
func (b *Backend) TakeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (volume.Record, error) {
	p, err := b.takeOver(ctx, spec, from, sure)
	if err != nil {
		return volume.Record{}, fmt.Errorf("take left-over %s over as volume %s: %w", from.ID, spec.Name, err)
	}
	return b.record(p), nil
}

func (b *Backend) takeOver(ctx context.Context, spec volume.Spec, from volume.LeftOver, sure func(context.Context) error) (promise, error) {
	if err := spec.ValidateEmpty(); err != nil {
		return promise{}, err
	}
	if err := volume.ValidateID(from.ID); err != nil {
		return promise{}, err
	}
	if spec.Access == volume.AccessBlock || spec.Directory != "" || spec.RetainFor != 0 || spec.ID == from.ID {
		return promise{}, fmt.Errorf("%w: a directory that is taken over is no block volume, has no path of its own, another ID than before, and is kept as long as it was to be", volume.ErrInvalid)
	}
	root, begun, err := b.find(ctx, spec.ID, nil)
	known := err == nil
	if errors.Is(err, volume.ErrNotFound) {
		root, err = b.open(ctx)
	}
	if err != nil {
		return promise{}, err
	}
	defer closeRoot(root)
	if known {
		if begun.TakenFrom != from.ID {
			return promise{}, fmt.Errorf("the volume is there already, and is not the left-over: %w", volume.ErrIdentity)
		}
		err := requireDir(root, begun)
		if err == nil {
			return begun, b.endTakeOver(root, begun)
		}
		if !errors.Is(err, volume.ErrNotFound) {
			return promise{}, err
		}
	}
	old, next, err := b.examineLeftOver(root, spec, from)
	if err != nil {
		return promise{}, err
	}
	if known && begun.Identity != next.Identity {
		return promise{}, fmt.Errorf("%w: it is another directory now than when it was promised (%s, recorded is %s)", volume.ErrNotAdoptable, next.Identity, begun.Identity)
	}
	if err := sure(ctx); err != nil {
		return promise{}, err
	}
	if err := b.writePromise(root, next); err != nil {
		return promise{}, err
	}
	if err := b.requireUnused(old.dir()); err != nil {
		return promise{}, fmt.Errorf("%w: %w", volume.ErrNotAdoptable, err)
	}
	if err := b.moveOver(root, old, next); err != nil {
		return promise{}, err
	}
	b.Log.Info("A left-over was taken over", "root", b.Root, "volume", next.Name, "from", old.dir(), "of", old.Name, "to", next.dir())
	return next, b.endTakeOver(root, next)
}

// examineLeftOver finds what was promised to a left-over, and what is going to be promised to the
// volume that it becomes. ErrNotAdoptable where it is not what was named, or something depends on
// it.
func (b *Backend) examineLeftOver(root *os.Root, spec volume.Spec, from volume.LeftOver) (old, next promise, err error) {
	old, err = readPromise(root, from.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return old, next, fmt.Errorf("%w: there is no volume %s in %s", volume.ErrNotAdoptable, from.ID, b.Root)
	}
	if err != nil {
		return old, next, err
	}
	next = old
	next.ID, next.Name, next.Claim = spec.ID, spec.Name, cmp.Or(spec.Claim, old.Claim)
	next.Path, next.TakenFrom, next.Family, next.moved = "", from.ID, old.family(), false
	err = withVolume(root, old, func(_, fd int) error {
		if err := requireIdentity(fd, old); err != nil {
			return err
		}
		next.Identity, err = identityOf(fd)
		return err
	})
	if err != nil {
		return old, next, fmt.Errorf("%w: look at %s: %w", volume.ErrNotAdoptable, old.dir(), err)
	}
	if identity := b.identity(old, next.Identity); identity != from.Identity {
		return old, next, fmt.Errorf("%w: it is another one than was named: this is %q, named is %q", volume.ErrNotAdoptable, identity, from.Identity)
	}
	if spec.Limited && !old.counted() {
		return old, next, fmt.Errorf("%w: its size is not enforced", volume.ErrNotAdoptable)
	}
	return old, next, b.requireNoDependents(root, old)
}

// identity is what Examine says of a volume whose directory is that.
func (b *Backend) identity(p promise, directory string) string {
	return b.RootID + "/" + p.dir() + " " + directory
}

// requireNoDependents returns ErrNotAdoptable when there is a snapshot of a volume, which names it
// by its ID, or when a copy of it is not whole yet.
func (b *Backend) requireNoDependents(root *os.Root, old promise) error {
	snapshots, err := b.allSnapshots(root)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if s.Source == old.ID {
			return fmt.Errorf("%w: there is a snapshot of it, %s (%s): delete that first", volume.ErrNotAdoptable, s.Name, s.ID)
		}
	}
	promised, err := b.promises.all(root)
	if err != nil {
		return err
	}
	for _, c := range promised {
		if c.Source != old.ID {
			continue
		}
		if err := requireDir(root, c); errors.Is(err, volume.ErrNotFound) {
			return fmt.Errorf("%w: volume %s (%s) is being made as its copy", volume.ErrNotAdoptable, c.Name, c.ID)
		}
	}
	return nil
}

// moveOver renames a directory to where its new promise has it, and returns when that is durable.
// One that has taken its place meanwhile is moved back.
func (b *Backend) moveOver(root *os.Root, old, next promise) error {
	from, name := old.parent()
	to, newName := next.parent()
	if err := b.step("take over"); err != nil {
		return err
	}
	if err := b.move(root, from, name, to, newName); err != nil {
		return err
	}
	if err := requireDir(root, next); err != nil {
		return errors.Join(fmt.Errorf("%w: it was replaced while it was moved: %s", volume.ErrNotAdoptable, err.Error()),
			b.move(root, to, newName, from, name))
	}
	return nil
}

// endTakeOver removes the promise that a volume had under its former ID, as far as it is there. The
// volume has its directory.
func (b *Backend) endTakeOver(root *os.Root, p promise) error {
	old, err := readPromise(root, p.TakenFrom)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch err := requireDir(root, old); {
	case err == nil:
		return nil // somebody has put another directory there
	case !errors.Is(err, volume.ErrNotFound):
		return err
	}
	// It must be durable that the directory was moved: after a loss of power it could be where only
	// the old promise leads.
	if err := b.syncPlace(root, p); err != nil {
		return err
	}
	if old.Path != "" {
		if err := b.removeParents(root, old.Path); err != nil {
			return err
		}
	}
	return b.removePromise(root, old)
}

// LetGo implements volume.LeftOverTaker.
func (b *Backend) LetGo(ctx context.Context, id string) error {
	root, p, err := b.find(ctx, id, nil)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("let volume %s go: %w", id, err)
	}
	defer closeRoot(root)
	switch err = requireDir(root, p); {
	case p.TakenFrom == "":
		err = fmt.Errorf("it was not taken over: %w", volume.ErrIdentity)
	case err == nil:
		err = b.endTakeOver(root, p)
	case errors.Is(err, volume.ErrNotFound):
		err = b.removePromise(root, p)
	}
	if err != nil {
		return fmt.Errorf("let volume %s go, which lies at %s: %w", id, path.Join(b.Root, p.dir()), err)
	}
	return nil
}
