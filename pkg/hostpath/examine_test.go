// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// What is kept of a deleted volume, and what was taken back, is no volume that could be given up,
// and no stray.
func TestExamineKnowsVolumesOnly(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	keep(t, p, 1)
	keep(t, p, 2)
	_, err := p.backend.TakeBack(t.Context(), kept(t, p)[0].Entry)
	must(t, err)
	rec := makeRetained(t, p, 3)
	found, err := p.backend.List(t.Context())
	if err != nil || len(found) != 1 || found[0].ID != volumetest.ID(3) {
		t.Errorf("the volumes are %+v, %v", found, err)
	}
	for _, n := range []int{1, 2} {
		if e, err := p.backend.Examine(t.Context(), volumetest.ID(n)); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("Examine(%d) = %+v, %v", n, e, err)
		}
	}
	if strays, err := p.backend.Strays(t.Context()); err != nil || len(strays) != 0 {
		t.Errorf("the strays are %s, %v", strays, err)
	}

	// Without its promise a directory is nobody's, and neither examined nor deleted.
	stray := path.Join(p.root, "volumes", volumetest.ID(4))
	must(t, os.MkdirAll(stray, 0o700))
	if strays, err := p.backend.Strays(t.Context()); err != nil || !slices.Equal(strays, []string{stray}) {
		t.Errorf("the strays are %s, %v", strays, err)
	}
	if _, err := p.backend.Examine(t.Context(), volumetest.ID(4)); !errors.Is(err, volume.ErrExists) {
		t.Errorf("Examine of a stray: %v", err)
	}
	if err := p.backend.Delete(t.Context(), volumetest.ID(4), nil, volume.WipeZero); !errors.Is(err, volume.ErrExists) {
		t.Errorf("Delete of a stray: %v", err)
	}

	// Another directory at the place of a volume is another identity; none is, too.
	before, err := p.backend.Examine(t.Context(), volumetest.ID(3))
	must(t, err)
	dir := path.Join(p.root, rec.Hostpath.Directory)
	must(t, os.Rename(dir, dir+".aside"))
	gone, err := p.backend.Examine(t.Context(), volumetest.ID(3))
	must(t, err)
	must(t, os.Mkdir(dir, 0o700))
	other, err := p.backend.Examine(t.Context(), volumetest.ID(3))
	must(t, err)
	if before.Identity == gone.Identity || gone.Identity == other.Identity || other.Identity == before.Identity {
		t.Errorf("the identities are %q, %q and %q", before.Identity, gone.Identity, other.Identity)
	}
	if before.Claim == "" || before.Made.IsZero() || before.Changed.IsZero() {
		t.Errorf("it is not known of what and when it was made: %+v", before)
	}
}

// A snapshot tells of which volume it is, also when that is gone, and a volume which it has.
func TestExamineSnapshot(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	e, err := p.backend.ExamineSnapshot(t.Context(), volumetest.ID(5))
	must(t, err)
	if !e.Record.SameStorage(snap) || e.Name != "snap-5" || e.Of != volumetest.ID(1) || e.OfName != spec(1, mib).Name || e.Made.IsZero() || e.Gone {
		t.Errorf("ExamineSnapshot = %+v", e)
	}
	v, err := p.backend.Examine(t.Context(), volumetest.ID(1))
	must(t, err)
	if !slices.Equal(v.Snapshots, []string{volumetest.ID(5) + " (snap-5)"}) || v.Gone {
		t.Errorf("Examine = %+v", v)
	}
	for _, n := range []int{1, 6} {
		if e, err := p.backend.ExamineSnapshot(t.Context(), volumetest.ID(n)); !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("ExamineSnapshot(%d) = %+v, %v", n, e, err)
		}
	}
	must(t, p.backend.ProveSnapshotUnused(t.Context(), volumetest.ID(5), snap))
	if err := p.backend.ProveSnapshotUnused(t.Context(), volumetest.ID(5), rec); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("ProveSnapshotUnused of another = %v", err)
	}

	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	after, err := p.backend.ExamineSnapshot(t.Context(), volumetest.ID(5))
	must(t, err)
	if after.Of != volumetest.ID(1) || after.OfName != "" || after.Identity != e.Identity {
		t.Errorf("without its volume it is %+v, and was %+v", after, e)
	}
	must(t, os.Rename(p.dirOf(snap), p.dirOf(snap)+".aside"))
	gone, err := p.backend.ExamineSnapshot(t.Context(), volumetest.ID(5))
	must(t, err)
	if !gone.Gone || gone.Identity == e.Identity {
		t.Errorf("without its directory it is %+v", gone)
	}
}
