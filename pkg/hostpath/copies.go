// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

const (
	// treeName and linksName are what is in an entry of copiesDir: the copy, and one name
	// more of each file in it that has several.
	treeName  = "tree"
	linksName = "links"
)

// atOnce bounds how many trees are copied at once, of all roots: each holds descriptors by
// its depth, and they share the disks with everybody else.
var atOnce = make(chan struct{}, 2)

// copying are the entries of copiesDir that a call of this process is at work on.
type copying struct {
	mu      sync.Mutex
	entries map[string]bool
}

func (c *copying) begin(entry string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]bool{}
	}
	c.entries[entry] = true
}

func (c *copying) end(entry string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, entry)
}

func (c *copying) has(entry string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[entry]
}

// createCopy makes a volume that begins as a copy, or finds it. What promises that nothing was
// made leaves no promise either.
func (b *Backend) createCopy(ctx context.Context, root *os.Root, p promise, spec volume.Spec) (promise, error) {
	source := *spec.Source
	if p.SizeBytes > 0 && p.Source != source.ID {
		return p, fmt.Errorf("it began as a copy of %q, and a copy of %s is asked for: %w", p.Source, source.ID, volume.ErrExists)
	}
	p.Source = source.ID
	made, err := b.fulfil(ctx, root, p, spec.SizeBytes, source)
	if err != nil {
		return p, b.dropUnmade(root, p, err)
	}
	return made, nil
}

// fulfil brings a copy to where it was promised, and to its size.
func (b *Backend) fulfil(ctx context.Context, root *os.Root, p promise, sizeBytes int64, source volume.Source) (promise, error) {
	err := requireDir(root, p)
	switch {
	case err == nil:
		// It is whole. What it was copied of may have changed since, or be gone.
		if p, err = b.promise(ctx, root, p, sizeBytes); err != nil {
			return p, err
		}
		return p, errors.Join(b.limit(root, p), b.syncPlace(root, p))
	case !errors.Is(err, volume.ErrNotFound):
		return p, err
	}
	from, err := b.sourceOf(root, source)
	if err != nil {
		return p, err
	}
	if from.SizeBytes > sizeBytes {
		return p, fmt.Errorf("%w: %d bytes are asked for, and what it is to be a copy of has %d", volume.ErrInvalid, sizeBytes, from.SizeBytes)
	}
	switch err := b.checkCopies(root); {
	case errors.Is(err, ErrNoCopies):
		return p, fmt.Errorf("%w: %w", volume.ErrInvalid, err)
	case err != nil:
		return p, err
	}
	if err := b.requireUnwritten(root, from); err != nil {
		return p, err
	}
	p.Family = from.family()
	p, release, err := b.chooseProject(root, p)
	if err != nil {
		return p, err
	}
	defer release()
	if p, err = b.promise(ctx, root, p, sizeBytes); err != nil {
		return p, err
	}
	return p, b.copyTree(ctx, root, from, p, source)
}

// dropUnmade drops what was promised to a copy that is not there, if the error means that
// nothing was made. Any other error is returned as it is; see takeBack.
func (b *Backend) dropUnmade(root *os.Root, p promise, err error) error {
	if !errors.Is(err, volume.ErrNoSpace) && !errors.Is(err, volume.ErrInvalid) && !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	if _, readErr := p.read(root); errors.Is(readErr, fs.ErrNotExist) {
		return err
	}
	if dirErr := requireDir(root, p); !errors.Is(dirErr, volume.ErrNotFound) {
		return err // it is whole, and what failed was to make it larger
	}
	if dropErr := b.discard(root, p); dropErr != nil {
		return fmt.Errorf("%s; take the promise back: %s", err.Error(), dropErr.Error())
	}
	return err
}

// sourceOf returns the promise of what is to be copied, which must be there.
func (b *Backend) sourceOf(root *os.Root, source volume.Source) (promise, error) {
	if err := volume.ValidateID(source.ID); err != nil {
		return promise{}, err
	}
	from, err := promise{ID: source.ID, Snapshot: source.Snapshot}.read(root)
	if errors.Is(err, fs.ErrNotExist) {
		return promise{}, fmt.Errorf("what it is to be a copy of, %s: %w", source.ID, volume.ErrNotFound)
	}
	if err != nil {
		return promise{}, err
	}
	if source.Record.Mode != volume.ModeHostpath || source.Record.Hostpath == nil {
		return promise{}, fmt.Errorf("the record of what it is to be a copy of is of mode %q: %w", source.Record.Mode, volume.ErrInvalid)
	}
	if err := b.requireRecordOf(from, &source.Record); err != nil {
		return promise{}, err
	}
	if err := requireDir(root, from); err != nil {
		return promise{}, fmt.Errorf("what it is to be a copy of: %w", err)
	}
	return from, nil
}

