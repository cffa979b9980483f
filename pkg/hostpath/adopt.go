// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
)

// Adopt makes a volume of a directory that is on the root's mount, by renaming it to where
// the volumes are. What is in it stays as it is, with modes and owners; where the root
// enforces sizes, it is counted and limited from then on. Repeated, it returns the same
// record.
//
// It is promised whatever room there is: its bytes are on the filesystem already. What is
// free for others becomes less by it, and never negative.
//
// volume.ErrNotAdoptable: it is not there, on another mount, a link, a mount point, Berth's
// own, not where the pool takes directories from (below the directory that the root is in),
// in use (volume.ErrInUse, too), or holds more than its size. It was not touched then.
func (b *Backend) Adopt(ctx context.Context, spec volume.Spec, adoption volume.Adoption) (volume.Record, error) {
	p, err := b.adopt(ctx, spec, adoption.Directory)
	if err != nil {
		return volume.Record{}, fmt.Errorf("adopt directory %s as volume %s: %w", adoption.Directory, spec.Name, err)
	}
	return b.record(p), nil
}

func (b *Backend) adopt(ctx context.Context, spec volume.Spec, dir string) (promise, error) {
	if err := spec.ValidateEmpty(); err != nil {
		return promise{}, err
	}
	if spec.Access == volume.AccessBlock || spec.Directory != "" || spec.RetainFor != 0 {
		return promise{}, fmt.Errorf("%w: an adopted directory is no block volume, has no path of its own and is kept for good", volume.ErrInvalid)
	}
	root, p, err := b.find(ctx, spec.ID, nil)
	if errors.Is(err, volume.ErrNotFound) {
		p = newPromise(spec)
		p.AdoptedFrom = dir
		root, err = b.open(ctx)
	}
	if err != nil {
		return promise{}, err
	}
	defer closeRoot(root)
	if p.AdoptedFrom != dir {
		return promise{}, fmt.Errorf("the volume is there already, and %s: %w", p.origin(), volume.ErrIdentity)
	}
	leave, err := b.adopting.enter(dir)
	if err != nil {
		return promise{}, err
	}
	defer leave()
	var release func()
	switch err := requireDir(root, p); {
	case err == nil:
		p, release, err = b.takeUp(root, p)
		if err != nil {
			return promise{}, err
		}
	case errors.Is(err, volume.ErrNotFound):
		// Also of one that was promised before: somebody may have made a root in it since.
		if err := b.requireAdoptable(dir); err != nil {
			return promise{}, err
		}
		if err := b.requireApart(root, p); err != nil {
			return promise{}, err
		}
		p.SizeBytes = max(p.SizeBytes, spec.SizeBytes)
		p, release, err = b.takeIn(ctx, root, p, spec.Limited)
		if err != nil {
			return promise{}, err
		}
	default:
		return promise{}, err
	}
	defer release()
	return p, b.countAll(ctx, root, p)
}

func (p promise) origin() string {
	if p.AdoptedFrom == "" {
		return "was made here"
	}
	return "was adopted from " + p.AdoptedFrom
}

// takeUp goes on with a volume whose directory an earlier call has moved. The project is
// nobody else's until release is called.
func (b *Backend) takeUp(root *os.Root, p promise) (_ promise, release func(), err error) {
	if err := b.syncPlace(root, p); err != nil {
		return p, func() {}, err
	}
	if !p.counted() {
		return p, func() {}, nil // the root enforced nothing when it was promised
	}
	p, release, err = b.takeProject(root, p)
	if err == nil && p.moved {
		err = b.writePromise(root, p)
	}
	if err != nil {
		release()
	}
	return p, release, err
}

// takeIn promises the directory to the volume and moves it to where the volumes are.
func (b *Backend) takeIn(ctx context.Context, root *os.Root, p promise, mustLimit bool) (_ promise, release func(), err error) {
	release = func() {}
	limits := b.checkLimits(root)
	switch can, err := canLimit(limits); {
	case err != nil:
		return p, release, err
	case mustLimit && limits != nil:
		return p, release, fmt.Errorf("%w: the size of volumes in %s cannot be enforced: %s", volume.ErrNotAdoptable, b.Root, limits.Error())
	case !can:
		limits = quota.ErrUnsupported
	}
	subvolumes, err := b.hasSubvolumes(root)
	if err != nil {
		return p, release, err
	}
	err = b.withSource(root, p.AdoptedFrom, func(s source) error {
		if p.Identity != "" && s.identity != p.Identity {
			return fmt.Errorf("%w: it is another directory now than when it was promised (%s, recorded is %s)", volume.ErrNotAdoptable, s.identity, p.Identity)
		}
		if err := b.requireNobody(p.AdoptedFrom); err != nil {
			return err
		}
		limited := !errors.Is(limits, quota.ErrUnsupported) || errors.Is(limits, quota.ErrUncounted)
		if subvolumes && limited {
			if limited, err = b.Subvolumes.Is(s.fd); err != nil {
				return err
			}
			if !limited && mustLimit {
				return fmt.Errorf("%w: it is a directory, and a btrfs limits nothing but subvolumes; copy it into one (btrfs subvolume create)", volume.ErrNotAdoptable)
			}
		}
		if limited {
			if err := b.requireFits(ctx, s, p); err != nil {
				return err
			}
		}
		if limited && !subvolumes {
			if err := requireChangeable(ctx, s.fd, p.AdoptedFrom); err != nil {
				if fixed, ok := errors.AsType[*errFixed](err); ok {
					return fmt.Errorf("%w: %w", volume.ErrNotAdoptable, fixed)
				}
				return fmt.Errorf("look for what cannot be counted: %w", err)
			}
		}
		p.Identity = s.identity
		p, release, err = b.takeProject(root, p)
		if err != nil {
			return err
		}
		if !limited {
			p.countedBy(p.Project, false)
		}
		if err := b.writePromise(root, p); err != nil {
			return err
		}
		// Again: to look at what is in it may have taken long.
		if err := b.requireNobody(p.AdoptedFrom); err != nil {
			return err
		}
		return b.moveIn(root, p, s)
	})
	if err != nil {
		release()
	}
	return p, release, err
}

