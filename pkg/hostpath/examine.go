// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

var _ volume.Examiner = (*Backend)(nil)

// Examine implements volume.Examiner, by the promise and the directory. What is kept of
// deleted volumes, and what was taken back, has no promise, and is not found. A directory
// that is gone from under its promise is part of the identity.
func (b *Backend) Examine(ctx context.Context, id string) (volume.Examination, error) {
	root, p, err := b.find(ctx, id, nil)
	if err != nil {
		return volume.Examination{}, fmt.Errorf("examine volume %s: %w", id, err)
	}
	defer closeRoot(root)
	e := volume.Examination{Record: b.record(p), Name: p.Name, Claim: p.Claim, Made: p.Created}
	directory := "no directory"
	err = withVolume(root, p, func(_, fd int) error {
		if err := requireIdentity(fd, p); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		e.Changed = time.Unix(st.Mtim.Unix())
		var err error
		directory, err = identityOf(fd)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return volume.Examination{}, fmt.Errorf("examine volume %s: %w", id, err)
	}
	e.Identity = b.identity(p, directory)
	return e, nil
}

// ProveUnused implements volume.Examiner, by the host's mount table.
func (b *Backend) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	root, p, err := b.find(ctx, id, &rec)
	if err != nil {
		return fmt.Errorf("look for who has volume %s: %w", id, err)
	}
	defer closeRoot(root)
	return b.requireUnused(p.dir())
}

// Strays returns what lies among the volumes by their IDs and was promised to none: put there by
// somebody else, or left of a root whose records were lost. It is no volume, and nobody touches
// it. Not what is kept of deleted volumes, and not what lies at paths, where there may be
// anything. One that is being made may be among them.
func (b *Backend) Strays(ctx context.Context) ([]string, error) {
	root, err := b.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for strays: %w", err)
	}
	defer closeRoot(root)
	names, err := readNames(root, volumesDir)
	if err != nil {
		return nil, fmt.Errorf("look for strays in %s: %w", b.Root, err)
	}
	promised, err := b.promises.all(root)
	if err != nil {
		return nil, fmt.Errorf("look for strays in %s: %w", b.Root, err)
	}
	ours := map[string]bool{}
	for _, p := range promised {
		ours[p.dir()] = true
	}
	var strays []string
	for _, name := range names {
		if dir := volumeDir(name); !ours[dir] {
			strays = append(strays, path.Join(b.Root, dir))
		}
	}
	slices.Sort(strays)
	return strays, nil
}