// requireUnwritten returns ErrInvalid when somebody could write to a volume while its files
// are copied.
func (b *Backend) requireUnwritten(root *os.Root, from promise) error {
	if from.Snapshot {
		return nil // nobody but us ever gets it
	}
	if whole, err := b.isSubvolume(root, from); err != nil || whole {
		return err
	}
	dir, written, err := b.mounted(from.dir(), b.Written)
	if err != nil {
		return fmt.Errorf("look whether %s is mounted for writing: %w", dir, err)
	}
	if written {
		return fmt.Errorf("%w: volume %s is mounted so that a pod can write to it, and its files are copied one after another, which would mix what they hold at different times: stop the pods that write to it and try again, or use a pool on a btrfs, or mode lvm, whose volumes are copied while they are used",
			volume.ErrInvalid, from.Name)
	}
	return nil
}

// copyTree makes a copy out of sight and renames it into its place.
func (b *Backend) copyTree(ctx context.Context, root *os.Root, from, p promise, source volume.Source) error {
	whole, err := b.isSubvolume(root, from)
	if err != nil {
		return err
	}
	if whole {
		return b.build(root, p, func(work int) error { return b.copyWhole(root, work, from, p) })
	}
	letGo, err := takeTurn(ctx, source.NoWait)
	if err != nil {
		return err
	}
	defer letGo()
	return b.build(root, p, func(work int) error { return b.copyInto(ctx, root, work, from, p, source.Progress) })
}

