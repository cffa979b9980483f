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
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Groups limit what subvolumes can hold; btrfs.Groups are the real ones. A subvolume has a
// group of its own where the quotas of its filesystem are on, which has its number. The
// filesystem is that of an open directory.
type Groups interface {
	// Check returns quota.ErrUnsupported, with the reason, where limits do not hold, and
	// quota.ErrUncounted where they can be set and will.
	Check(dir int) error
	// Usage returns what a subvolume has and may have, all zero when it has no group.
	Usage(dir int, subvolume uint64) (quota.Usage, error)
	// SetLimit limits a subvolume; 0 takes the limit away.
	SetLimit(dir int, subvolume uint64, limitBytes int64) error
	// Remove removes the group of a subvolume that is gone, if there is one; unix.EBUSY as
	// long as the subvolume is not.
	Remove(dir int, subvolume uint64) error
}

// canLimit reports whether limits can be set, by what a Check has said: also where they hold
// only later. An error is one that says nothing of that.
func canLimit(checked error) (bool, error) {
	switch {
	case checked == nil, errors.Is(checked, quota.ErrUncounted):
		return true, nil
	case errors.Is(checked, quota.ErrUnsupported):
		return false, nil
	}
	return false, checked
}

// withSubvolume runs f with the number of the subvolume that a directory of the root is, and with
// the descriptor of the directory that it is in: an ioctl on a subvolume that has reached its
// limit fails with EDQUOT, also the one that would raise that. It returns unix.ENOENT where there
// is none, and ErrIdentity for a directory that is no subvolume.
func (b *Backend) withSubvolume(root *os.Root, parent, name string, f func(parent int, id uint64) error) error {
	return withRealDir(root, parent, func(parentFD int) error {
		fd, err := openDir(parentFD, name)
		if err != nil {
			return fmt.Errorf("open %s: %w", path.Join(parent, name), err)
		}
		defer closeFD(fd)
		is, err := b.Subvolumes.Is(fd)
		if err == nil && !is {
			err = fmt.Errorf("%s is no subvolume: %w", path.Join(parent, name), volume.ErrIdentity)
		}
		if err != nil {
			return err
		}
		id, err := b.Subvolumes.ID(fd)
		if err != nil {
			return err
		}
		return f(parentFD, id)
	})
}

// isNotThere reports whether withSubvolume has found no subvolume.
func isNotThere(err error) bool {
	for _, is := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, volume.ErrIdentity} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// limitSubvolume sets the limit of the subvolume that a volume has, or gets when it is placed.
func (b *Backend) limitSubvolume(root *os.Root, parent, name string, p promise) error {
	return b.withSubvolume(root, parent, name, func(dir int, id uint64) error {
		if err := b.step("limit"); err != nil {
			return err
		}
		return b.Groups.SetLimit(dir, id, p.SizeBytes)
	})
}

// raise has the limit of a volume grow that we did not give it: an operator did, or an older
// agent has left out of the promise that we did.
func (b *Backend) raise(root *os.Root, p promise) error {
	if can, err := canLimit(b.checkLimits(root)); err != nil || !can {
		return err
	}
	if has, err := b.hasSubvolumes(root); err != nil || !has {
		return err
	}
	if is, err := b.isSubvolume(root, p); err != nil || !is {
		return err
	}
	parent, name := p.parent()
	return b.withSubvolume(root, parent, name, func(dir int, id uint64) error {
		u, err := b.Groups.Usage(dir, id)
		if err != nil || u.LimitBytes == 0 || u.LimitBytes >= p.SizeBytes {
			return err
		}
		if err := b.step("limit"); err != nil {
			return err
		}
		return b.Groups.SetLimit(dir, id, p.SizeBytes)
	})
}

// subvolumeUsage is what is counted for the subvolume at a place. Nothing is where it is not
// there, or is something else: whoever needs the volume says what is wrong.
func (b *Backend) subvolumeUsage(root *os.Root, place string) (u quota.Usage, err error) {
	parent, name := path.Split(place)
	err = b.withSubvolume(root, path.Clean(parent), name, func(dir int, id uint64) error {
		u, err = b.Groups.Usage(dir, id)
		return err
	})
	if isNotThere(err) {
		return quota.Usage{}, nil
	}
	return u, err
}

// restoreInterval is how often it is looked whether all limits are there: nobody tells when
// quotas are switched off and on.
const restoreInterval = 5 * time.Minute

// restored is when it was looked last whether all limits are there.
type restored struct {
	mu sync.Mutex
	// at is 0 when it is to be looked now, and next is when again, 0 for not by itself.
	at, next time.Duration
	// could: limits could be set when that was asked last.
	could bool
}

// told takes in whether limits can be set, and reports whether that is news.
func (r *restored) told(can bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := can && !r.could
	if r.could = can; news {
		r.at = 0
	}
	return news
}

