// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// Nothing under the root leads out of it, whatever a directory was exchanged for
// (I12).
func TestLinksDoNotLeadOut(t *testing.T) {
	t.Parallel()
	for _, exchanged := range []string{"volumes/" + volumetest.ID(1), "volumes", ".trash", ".berth", ".berth/volumes"} {
		t.Run(exchanged, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			p.stop()
			rec, err := p.backend.Create(t.Context(), spec(1, 1))
			must(t, err)
			writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "data")

			// Outside is a copy of what was there, so that a call that followed the link
			// would find what it looks for.
			outside := t.TempDir()
			victim := path.Join(outside, "copy")
			must(t, os.Rename(path.Join(p.root, exchanged), victim))
			must(t, os.Symlink(victim, path.Join(p.root, exchanged)))
			before := snapshot(t, outside)

			calls := map[string]func() error{
				"Create": func() error { _, err := p.backend.Create(t.Context(), spec(1, 2)); return err },
				"Delete": func() error { return p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero) },
			}
			if exchanged != ".trash" {
				calls["Locate"] = func() error { _, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec); return err }
				calls["Grow"] = func() error { _, err := p.backend.Grow(t.Context(), volumetest.ID(1), rec, 3); return err }
			} else {
				delete(calls, "Create")
			}
			for name, call := range calls {
				if err := call(); err == nil || errors.Is(err, volume.ErrNotFound) {
					t.Errorf("%s with %s exchanged = %v, want a refusal", name, exchanged, err)
				}
			}
			if after := snapshot(t, outside); after != before {
				t.Fatalf("something outside changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A mode that the pod's owner has set is not reset by a repeated Create.
func TestCreateLeavesTheModeOfAUsedDirectory(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	rec, err := p.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	dir := path.Join(p.root, rec.Hostpath.Directory)
	info, err := os.Stat(dir)
	must(t, err)
	if got := info.Mode().Perm(); got != 0o777 {
		t.Fatalf("a new directory has mode %o, want 777 whatever the umask", got)
	}
	must(t, os.Chmod(dir, 0o750))
	_, err = p.backend.Create(t.Context(), spec(1, 1))
	must(t, err)
	info, err = os.Stat(dir)
	must(t, err)
	if got := info.Mode().Perm(); got != 0o750 {
		t.Fatalf("Create again set the mode to %o", got)
	}
}

// A directory without a promise is not ours: it is neither given to a volume nor
// deleted.
func TestForeignDirectory(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	writeFile(t, path.Join(p.root, "volumes", volumetest.ID(1), "file"), "precious")
	if _, err := p.backend.Create(t.Context(), spec(1, 1)); !errors.Is(err, volume.ErrExists) {
		t.Errorf("Create over a foreign directory = %v, want ErrExists", err)
	}
	if err := p.backend.Delete(t.Context(), volumetest.ID(1), nil, volume.WipeZero); !errors.Is(err, volume.ErrExists) {
		t.Errorf("Delete of a foreign directory = %v, want ErrExists", err)
	}
	if _, err := os.Stat(path.Join(p.root, "volumes", volumetest.ID(1), "file")); err != nil {
		t.Error(err)
	}
}