// takeTurn waits until a tree may be copied, or returns a volume.NoTurn.
func takeTurn(ctx context.Context, noWait bool) (letGo func(), err error) {
	letGo = func() { <-atOnce }
	if noWait {
		select {
		case atOnce <- struct{}{}:
			return letGo, nil
		default:
			return nil, &volume.NoTurn{Await: awaitTurn}
		}
	}
	select {
	case atOnce <- struct{}{}:
		return letGo, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func awaitTurn(ctx context.Context) error {
	letGo, err := takeTurn(ctx, false)
	if err == nil {
		letGo()
	}
	return err
}

// build has a directory filled out of sight, in which a volume or snapshot is called treeName
// then, and renames that into its place.
func (b *Backend) build(root *os.Root, p promise, fill func(work int) error) (err error) {
	entry := trashName(p.ID)
	b.copying.begin(entry)
	defer func() {
		b.copying.end(entry)
		if err != nil {
			b.Kick() // what is left of it is swept up
		}
	}()
	if err := b.step("make the place of a copy"); err != nil {
		return err
	}
	for _, dir := range []string{copiesDir, path.Join(copiesDir, entry)} {
		if err := ensureDir(root, dir); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	work := path.Join(copiesDir, entry)
	if err := withRealDir(root, work, fill); err != nil {
		return err
	}
	if err := b.limitAt(root, work, treeName, p); err != nil {
		return err
	}
	if err := b.place(root, work, p); err != nil {
		return err
	}
	if err := b.step("remove the place of a copy"); err != nil {
		return err
	}
	if err := root.Remove(work); err != nil {
		b.Kick()
		b.Log.Warn("What a copy was made in is swept up later", "root", b.Root, "entry", entry, "error", err)
	}
	return nil
}

// copyInto makes a whole and durable copy of a tree in an open directory, with the project of
// its volume.
func (b *Backend) copyInto(ctx context.Context, root *os.Root, work int, from, p promise, progress func(done, total int64)) error {
	if err := unix.Mkdirat(work, linksName, freshMode); err != nil {
		return fmt.Errorf("make a place for the copy: %w", outOfSpace(err))
	}
	tree, err := b.makeTree(root, work)
	if err != nil {
		return err
	}
	defer closeFD(tree)
	if err := b.unlimited(root, p); err != nil {
		return err
	}
	if err := b.assign(tree, p); err != nil {
		return err
	}
	if err := b.copyContent(ctx, root, work, tree, from, b.counting(root, from, progress)); err != nil {
		return err
	}
	if err := b.step("sync the copy"); err != nil {
		return err
	}
	if err := b.syncAll(tree); err != nil {
		return fmt.Errorf("write the copy to the disk: %w", outOfSpace(err))
	}
	// As it was before: nobody has written to it, and nothing of it was removed.
	if err := b.requireUnwritten(root, from); err != nil {
		return err
	}
	return b.identifyCopy(root, tree, &p)
}

// copyWhole makes a copy of a subvolume in an open directory.
func (b *Backend) copyWhole(root *os.Root, work int, from, p promise) error {
	if err := b.snapshotInto(root, work, from); err != nil {
		return err
	}
	tree, err := openDir(work, treeName)
	if err != nil {
		return err
	}
	defer closeFD(tree)
	return b.identifyCopy(root, tree, &p)
}

// copyContent copies the tree, and lets go of what was needed for that alone.
func (b *Backend) copyContent(ctx context.Context, root *os.Root, work, tree int, from promise, copied func()) error {
	links, err := openDir(work, linksName)
	if err != nil {
		return err
	}
	defer closeFD(links)
	err = withVolume(root, from, func(parent, fd int) error {
		if err := requireIdentity(fd, from); err != nil {
			return err
		}
		var before, after unix.Stat_t
		if err := unix.Fstat(fd, &before); err != nil {
			return err
		}
		c := treeCopy{clone: b.Clone, step: b.step, links: links, copied: copied}
		if err := c.content(ctx, fd, tree, 0); err != nil {
			return err
		}
		if err := attributes(fd, &before, work, treeName); err != nil {
			return fmt.Errorf("copy the volume's directory: %w", outOfSpace(err))
		}
		// A deletion moves it away before it removes anything of it.
		_, name := from.parent()
		err := unix.Fstatat(parent, name, &after, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && (before.Dev != after.Dev || before.Ino != after.Ino) {
			err = unix.ESTALE
		}
		if err != nil {
			return errChanged(from.dir(), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r := remover{trash: work, up: work, entry: linksName, step: b.step, subvolumes: b.Subvolumes, leaving: noGroups, pace: newPace(unpaced), removed: func(int) {}}
	return r.remove(ctx, work, linksName, 0)
}

// unpaced is as fast as it can be.
const unpaced = 1 << 30

// counting returns what is to be called for each file of a copy. How many there are is known
// where the filesystem counts them.
func (b *Backend) counting(root *os.Root, from promise, progress func(done, total int64)) func() {
	var total, done int64
	if progress != nil && from.Project != 0 && b.checkLimits(root) == nil {
		_ = withDir(root, volumesDir, func(dir int) error {
			u, err := b.Quotas.Usage(dir, from.Project)
			total = u.Inodes
			return err
		})
	}
	return func() {
		if done++; total > 0 && done%batchEntries == 0 {
			progress(min(done, total), total)
		}
	}
}

// unlimited takes the limit of a project away that an earlier call may have set: what a copy
// has is what its source had, which was within it, save for the blocks that the filesystem
// needs to say where they are.
func (b *Backend) unlimited(root *os.Root, p promise) error {
	p.SizeBytes = 0
	return b.limitProject(root, p) // a subvolume that is new has no limit
}

// identifyCopy is identify for a directory that is not in its place yet.
func (b *Backend) identifyCopy(root *os.Root, fd int, p *promise) error {
	if err := b.identify(root, fd, *p); err != nil || p.Path == "" {
		return err
	}
	identity, err := identityOf(fd)
	p.Identity = identity
	return err
}

// place renames a whole copy to where it was promised.
func (b *Backend) place(root *os.Root, work string, p promise) error {
	if p.Path != "" {
		b.naming.Lock() // until it is there: directories in which nothing is are removed
		defer b.naming.Unlock()
		if err := b.makeNames(root, p.Path, 1); err != nil {
			return outOfSpace(err)
		}
	}
	if err := b.step("place the copy"); err != nil {
		return err
	}
	parent, name := p.parent()
	return b.move(root, work, treeName, parent, name)
}

// syncPlace makes durable that a directory is in its place: a killed call may have renamed it.
func (b *Backend) syncPlace(root *os.Root, p promise) error {
	if err := b.step("sync the place"); err != nil {
		return err
	}
	return withVolume(root, p, func(parent, _ int) error { return unix.Fsync(parent) })
}

// AbandonCopy implements volume.Snapshotter.
func (b *Backend) AbandonCopy(ctx context.Context, id string) error {
	root, p, err := b.find(ctx, id, nil)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("abandon the copy to volume %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := requireDir(root, p); p.Source == "" || !errors.Is(err, volume.ErrNotFound) {
		return nil // a volume
	}
	if err := b.discard(root, p); err != nil {
		return fmt.Errorf("abandon the copy to volume %s: %w", id, err)
	}
	return nil
}

// sweepCopies moves into the trash what calls have left that came to no end.
func (b *Backend) sweepCopies(ctx context.Context) error {
	root, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer closeRoot(root)
	names, err := readNames(root, copiesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever copied here
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		if b.copying.has(name) || !isEntry(name) {
			continue
		}
		if err := b.step("sweep up a copy"); err != nil {
			return err
		}
		if err := b.move(root, copiesDir, name, trashDir, name); err != nil && !errors.Is(err, unix.ENOENT) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
