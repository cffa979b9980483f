// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/btrfs"
	"github.com/berth-dev/berth/pkg/volume"
)

const (
	maxPathParts = 8
	// maxPathPart is what a name of Kubernetes can have, and less than any filesystem allows.
	maxPathPart = 253
)

// ValidatePath returns ErrInvalid unless a path can be that of a volume below the root:
// names of lower-case letters, digits, '-', '_' and '.', which begin with a letter or digit,
// with slashes between them.
func ValidatePath(p string) error {
	parts := strings.Split(p, "/")
	if len(parts) > maxPathParts {
		return fmt.Errorf("%w: the path %q has more than %d parts", volume.ErrInvalid, p, maxPathParts)
	}
	for _, part := range parts {
		bad := strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(part) > maxPathPart
		if bad || part == "" || strings.ContainsAny(part[:1], "-_.") {
			return fmt.Errorf("%w: in the path %q, %q is no name of lower-case letters, digits, '-', '_' and '.' that begins with a letter or digit and has at most %d of them",
				volume.ErrInvalid, p, part, maxPathPart)
		}
	}
	return nil
}

// overlap reports whether two paths are the same, or one is in the other.
func overlap(p, q string) bool {
	return p == q || strings.HasPrefix(p, q+"/") || strings.HasPrefix(q, p+"/")
}

// requireFreePath returns ErrInvalid when something is at the path of a new volume, or a
// volume above or below it. Nothing was made then.
func (b *Backend) requireFreePath(root *os.Root, p promise) error {
	if err := b.requirePathOfNobody(root, p); err != nil {
		return err
	}
	parts := strings.Split(p.Path, "/")
	for i := range parts {
		parent := path.Join(namedDir, path.Join(parts[:i]...))
		err := withRealDir(root, parent, func(fd int) error {
			if err := requireClosed(fd, parent); err != nil || i < len(parts)-1 {
				return err
			}
			var st unix.Stat_t
			return unix.Fstatat(fd, parts[i], &st, unix.AT_SYMLINK_NOFOLLOW)
		})
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
			return fmt.Errorf("%w: %s is no directory of the root: %s", volume.ErrInvalid, path.Join(b.Root, parent), err.Error())
		case err != nil:
			return err
		}
	}
	return fmt.Errorf("%w: there is something at %s that we did not make; move it away, or use another pathTemplate", volume.ErrInvalid, path.Join(b.Root, p.dir()))
}

// requireClosed returns ErrInvalid unless a directory above those of volumes is open to root
// alone: whoever can write to it can exchange the volumes.
func requireClosed(fd int, dir string) error {
	closed, err := isFresh(fd)
	if err == nil && !closed {
		err = fmt.Errorf("%w: the directory %s was not made by us: it is not of mode 0700, or another user's", volume.ErrInvalid, dir)
	}
	return err
}

// requirePathOfNobody returns ErrInvalid when another volume was promised the path, one
// above or one below it.
func (b *Backend) requirePathOfNobody(root *os.Root, p promise) error {
	promised, err := b.promises.all(root)
	if err != nil {
		return err
	}
	for _, o := range promised {
		if o.ID != p.ID && o.Path != "" && overlap(o.Path, p.Path) {
			return fmt.Errorf("%w: the volume %s of claim %q lies at %s, so that this one cannot lie at %s; delete that, or use another pathTemplate",
				volume.ErrInvalid, o.Name, o.Claim, path.Join(b.Root, o.dir()), path.Join(b.Root, p.dir()))
		}
	}
	return nil
}

// makeNamed makes the directory of a volume and those above it that are not there, all for
// root alone.
func (b *Backend) makeNamed(root *os.Root, p string) error {
	b.naming.Lock()
	defer b.naming.Unlock()
	return b.makeNames(root, p, 0)
}

