// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

// source is a directory that is to be adopted, open.
type source struct {
	// parent is the descriptor of the directory that it is in, under name.
	parent int
	name   string
	// fd is its own.
	fd       int
	identity string
	// at is what the kernel calls the parent.
	at string
}

// requireInPlace returns an error where a directory above was renamed since it was opened: as another
// pool does that adopts it.
func (s source) requireInPlace() error {
	now, err := pathOf(s.parent)
	if err == nil && now != s.at {
		err = fmt.Errorf("the directory that it is in was %s, and is %s", s.at, now)
	}
	return err
}

// pathOf returns what the kernel calls an open directory now.
func pathOf(fd int) (string, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("look where it is: %w", err)
	}
	return name, nil
}

// requireAdoptable returns ErrNotAdoptable for a path that the pool takes nothing from,
// whatever is there. It takes directories that lie beside the root or in it, so that whoever
// may only make volumes cannot have every directory of the host.
func (b *Backend) requireAdoptable(dir string) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", volume.ErrNotAdoptable, fmt.Sprintf(format, args...))
	}
	// A directory is named without links, so the roots are compared without those above them.
	here, err := b.unlinked()
	if err != nil {
		return fmt.Errorf("look where %s is: %w", b.Root, err)
	}
	from := path.Dir(here)
	if from == "/" {
		from = here
	}
	switch {
	case !path.IsAbs(dir) || path.Clean(dir) != dir || dir == "/":
		return refuse("%q must be an absolute path without '..', and not '/'", dir)
	case beneath(dir, here):
		return refuse("the root of the pool, %s, is it or lies in it", here)
	case !beneath(from, dir) || dir == from:
		return refuse("a pool whose root is %s takes directories below %s only; use a pool whose root lies beside it", here, from)
	}
	roots, err := b.OtherRoots()
	if err != nil {
		return fmt.Errorf("look for the roots of other pools: %w", err)
	}
	for _, other := range roots {
		switch there, err := (Where{Root: other, HostRoot: b.HostRoot}).unlinked(); {
		case err == nil:
			other = there
		case !errors.Is(err, fs.ErrNotExist): // of one that is not there the path counts
			return fmt.Errorf("look where the root of another pool, %s, is: %w", other, err)
		}
		if other != here && overlap(dir, other) {
			return refuse("it is part of the root of another pool, %s, or has it in it", other)
		}
	}
	if !beneath(here, dir) {
		return nil
	}
	parts := strings.Split(strings.TrimPrefix(dir, here+"/"), "/")
	ours := []string{berthDir, volumesDir, trashDir, namedDir, retainedDir, takenBackDir, snapshotsDir, copiesDir}
	givenBack := parts[0] == takenBackDir && len(parts) == 2 && isEntry(parts[1])
	if slices.Contains(ours, parts[0]) && !givenBack {
		return refuse("%s in the root is Berth's own; of that only directories in %s can be adopted", parts[0], takenBackDir)
	}
	return nil
}

// withSource runs f with a directory of the host that is on the same mount as the root.
// ErrNotAdoptable where it is not such a one.
func (b *Backend) withSource(root *os.Root, dir string, f func(source) error) error {
	host, err := os.OpenRoot(path.Join("/", b.HostRoot))
	if err != nil {
		return fmt.Errorf("open the host's root directory: %w", err)
	}
	defer closeRoot(host)
	rel := strings.TrimPrefix(dir, "/")
	return withDir(host, ".", func(top int) error {
		parent, err := openUnlinked(top, path.Dir(rel))
		if err != nil {
			return notSource(err)
		}
		defer closeFD(parent)
		if err := requireSameMount(root, parent); err != nil {
			return err
		}
		fd, err := openDir(parent, path.Base(rel))
		if err != nil {
			return notSource(err)
		}
		defer closeFD(fd)
		if err := b.requireNoRoot(host, rel); err != nil {
			return err
		}
		identity, err := identityOf(fd)
		if err != nil {
			return err
		}
		at, err := pathOf(parent)
		if err != nil {
			return err
		}
		if above := path.Dir(dir); above != "/" && !strings.HasSuffix(at, above) {
			return fmt.Errorf("%w: the directory that it is in was moved to %s", volume.ErrNotAdoptable, at)
		}
		return f(source{parent: parent, name: path.Base(rel), fd: fd, identity: identity, at: at})
	})
}

// openUnlinked opens a directory on whatever mount, following no link.
func openUnlinked(top int, dir string) (int, error) {
	for {
		fd, err := unix.Openat2(top, dir, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// notSource says what is wrong with a path that cannot be opened.
func notSource(err error) error {
	var what string
	switch {
	case errors.Is(err, unix.ENOENT):
		what = "there is no such directory"
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		what = "it is no directory, or a part of the path is a symbolic link; name the path without links, as realpath shows it"
	case errors.Is(err, unix.EXDEV):
		what = "it is a mount point; make a pool on that filesystem, or copy"
	default:
		return fmt.Errorf("open it: %w", err)
	}
	return fmt.Errorf("%w: %s", volume.ErrNotAdoptable, what)
}

// requireSameMount returns ErrNotAdoptable when an open directory is on another mount than the
// root, from which nothing can be renamed to there. Where the kernel cannot tell (before Linux
// 5.8), the renaming does.
func requireSameMount(root *os.Root, dir int) error {
	here, err := mountID(dir)
	if err != nil {
		return err
	}
	return withDir(root, ".", func(fd int) error {
		there, err := mountID(fd)
		if err == nil && here != there {
			err = errOtherMount
		}
		return err
	})
}

var errOtherMount = fmt.Errorf("%w: it is on another mount than the root of the pool, so that it cannot be moved there without copying; use a pool on its own filesystem, whose root is no bind mount", volume.ErrNotAdoptable)

// mountID is 0 where the kernel does not tell.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("look which mount it is on: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, nil
	}
	return st.Mnt_id, nil
}

// requireNoRoot returns ErrNotAdoptable when the directory is a root of Berth, or lies in one
// that is not the pool's.
func (b *Backend) requireNoRoot(host *os.Root, rel string) error {
	here, err := b.unlinked()
	if err != nil {
		return fmt.Errorf("look where %s is: %w", b.Root, err)
	}
	for dir := rel; dir != "."; dir = path.Dir(dir) {
		if "/"+dir == here {
			continue
		}
		switch _, err := host.Lstat(path.Join(dir, markerFile)); {
		case err == nil:
			return fmt.Errorf("%w: /%s is the root of another pool, or was", volume.ErrNotAdoptable, dir)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return fmt.Errorf("look for %s: %w", path.Join("/", dir, markerFile), err)
		}
	}
	return nil
}
