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
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/volume"
)

var (
	_ volume.Examiner         = (*Backend)(nil)
	_ volume.SnapshotExaminer = (*Backend)(nil)
)

// Examine implements volume.Examiner, by the promise and the directory. What is kept of
// deleted volumes, and what was taken back, has no promise, and is not found. A directory
// that is gone from under its promise is part of the identity.
func (b *Backend) Examine(ctx context.Context, id string) (volume.Examination, error) {
	e, err := b.examine(ctx, promise{ID: id}, func(root *os.Root, p promise, e *volume.Examination) error {
		snapshots, err := b.allSnapshots(root)
		for _, s := range snapshots {
			if s.Source == p.ID {
				e.Snapshots = append(e.Snapshots, s.ID+" ("+s.Name+")")
			}
		}
		slices.Sort(e.Snapshots)
		return err
	})
	if err != nil {
		return volume.Examination{}, fmt.Errorf("examine volume %s: %w", id, err)
	}
	return e, nil
}

// ExamineSnapshot implements volume.SnapshotExaminer, as Examine does.
func (b *Backend) ExamineSnapshot(ctx context.Context, id string) (volume.Examination, error) {
	e, err := b.examine(ctx, promise{ID: id, Snapshot: true}, func(root *os.Root, p promise, e *volume.Examination) error {
		e.Of = p.Source
		of, err := readPromise(root, p.Source)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it outlives its volume
		}
		e.OfName = of.Name
		return err
	})
	if err != nil {
		return volume.Examination{}, fmt.Errorf("examine snapshot %s: %w", id, err)
	}
	return e, nil
}

// examine finds a volume or a snapshot, and has more told of it.
func (b *Backend) examine(ctx context.Context, wanted promise, more func(*os.Root, promise, *volume.Examination) error) (volume.Examination, error) {
	root, p, err := b.findPromise(ctx, wanted, nil)
	if err != nil {
		return volume.Examination{}, err
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
	if e.Gone = errors.Is(err, unix.ENOENT); err != nil && !e.Gone {
		return volume.Examination{}, err
	}
	e.Identity = b.identity(p, directory)
	return e, more(root, p, &e)
}

// ProveUnused implements volume.Examiner, by the host's mount table.
func (b *Backend) ProveUnused(ctx context.Context, id string, rec volume.Record) error {
	return b.proveUnused(ctx, promise{ID: id}, rec)
}

// ProveSnapshotUnused implements volume.SnapshotExaminer, by the host's mount table.
func (b *Backend) ProveSnapshotUnused(ctx context.Context, id string, rec volume.Record) error {
	return b.proveUnused(ctx, promise{ID: id, Snapshot: true}, rec)
}

func (b *Backend) proveUnused(ctx context.Context, wanted promise, rec volume.Record) error {
	root, p, err := b.findPromise(ctx, wanted, &rec)
	if err != nil {
		return fmt.Errorf("look for who has %s: %w", wanted.dir(), err)
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
