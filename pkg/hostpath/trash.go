// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TrashOptions bound and observe the removal of deleted volumes.
type TrashOptions struct {
	// EntriesPerSecond is how many files and directories are removed in a second at
	// most, so that the neighbours on the filesystem keep theirs; 0 means 10,000.
	EntriesPerSecond int
	// RetryMin and RetryMax bound the time until what could not be removed is tried
	// again; it doubles from one to the other. 0 means 10 s and 15 min.
	RetryMin, RetryMax time.Duration
	// Observer is told how the removal goes; nil for nobody.
	Observer TrashObserver
}

// TrashObserver is told how the removal goes, for metrics. Its methods must not
// block.
type TrashObserver interface {
	// TrashWaiting tells how many deleted volumes are in the trash of a root.
	TrashWaiting(root string, volumes int)
	// TrashRemoved tells of files and directories that are gone.
	TrashRemoved(root string, entries int)
	// TrashFailed tells of a volume that could not be removed.
	TrashFailed(root string, err error)
}

func (o *TrashOptions) setDefaults() {
	if o.EntriesPerSecond <= 0 {
		o.EntriesPerSecond = 10_000
	}
	if o.RetryMin <= 0 {
		o.RetryMin = 10 * time.Second
	}
	if o.RetryMax < o.RetryMin {
		o.RetryMax = max(15*time.Minute, o.RetryMin)
	}
	if o.Observer == nil {
		o.Observer = noObserver{}
	}
}

// Kick makes Run look into the trash now. It does not block.
func (b *Backend) Kick() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Run removes what is in the trash until the context ends, beginning with what an
// earlier process has left. It wakes up for kicks and retries, and for nothing
// else.
func (b *Backend) Run(ctx context.Context) error {
	retry := b.Trash.RetryMin
	for ctx.Err() == nil {
		err := b.emptyTrash(ctx)
		var wait <-chan time.Time
		switch {
		case err == nil:
			retry = b.Trash.RetryMin
		case ctx.Err() != nil:
			return nil
		default:
			b.Log.Warn("the trash could not be emptied", "root", b.Root, "retryAfter", retry, "error", err)
			b.Trash.Observer.TrashFailed(b.Root, err)
			timer := time.NewTimer(retry)
			defer timer.Stop()
			wait = timer.C
			retry = min(2*retry, b.Trash.RetryMax)
		}
		select {
		case <-ctx.Done():
		case <-b.kick:
		case <-wait:
		}
	}
	return nil
}

// emptyTrash removes everything that is in the trash of the root, if it is the
// pool's. What fails is left, and the rest goes on.
func (b *Backend) emptyTrash(ctx context.Context) error {
	root, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	var failed []error
	tried := map[string]bool{}
	for {
		// Read again after each round: what lies too deep was moved up here, and more
		// may have been deleted.
		names, err := readNames(root, trashDir)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		b.Trash.Observer.TrashWaiting(b.Root, len(names))
		fresh := 0
		for _, name := range names {
			if tried[name] {
				continue
			}
			fresh++
			if err := b.removeFromTrash(ctx, root, name); err != nil {
				tried[name] = true
				failed = append(failed, err)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		if fresh == 0 {
			return errors.Join(failed...)
		}
	}
}

func (b *Backend) removeFromTrash(ctx context.Context, root *os.Root, name string) error {
	return withDir(root, trashDir, func(trash int) error {
		r := remover{
			ctx: ctx, trash: trash, entry: name, step: b.step,
			pace:    newPace(b.Trash.EntriesPerSecond),
			removed: func(entries int) { b.Trash.Observer.TrashRemoved(b.Root, entries) },
		}
		if err := r.remove(trash, name, 0); err != nil {
			return fmt.Errorf("remove %s: %w", path.Join(b.Root, trashDir, name), err)
		}
		return nil
	})
}

type noObserver struct{}

func (noObserver) TrashWaiting(string, int)  {}
func (noObserver) TrashRemoved(string, int)  {}
func (noObserver) TrashFailed(string, error) {}

// pace keeps to a rate over the whole of its life, in batches.
type pace struct {
	perSecond int
	start     time.Time
	done      int
}

// batchEntries are removed between two looks at the clock.
const batchEntries = 256

func newPace(perSecond int) *pace { return &pace{perSecond: perSecond, start: time.Now()} }

// wait is called once per entry, and sleeps when the batch came too early.
func (p *pace) wait(ctx context.Context) error {
	p.done++
	if p.done%min(batchEntries, p.perSecond) != 0 {
		return nil
	}
	due := p.start.Add(time.Duration(p.done) * time.Second / time.Duration(p.perSecond))
	early := time.Until(due)
	if early <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(early)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remover removes one entry of the trash with everything below it. Every name is
// looked up in an open directory, without following a link or crossing a mount
// point, so that nothing outside can be reached, whatever a process that still
// has the directory open does to it meanwhile.
type remover struct {
	ctx     context.Context
	trash   int    // the descriptor of the trash
	entry   string // what is removed
	step    func(string) error
	pace    *pace
	removed func(entries int)
}

// maxDepth of directories is walked with one descriptor each. What lies deeper is
// moved up into the trash and removed from there.
const maxDepth = 64

// maxRounds bounds the attempts at a directory into which somebody keeps writing.
const maxRounds = 16

// remove removes a name of an open directory. It returns nil when it is gone.
func (r *remover) remove(parent int, name string, depth int) error {
	if err := r.pace.wait(r.ctx); err != nil {
		return err
	}
	if err := r.step("remove from trash"); err != nil {
		return err
	}
	// Linux says EISDIR for a directory; a link is removed, not followed
	// (unlinkat(2)).
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil:
		r.removed(1)
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return fmt.Errorf("unlink %q: %w", name, err)
	}
	if depth >= maxDepth {
		return r.moveUp(parent, name)
	}
	return r.removeDir(parent, name, depth)
}

func (r *remover) removeDir(parent int, name string, depth int) error {
	fd, err := openDir(parent, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("something is mounted at %q; it is left alone", name)
	case err != nil:
		return fmt.Errorf("open %q: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for range maxRounds {
		if err := r.removeContent(dir, fd, depth); err != nil {
			return err
		}
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		switch {
		case err == nil:
			r.removed(1)
			return nil
		case errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
			return fmt.Errorf("rmdir %q: %w", name, err)
		}
		// Some filesystems skip names when others are removed while they are read.
		if _, err := dir.Seek(0, 0); err != nil {
			return fmt.Errorf("read %q again: %w", name, err)
		}
	}
	return fmt.Errorf("rmdir %q: somebody keeps writing into it", name)
}

// removeContent removes what is in a directory; what fails is left, the rest goes.
func (r *remover) removeContent(dir *os.File, fd, depth int) error {
	var first error
	for {
		names, readErr := dir.Readdirnames(batchEntries)
		for _, name := range names {
			if err := r.remove(fd, name, depth+1); err != nil && first == nil {
				first = err
			}
			if r.ctx.Err() != nil {
				return r.ctx.Err()
			}
		}
		if len(names) == 0 {
			if first == nil && readErr != nil && !errors.Is(readErr, io.EOF) {
				first = fmt.Errorf("read %q: %w", dir.Name(), readErr)
			}
			return first
		}
	}
}

func (r *remover) moveUp(parent int, name string) error {
	id, _, _ := strings.Cut(r.entry, ".")
	if err := unix.Renameat2(parent, name, r.trash, trashName(id), unix.RENAME_NOREPLACE); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("move %q out of its depth: %w", name, err)
	}
	return nil
}
