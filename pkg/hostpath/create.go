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
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// volumeMode of a volume's directory; see the package's documentation.
const volumeMode = 0o777

// Create implements volume.Backend. Block access is ErrInvalid: a directory is no
// block device. A volume that has a source is the copy of a tree; see Snapshot.
func (b *Backend) Create(ctx context.Context, spec volume.Spec) (volume.Record, error) {
	if err := spec.Validate(); err != nil {
		return volume.Record{}, fmt.Errorf("create volume: %w", err)
	}
	if spec.Access == volume.AccessBlock {
		return volume.Record{}, fmt.Errorf("create volume %s: %w: mode hostpath has no block volumes, use mode lvm or device", spec.Name, volume.ErrInvalid)
	}
	if spec.Directory != "" {
		if err := ValidatePath(spec.Directory); err != nil {
			return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
		}
	}
	root, p, err := b.find(ctx, spec.ID, nil)
	if errors.Is(err, volume.ErrNotFound) {
		root, p, err = b.begin(ctx, spec)
	}
	if err != nil {
		return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
	}
	defer closeRoot(root)
	if p.AdoptedFrom != "" {
		return volume.Record{}, fmt.Errorf("create volume %s: it was adopted from %s: %w", spec.Name, p.AdoptedFrom, volume.ErrIdentity)
	}
	if err := b.checkLimits(root); spec.Limited && err != nil {
		return volume.Record{}, fmt.Errorf("create volume %s: %w: the size of volumes in %s cannot be enforced: %s", spec.Name, volume.ErrInvalid, b.Root, err.Error())
	}
	if spec.Source != nil {
		p, err = b.createCopy(ctx, root, p, spec)
	} else {
		p, err = b.createEmpty(ctx, root, p, spec.SizeBytes)
	}
	if err != nil {
		return volume.Record{}, fmt.Errorf("create volume %s: %w", spec.Name, err)
	}
	return b.record(p), nil
}

func (b *Backend) createEmpty(ctx context.Context, root *os.Root, p promise, sizeBytes int64) (promise, error) {
	if p.Source != "" {
		return p, fmt.Errorf("it was to be a copy of %s, which is asked for no more: %w", p.Source, volume.ErrExists)
	}
	p, release, err := b.chooseProject(root, p)
	if err != nil {
		return p, err
	}
	defer release()
	if p, err = b.promise(ctx, root, p, sizeBytes); err != nil {
		return p, err
	}
	if err := b.makeDir(root, p); err != nil {
		return p, b.takeBack(root, p, err)
	}
	return p, nil
}

// begin opens the root for a volume to which nothing was promised yet, and says what is going
// to be.
func (b *Backend) begin(ctx context.Context, spec volume.Spec) (*os.Root, promise, error) {
	p := newPromise(spec)
	root, err := b.open(ctx)
	if err != nil {
		return nil, p, err
	}
	if p.Path != "" {
		err = b.requireFreePath(root, p)
	}
	if err != nil {
		return nil, p, errors.Join(err, root.Close())
	}
	return root, p, nil
}

func newPromise(spec volume.Spec) promise {
	return promise{
		Path: spec.Directory,
		ID:   spec.ID, Name: spec.Name, Created: time.Now().UTC().Truncate(time.Second),
		// Rounded up: it is kept no shorter than asked for.
		RetainSeconds: int64((spec.RetainFor + time.Second - 1) / time.Second), Claim: spec.Claim,
	}
}

// takeBack removes the promise of a volume for whose directory the filesystem had
// no room, for ErrNoSpace means that nothing was made. Any other error is
// returned as it is, and so is this one, without its sentinel, when the promise
// cannot be removed.
func (b *Backend) takeBack(root *os.Root, p promise, err error) error {
	if !errors.Is(err, volume.ErrNoSpace) {
		return err
	}
	p.RetainSeconds = 0 // nobody has written to it
	if backErr := b.discard(root, p); backErr != nil {
		return fmt.Errorf("%s; take the promise back: %s", err.Error(), backErr.Error())
	}
	return err
}

// Grow implements volume.Backend. Where the volume is limited, the limit grows with it, while
// it is used.
func (b *Backend) Grow(ctx context.Context, id string, rec volume.Record, sizeBytes int64) (volume.Record, error) {
	root, p, err := b.find(ctx, id, &rec)
	if err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	defer closeRoot(root)
	if err := requireDir(root, p); err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	p, err = b.promise(ctx, root, p, sizeBytes)
	if err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	if p.counted() {
		err = b.limitDurably(root, p)
	} else {
		err = b.raise(root, p)
	}
	if err != nil {
		return volume.Record{}, fmt.Errorf("grow volume %s: %w", id, err)
	}
	return b.record(p), nil
}