// wait reports whether it is to be looked now, and if not, when.
func (r *restored) wait(elapsed time.Duration) (left time.Duration, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == 0 {
		return 0, true
	}
	if r.next == 0 {
		return 0, false
	}
	left = r.at + r.next - elapsed
	return left, left <= 0
}

func (r *restored) done(elapsed, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.next = max(1, elapsed), next
}

// restoreLimits sets the limits that the filesystem has not got, or not any more: it forgets
// them all when its quotas are switched off, and the last ones when it loses its power. Volumes
// that were made without one stay so. next is when to look again, 0 for never; what failed is
// tried then.
func (b *Backend) restoreLimits(ctx context.Context) (next time.Duration) {
	next, due := b.restored.wait(b.Elapsed())
	if !due {
		return next
	}
	next = 0
	limited, err := b.restoreAll(ctx)
	if limited || err != nil {
		next = restoreInterval
	}
	if err != nil && ctx.Err() == nil {
		b.Log.Warn("Volumes may have no limit that should have one", "root", b.Root, "retryAfter", next, "error", err)
	}
	b.restored.done(b.Elapsed(), next)
	return next
}

// restoreAll reports whether there are limits, or were.
func (b *Backend) restoreAll(ctx context.Context) (limited bool, err error) {
	root, err := b.open(ctx)
	if err != nil {
		return false, err
	}
	defer closeRoot(root)
	if has, err := b.hasSubvolumes(root); err != nil || !has {
		return false, err
	}
	can, err := canLimit(b.checkLimits(root))
	if err != nil {
		return false, err
	}
	promised, err := b.promises.all(root)
	if err != nil {
		return false, err
	}
	var failed []error
	for _, p := range promised {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if limited = limited || p.Qgroup; !can || !p.Qgroup {
			continue
		}
		if err := b.restoreLimit(root, p); err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", p.Name, err))
		}
	}
	return can || limited, errors.Join(failed...)
}

func (b *Backend) restoreLimit(root *os.Root, p promise) error {
	b.limiting.Lock() // who lets it grow sets the limit after the promise
	defer b.limiting.Unlock()
	p, err := p.read(root)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !p.Qgroup {
		return nil
	}
	if err != nil {
		return err
	}
	u, err := b.subvolumeUsage(root, p.dir())
	if err != nil || u.LimitBytes == p.SizeBytes {
		return err
	}
	parent, name := p.parent()
	err = b.limitSubvolume(root, parent, name, p)
	if isNotThere(err) {
		return nil
	}
	if err == nil {
		b.Log.Info("A volume is limited again", "root", b.Root, "volume", p.Name, "bytes", p.SizeBytes, "usedBytes", u.UsedBytes)
	}
	return err
}

// A note in groupsDir, of which the name is all that counts, says that a subvolume is being
// removed, so that its group is when it is gone.

// goneInterval is when to look again at what is being removed: btrfs does that in the
// background, after the transaction that it is part of, and that takes at most so long.
const goneInterval = 30 * time.Second

// noteGroup notes the group of a subvolume that is about to be removed. That needs not to be
// made durable: it is, before the removal is.
func (b *Backend) noteGroup(root *os.Root, fd int) error {
	if can, err := canLimit(b.Groups.Check(fd)); err != nil || !can {
		return err
	}
	id, err := b.Subvolumes.ID(fd)
	if err != nil {
		return err
	}
	if err := b.step("note the group"); err != nil {
		return err
	}
	err = ensureDir(root, groupsDir)
	if err == nil {
		var note *os.File
		if note, err = root.OpenFile(path.Join(groupsDir, strconv.FormatUint(id, 10)), os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
			err = note.Close()
		}
	}
	if err != nil {
		// On a full filesystem it is the removal that makes room.
		b.Log.Warn("The quota group of a deleted volume may be left behind", "root", b.Root, "subvolume", id, "cause", err)
	}
	return nil
}

// sweepGroups removes the groups of subvolumes that are gone. next is when to look again, 0 for
// never.
func (b *Backend) sweepGroups(ctx context.Context) (next time.Duration, err error) {
	root, err := b.open(ctx)
	if err != nil {
		return 0, err
	}
	defer closeRoot(root)
	names, err := readNames(root, groupsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no subvolume with a group was ever removed here
	}
	if err != nil {
		return 0, err
	}
	var failed []error
	for _, name := range names {
		id, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			continue // not ours
		}
		if err := b.step("remove the group"); err != nil {
			return 0, err
		}
		err = withDir(root, groupsDir, func(dir int) error { return b.Groups.Remove(dir, id) })
		switch {
		case errors.Is(err, unix.EBUSY):
			next = goneInterval
			continue
		case errors.Is(err, unix.ENOTTY): // copied to another filesystem
		case err != nil:
			failed = append(failed, err)
			continue
		}
		if err := root.Remove(path.Join(groupsDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return next, errors.Join(failed...)
}
