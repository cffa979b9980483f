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