// requireNobody returns ErrNotAdoptable and ErrInUse when somebody has the directory mounted.
func (b *Backend) requireNobody(dir string) error {
	holder, err := b.Holder(dir)
	if err != nil {
		return fmt.Errorf("look for who has it: %w", err)
	}
	if holder != "" {
		return fmt.Errorf("%w: %s: %w", volume.ErrNotAdoptable, holder, volume.ErrInUse)
	}
	return nil
}

// requireFits returns ErrNotAdoptable when more is in a directory than its volume may hold.
func (b *Backend) requireFits(ctx context.Context, s source, p promise) error {
	usedBytes, err := treeBytes(ctx, s.fd)
	if err != nil {
		return fmt.Errorf("look how much is in it: %w", err)
	}
	entry, err := b.countedIn(s.parent, s.name)
	if err != nil {
		return fmt.Errorf("look how much is in it: %w", err)
	}
	if entry.subvolume != 0 {
		// What the filesystem needs to keep it counts, too.
		u, err := b.Groups.Usage(s.fd, entry.subvolume)
		if err != nil {
			return fmt.Errorf("look how much is in it: %w", err)
		}
		usedBytes = max(usedBytes, u.UsedBytes)
	}
	if usedBytes > p.SizeBytes {
		return fmt.Errorf("%w: it holds %d bytes and spec.sizeBytes is %d, which the filesystem would enforce; make that larger", volume.ErrNotAdoptable, usedBytes, p.SizeBytes)
	}
	return nil
}

// writePromise makes a promise durable without asking whether there is room for it.
func (b *Backend) writePromise(root *os.Root, p promise) error {
	file := promiseFile(p.ID)
	if err := b.step("write promise"); err != nil {
		return err
	}
	if err := writeFile(root, file, p); err != nil {
		return errors.Join(err, b.dropTmp(root, file))
	}
	if err := b.step("rename promise"); err != nil {
		return err
	}
	b.accounting.Lock()
	err := root.Rename(file+tmpSuffix, file)
	b.accounting.Unlock()
	if err != nil {
		return err
	}
	if err := b.step("sync promise"); err != nil {
		return err
	}
	return syncDir(root, promiseDir)
}

// moveIn renames the directory to where the volumes are and returns when that is durable. One
// that has taken its place meanwhile is moved back.
func (b *Backend) moveIn(root *os.Root, p promise, s source) error {
	parent, name := p.parent()
	err := withRealDir(root, parent, func(volumes int) error {
		if err := b.step("move in"); err != nil {
			return err
		}
		if err := renameNew(s.parent, s.name, volumes, name); err != nil {
			return err
		}
		err := requireDir(root, p)
		if err == nil {
			err = s.requireInPlace()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%w: it was replaced while it was moved: %s", volume.ErrNotAdoptable, err.Error()),
				renameNew(volumes, name, s.parent, s.name))
		}
		if err := b.step("sync the move"); err != nil {
			return err
		}
		return errors.Join(unix.Fsync(volumes), unix.Fsync(s.parent))
	})
	switch {
	case errors.Is(err, unix.EXDEV):
		return errOtherMount
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it cannot be moved; where it, or the directory that it is in, was made immutable or append-only (lsattr -d), take that away (chattr -i -a): %w", volume.ErrNotAdoptable, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: it is a mount point: %w", volume.ErrNotAdoptable, volume.ErrInUse)
	case err != nil:
		return fmt.Errorf("move it to %s: %w", p.dir(), err)
	}
	b.Log.Info("A directory was adopted", "root", b.Root, "volume", p.Name, "from", p.AdoptedFrom, "to", p.dir())
	return nil
}

// countAll has what is in an adopted directory counted by the volume's project, and limits
// that. The limit comes last: nothing can get a project beyond its limit.
func (b *Backend) countAll(ctx context.Context, root *os.Root, p promise) error {
	if p.Project == 0 {
		return b.limit(root, p)
	}
	err := withVolume(root, p, func(_, fd int) error {
		project, inherited, err := b.Quotas.ProjectOf(fd)
		if err != nil || project == p.Project && inherited {
			return err
		}
		err = b.assignTree(ctx, fd, p.Project)
		if errors.Is(err, unix.EPERM) {
			if fixed, ok := errors.AsType[*errFixed](requireChangeable(ctx, fd, path.Join(b.Root, p.place()))); ok {
				return fixed // since it was looked at
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("count what is in it by project %d: %w", p.Project, err)
	}
	return b.limitDurably(root, p)
}
