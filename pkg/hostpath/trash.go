// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"
)

// TrashOptions bound and observe the removal of deleted volumes.
type TrashOptions struct {
	// EntriesPerSecond is how many files and directories are removed in a second at
	// most, so that the neighbours on the filesystem keep theirs; 0 means
	// DefaultEntriesPerSecond.
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
	// TrashWaiting tells what is in the trash of a root, as it changes.
	TrashWaiting(root string, state TrashState)
	// TrashRemoved tells of files and directories that are gone.
	TrashRemoved(root string, entries int)
	// TrashFailed tells of a volume that could not be removed.
	TrashFailed(root string, err error)
	// RetainedChanged tells that something is not kept any more, so that what it was
	// promised can be promised again.
	RetainedChanged(root string)
}

// DefaultEntriesPerSecond removes a million files in two minutes.
const DefaultEntriesPerSecond = 10_000

func (o *TrashOptions) setDefaults() {
	if o.EntriesPerSecond <= 0 {
		o.EntriesPerSecond = DefaultEntriesPerSecond
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
// earlier process has left. It wakes up for kicks, for retries, for what is kept of
// deleted volumes, and, where subvolumes are limited, to look whether they still are.
func (b *Backend) Run(ctx context.Context) error {
	retry := b.Trash.RetryMin
	for ctx.Err() == nil {
		wait, err := b.tendRetained(ctx)
		limits := b.restoreLimits(ctx)
		err = errors.Join(err, b.sweepCopies(ctx), b.emptyTrash(ctx))
		groups, groupsErr := b.sweepGroups(ctx)
		wait = sooner(sooner(wait, limits), groups)
		if err = errors.Join(err, groupsErr); err == nil {
			retry = b.Trash.RetryMin
		} else if ctx.Err() == nil {
			b.Log.Warn("the trash could not be emptied", "root", b.Root, "retryAfter", retry, "error", err)
			b.Trash.Observer.TrashFailed(b.Root, err)
			wait, retry = retry, min(2*retry, b.Trash.RetryMax)
		}
		b.sleep(ctx, wait)
	}
	if err := b.saveClock(context.WithoutCancel(ctx)); err != nil {
		b.Log.Info("What is kept of deleted volumes is kept a little longer", "root", b.Root, "cause", err)
	}
	return nil
}

// sooner returns the sooner of two times to look again, of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// sleep waits for a kick and, if it is not 0, for the time of the next look.
func (b *Backend) sleep(ctx context.Context, next time.Duration) {
	var wait <-chan time.Time
	if next > 0 {
		timer := time.NewTimer(next)
		defer timer.Stop()
		wait = timer.C
	}
	select {
	case <-ctx.Done():
	case <-b.kick:
	case <-wait:
	}
}

// emptyTrash removes everything that is in the trash of the root, if it is the
// pool's. What fails is left, and the rest goes on.
func (b *Backend) emptyTrash(ctx context.Context) error {
	root, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer closeRoot(root)
	var failed []error
	tried := map[string]bool{}
	pace := newPace(b.Trash.EntriesPerSecond)
	for {
		// Read again after each round: what lies too deep was moved up here, and more
		// may have been deleted.
		names, err := readNames(root, trashDir)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		b.trash.look(b, root, names)
		b.tellTrash(root, &b.trash)
		fresh := 0
		for _, name := range names {
			if tried[name] {
				continue
			}
			fresh++
			if err := b.removeFromTrash(ctx, root, name, pace); err != nil {
				tried[name] = true
				failed = append(failed, err)
			} else {
				delete(b.trash.entries, name)
			}
			if time.Since(b.trash.told) >= tellInterval {
				b.tellTrash(root, &b.trash)
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

func (b *Backend) removeFromTrash(ctx context.Context, root *os.Root, name string, pace *pace) error {
	return withDir(root, trashDir, func(trash int) error {
		if err := b.unlimitSubvolume(trash, name); err != nil {
			return fmt.Errorf("remove %s: %w", path.Join(b.Root, trashDir, name), err)
		}
		r := remover{
			trash: trash, up: trash, entry: name, step: b.step, subvolumes: b.Subvolumes,
			leaving: func(fd int) error { return b.noteGroup(root, fd) },
			pace:    pace,
			removed: func(entries int) {
				b.Trash.Observer.TrashRemoved(b.Root, entries)
				if time.Since(b.trash.told) >= tellInterval {
					b.tellTrash(root, &b.trash)
				}
			},
		}
		if err := r.remove(ctx, trash, name, 0); err != nil {
			return fmt.Errorf("remove %s: %w", path.Join(b.Root, trashDir, name), err)
		}
		return nil
	})
}

type noObserver struct{}

func (noObserver) TrashWaiting(string, TrashState) {}
func (noObserver) TrashRemoved(string, int)        {}
func (noObserver) TrashFailed(string, error)       {}
func (noObserver) RetainedChanged(string)          {}