// makeNames makes the directories of a path but for the last ones. Only a last one must be new.
func (b *Backend) makeNames(root *os.Root, p string, but int) error {
	if err := ensureDir(root, namedDir); err != nil {
		return fmt.Errorf("make %s: %w", namedDir, err)
	}
	parts := strings.Split(p, "/")
	for i := range parts[:len(parts)-but] {
		parent := path.Join(namedDir, path.Join(parts[:i]...))
		err := withRealDir(root, parent, func(fd int) error {
			if err := requireClosed(fd, parent); err != nil {
				return err
			}
			err := unix.Mkdirat(fd, parts[i], freshMode)
			if errors.Is(err, unix.EEXIST) && i < len(parts)-1 {
				return nil
			}
			if err != nil {
				return fmt.Errorf("make %s: %w", path.Join(parent, parts[i]), err)
			}
			return unix.Fsync(fd)
		})
		if err != nil {
			return err
		}
		if i < len(parts)-1 {
			if err := b.step("make the next directory"); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeParents removes the directories above that of a volume in which nothing is any more.
func (b *Backend) removeParents(root *os.Root, p string) error {
	b.naming.Lock()
	defer b.naming.Unlock()
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if err := b.step("remove an empty directory"); err != nil {
			return err
		}
		err := withRealDir(root, path.Join(namedDir, path.Dir(dir)), func(fd int) error {
			return unix.Unlinkat(fd, path.Base(dir), unix.AT_REMOVEDIR)
		})
		switch {
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
			return nil
		case err != nil && !errors.Is(err, unix.ENOENT):
			return fmt.Errorf("remove %s: %w", path.Join(namedDir, dir), err)
		}
	}
	return nil
}

// identify writes down which directory it is that a volume has got at its path, before
// anybody else can have it.
func (b *Backend) identify(root *os.Root, fd int, p promise) error {
	if p.Path == "" {
		return nil
	}
	identity, err := identityOf(fd)
	if err != nil || identity == p.Identity {
		return err
	}
	p.Identity = identity
	file := promiseFile(p.ID)
	if err := b.step("write identity"); err != nil {
		return err
	}
	if err := writeFile(root, file, p); err != nil {
		return errors.Join(err, b.dropTmp(root, file))
	}
	if err := b.step("record identity"); err != nil {
		return err
	}
	if err := root.Rename(file+tmpSuffix, file); err != nil {
		return err
	}
	return syncDir(root, promiseDir)
}

// requireIdentity returns ErrIdentity unless a directory at the path of a volume, or one that
// was adopted or taken over, is the one that it got. One that nobody could open yet is empty, and is ours as long as it is.
func requireIdentity(fd int, p promise) error {
	if p.Path == "" && p.AdoptedFrom == "" && p.TakenFrom == "" {
		return nil
	}
	if p.Identity == "" {
		fresh, err := isFresh(fd)
		if err != nil {
			return err
		}
		if empty, err := isEmptyDir(fd); err != nil || !empty || !fresh {
			return errors.Join(fmt.Errorf("the directory %s was made by somebody else: %w", p.dir(), volume.ErrIdentity), err)
		}
		return nil
	}
	identity, err := identityOf(fd)
	if err != nil {
		return err
	}
	if identity != p.Identity {
		return fmt.Errorf("the directory %s is another one than it was (%s, recorded is %s): %w", p.dir(), identity, p.Identity, volume.ErrIdentity)
	}
	return nil
}

// identityOf a directory is its inode, and when that was made where the filesystem knows it
// (statx(2)): numbers are used again.
func identityOf(fd int) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("look which directory it is: %w", err)
	}
	identity := "inode " + strconv.FormatUint(st.Ino, 10)
	// A subvolume has its inode number and its time in common with what was copied of it.
	switch is, err := (btrfs.Subvolumes{}).Is(fd); {
	case err != nil:
		return "", err
	case is:
		id, err := btrfs.Subvolumes{}.ID(fd)
		if err != nil {
			return "", err
		}
		identity = "subvolume " + strconv.FormatUint(id, 10)
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		identity += fmt.Sprintf(" of %d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return identity, nil
}
