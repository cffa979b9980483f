// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pace keeps to a rate over the whole of its life, in batches of a tenth of a
// second.
type pace struct {
	perSecond int
	batch     int
	start     time.Time
	done      int
}

// batchEntries are read from a directory at once, and removed at most between two
// looks at the clock.
const batchEntries = 256

func newPace(perSecond int) *pace {
	return &pace{perSecond: perSecond, batch: min(max(1, perSecond/10), batchEntries), start: time.Now()}
}

// wait is called once per entry, and sleeps when the batch came too early.
func (p *pace) wait(ctx context.Context) error {
	p.done++
	if p.done%p.batch != 0 {
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
	trash int    // the descriptor of the trash
	entry string // what is removed
	// up is the descriptor that deep directories are moved up into: the trash, or the entry where that
	// is a subvolume, out of which nothing but another subvolume can be renamed.
	up      int
	step    func(string) error
	pace    *pace
	removed func(entries int)
	// subvolumes are removed in one step.
	subvolumes Subvolumes
	// leaving is called with a subvolume that is about to be removed.
	leaving func(fd int) error
}

// noGroups is for trees in which nobody has made a subvolume.
func noGroups(int) error { return nil }

// maxDepth of directories is walked with one descriptor each. What lies deeper is
// moved up and removed from there, and so is a subvolume with others in it.
const maxDepth = 64

// maxRounds bounds the attempts at a directory into which somebody keeps writing.
const maxRounds = 16

// remove removes a name of an open directory. It returns nil when it is gone.
func (r *remover) remove(ctx context.Context, parent int, name string, depth int) error {
	if err := r.pace.wait(ctx); err != nil {
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
		return r.moveUp(parent, name, r.up)
	}
	return r.removeDir(ctx, parent, name, depth)
}

// removeSubvolume removes what is a subvolume, and reports whether it is gone. One that holds
// others is emptied like any directory, until they are gone.
func (r *remover) removeSubvolume(parent int, name string, fd int) (gone bool, err error) {
	if is, err := r.subvolumes.Is(fd); err != nil || !is {
		return false, err
	}
	if err := r.leaving(fd); err != nil {
		return false, err
	}
	err = r.subvolumes.Remove(parent, name)
	switch {
	case err == nil:
		r.removed(1)
		return true, nil
	case !errors.Is(err, unix.ENOTEMPTY):
		return false, err
	}
	return false, r.subvolumes.SetWritable(fd)
}

func (r *remover) removeDir(ctx context.Context, parent int, name string, depth int) error {
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
	if gone, err := r.removeSubvolume(parent, name, fd); err != nil || gone {
		return err
	}
	if is, err := r.subvolumes.Is(fd); err != nil {
		return err
	} else if is && depth > 0 {
		return r.moveUp(parent, name, r.trash)
	} else if is {
		r.up = fd
	}
	for range maxRounds {
		if err := r.removeContent(ctx, dir, fd, depth); err != nil {
			return err
		}
		// What held other subvolumes holds none any more.
		if gone, err := r.removeSubvolume(parent, name, fd); err != nil || gone {
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
func (r *remover) removeContent(ctx context.Context, dir *os.File, fd, depth int) error {
	var first error
	for {
		names, readErr := dir.Readdirnames(batchEntries)
		for _, name := range names {
			if err := r.remove(ctx, fd, name, depth+1); err != nil && first == nil {
				first = err
			}
			if ctx.Err() != nil {
				return ctx.Err()
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

func (r *remover) moveUp(parent int, name string, to int) error {
	id, _, _ := strings.Cut(r.entry, ".")
	if err := unix.Renameat2(parent, name, to, trashName(id), unix.RENAME_NOREPLACE); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("move %q out of its depth: %w", name, err)
	}
	return nil
}