// promise raises what the volume was promised to sizeBytes, if there is room, and
// returns when that is durable. The file is written and synced first, without a
// lock; deciding and renaming it into place are one step under the lock.
func (b *Backend) promise(ctx context.Context, root *os.Root, p promise, sizeBytes int64) (promise, error) {
	byBytes := sizeBytes - p.SizeBytes
	if byBytes <= 0 {
		if !p.moved {
			return p, nil
		}
		sizeBytes, byBytes = p.SizeBytes, 0 // it is only written anew, with another project
	}
	// A look first: a full filesystem is not written to for a refusal.
	if err := b.admit(root, byBytes); err != nil {
		return promise{}, err
	}
	next := p
	next.SizeBytes = sizeBytes
	file := p.file()
	if err := b.step("write promise"); err != nil {
		return promise{}, err
	}
	if err := writeFile(root, file, next); err != nil {
		return promise{}, errors.Join(err, b.dropTmp(root, file))
	}
	if err := b.admitAndRename(ctx, root, next, byBytes); err != nil {
		return promise{}, errors.Join(err, b.dropTmp(root, file))
	}
	if err := b.step("sync promise"); err != nil {
		return promise{}, err
	}
	return next, syncDir(root, path.Dir(file))
}

func (b *Backend) admitAndRename(ctx context.Context, root *os.Root, next promise, byBytes int64) error {
	b.accounting.Lock()
	defer b.accounting.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.admit(root, byBytes); err != nil {
		return err
	}
	if next.Path != "" {
		if err := b.requirePathOfNobody(root, next); err != nil {
			return err
		}
	}
	file := next.file()
	if err := b.step("rename promise"); err != nil {
		return err
	}
	return root.Rename(file+tmpSuffix, file)
}

func (b *Backend) admit(root *os.Root, byBytes int64) error {
	c, err := b.capacity(root)
	if err != nil {
		return err
	}
	if byBytes > 0 && !c.Fits(byBytes) {
		return fmt.Errorf("%w: %d bytes are needed, %s has %d free of %d", volume.ErrNoSpace, byBytes, b.Root, c.FreeBytes, c.TotalBytes)
	}
	return nil
}

// dropTmp removes a file that was not renamed into place.
func (b *Backend) dropTmp(root *os.Root, file string) error {
	if err := b.step("drop " + tmpSuffix); err != nil {
		return err
	}
	if err := root.Remove(file + tmpSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeDir makes the volume's directory, if it is not there, limits it, and opens it to
// everybody.
func (b *Backend) makeDir(root *os.Root, p promise) error {
	if err := b.limitProject(root, p); err != nil {
		return err
	}
	err := requireDir(root, p)
	if err == nil && p.Qgroup {
		if err := b.limit(root, p); err != nil {
			return err
		}
	}
	if err == nil {
		// It may come from a call that was killed before it set the mode; but what a
		// pod has set since is the pod's.
		return b.openToAll(root, p)
	}
	if !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	if err := b.step("make directory"); err != nil {
		return err
	}
	if subvolumes, err := b.makesSubvolumes(root); err != nil {
		return err
	} else if subvolumes {
		return b.buildEmpty(root, p)
	}
	if p.Path != "" {
		err = b.makeNamed(root, p.Path)
	} else {
		err = root.Mkdir(volumeDir(p.ID), freshMode)
	}
	if err != nil {
		return outOfSpace(err)
	}
	return b.openToAll(root, p)
}

// freshMode is the mode of a directory that makeDir has made and not opened yet.
const freshMode = 0o700

// isFresh reports whether a directory is one that makeDir has made and not opened yet, in which
// nothing can be.
func isFresh(fd int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return err == nil && st.Mode&0o7777 == freshMode && st.Uid == uint32(os.Geteuid()), err
}

func (b *Backend) openToAll(root *os.Root, p promise) error {
	return withVolume(root, p, func(parent, fd int) error {
		fresh, err := isFresh(fd)
		if err != nil {
			return fmt.Errorf("stat %s: %w", p.dir(), err)
		}
		if fresh {
			if err := b.assign(fd, p); err != nil {
				return err
			}
			if err := b.identify(root, fd, p); err != nil {
				return err
			}
			if err := b.step("open directory"); err != nil {
				return err
			}
			if err := unix.Fchmod(fd, volumeMode); err != nil {
				return fmt.Errorf("chmod %s: %w", p.dir(), err)
			}
		}
		if err := b.step("sync directory"); err != nil {
			return err
		}
		return errors.Join(unix.Fsync(fd), unix.Fsync(parent))
	})
}
