// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNoCopies: the filesystem of a root cannot copy volumes. The text says what is missing.
var ErrNoCopies = errors.New("volumes cannot be copied")

// sharing is whether files can share their blocks under a root, as far as that was tried.
type sharing struct {
	mu    sync.Mutex
	tried bool
	err   error
	// instant: there are subvolumes, and they can be copied.
	instant bool
}

// probeFile is what is shared to find out; the other one has suffixes on its name.
const probeFile = berthDir + "/probe"

// Copies returns nil when volumes of the root can be snapshotted and copied, and an error that
// wraps ErrNoCopies and says why when its filesystem cannot do that. instant is true when new
// volumes are copied at one instant, while somebody writes to them. It is tried once in the
// life of a process, on files of the root's own.
func (b *Backend) Copies(ctx context.Context) (instant bool, err error) {
	root, err := b.open(ctx)
	if err != nil {
		return false, fmt.Errorf("look whether volumes can be copied: %w", err)
	}
	defer closeRoot(root)
	if err := b.checkCopies(root); err != nil {
		return false, err
	}
	return b.makesSubvolumes(root)
}

func (b *Backend) checkCopies(root *os.Root) error {
	b.sharing.mu.Lock()
	defer b.sharing.mu.Unlock()
	if b.sharing.tried {
		return b.sharing.err
	}
	err := b.tryCopy(root)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		err = fmt.Errorf("%w: the filesystem of the root %s has no reflinks (%s): an xfs that was made with reflink=1 has them, and a btrfs", ErrNoCopies, b.Root, err.Error())
	case err != nil:
		return fmt.Errorf("try to copy a file of %s: %w", b.Root, err)
	}
	has, hasErr := b.hasSubvolumes(root)
	if hasErr != nil {
		return hasErr
	}
	if has && err == nil {
		switch tryErr := b.trySubvolumes(root); {
		case tryErr == nil:
			b.sharing.instant = true
		case errors.Is(tryErr, unix.EPERM), errors.Is(tryErr, unix.ENOTTY), errors.Is(tryErr, unix.EINVAL):
			b.Log.Warn("Volumes are directories, and no subvolumes, which were tried", "root", b.Root, "cause", tryErr)
		default:
			return fmt.Errorf("try to make a subvolume in %s: %w", b.Root, outOfSpace(tryErr))
		}
	}
	b.sharing.tried, b.sharing.err = true, err
	return err
}

func (b *Backend) tryCopy(root *os.Root) (err error) {
	if err := b.step("try to copy"); err != nil {
		return err
	}
	const name, copied = probeFile + tmpSuffix, probeFile + ".copy" + tmpSuffix
	defer func() {
		for _, name := range []string{name, copied} {
			if removeErr := root.Remove(name); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	from, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return outOfSpace(err)
	}
	defer from.Close()
	to, err := root.OpenFile(copied, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return outOfSpace(err)
	}
	defer to.Close()
	if _, err := from.Write(make([]byte, probeBytes)); err != nil {
		return outOfSpace(err)
	}
	return b.Clone(int(to.Fd()), int(from.Fd()))
}

// probeBytes are a whole number of blocks of any filesystem.
const probeBytes = 64 << 10
