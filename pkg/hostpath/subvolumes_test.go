// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// subvolumes are directories that are remembered to be some, by their inodes. What is in one
// is copied and removed in a step that nothing comes between.
type subvolumes struct {
	mu sync.Mutex
	of map[uint64]bool
	// ids are their numbers, of which none is given twice.
	ids map[uint64]uint64
	// last is the number that was given last.
	last uint64
	// groups, if not nil, count and limit them.
	groups *groups
	// readOnly are those that cannot be written to.
	readOnly map[uint64]bool
}

func where(dir int) string { return fmt.Sprintf("/proc/self/fd/%d/", dir) }

func inodeNumber(name string) uint64 {
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil {
		return 0
	}
	return st.Ino
}

func (s *subvolumes) Supported(int) (bool, error) { return true, nil }

func (s *subvolumes) Is(dir int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[inodeNumber(where(dir))], nil
}

func (s *subvolumes) make(name string) error {
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	s.of[inodeNumber(name)] = true
	if s.ids == nil {
		s.ids = map[uint64]uint64{}
	}
	s.last++
	s.ids[inodeNumber(name)] = 255 + s.last
	return nil
}

func (s *subvolumes) ID(dir int) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.ids[inodeNumber(where(dir))]; id != 0 {
		return id, nil
	}
	return 5, nil // in none that was made
}

func (s *subvolumes) Create(dir int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.make(where(dir) + name)
}

func (s *subvolumes) Snapshot(dir int, name string, of int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := where(dir) + name
	if !s.of[inodeNumber(where(of))] {
		return unix.EINVAL
	}
	if err := s.make(to); err != nil {
		return err
	}
	if s.groups != nil {
		s.groups.inherit(s.ids[inodeNumber(where(of))], s.ids[inodeNumber(to)])
	}
	from := os.DirFS(where(of))
	if err := os.CopyFS(to, from); err != nil {
		return err
	}
	return fs.WalkDir(from, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(path.Join(to, name), info.Mode())
	})
}

func (s *subvolumes) Remove(dir int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = where(dir) + name
	if !s.of[inodeNumber(name)] {
		return unix.ENOENT
	}
	if others, err := s.others(name); err != nil || others {
		return errors.Join(err, unix.ENOTEMPTY)
	}
	if s.groups != nil {
		s.groups.drop(s.ids[inodeNumber(name)])
	}
	delete(s.of, inodeNumber(name))
	delete(s.ids, inodeNumber(name))
	return os.RemoveAll(name)
}

func (s *subvolumes) others(name string) (others bool, err error) {
	top := inodeNumber(name)
	err = filepath.WalkDir(name+"/", func(in string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && inodeNumber(in) != top && s.of[inodeNumber(in)] {
			others = true
		}
		return err
	})
	return others, err
}

func (s *subvolumes) SetWritable(dir int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.readOnly, inodeNumber(where(dir)))
	return nil
}

func (s *subvolumes) HasOthers(dir int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.others(where(dir))
}

// made is a subvolume that a pod has made.
func (s *subvolumes) made(t *testing.T, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	must(t, s.make(name))
}

// A subvolume is copied while somebody writes to it. A directory of before beside it is not,
// and what is made of it is a subvolume.
func TestSubvolumesAreCopiedWhileTheyAreWritten(t *testing.T) {
	t.Parallel()
	p := newSubvolumePool(t)
	if instant, err := p.backend.Copies(t.Context()); err != nil || !instant {
		t.Fatalf("Copies = %t, %v", instant, err)
	}
	rec, dir := volumeWith(t, p, 1)
	p.write(dir, true)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	clone, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false))
	must(t, err)
	restored, err := p.backend.Create(t.Context(), copyOf(3, 5, snap, true))
	must(t, err)
	for _, copied := range []volume.Record{snap, clone, restored} {
		if got, want := snapshot(t, p.dirOf(copied)), snapshot(t, dir); got != want {
			t.Errorf("%s is\n%s\nwant\n%s", copied.Hostpath.Directory, got, want)
		}
	}

	p.subvolumes.mu.Lock()
	delete(p.subvolumes.of, inodeNumber(dir)) // it was made by an older agent
	p.subvolumes.mu.Unlock()
	if _, err := p.backend.Create(t.Context(), copyOf(4, 1, rec, false)); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("a directory that is written to: %v", err)
	}
	p.write(dir, false)
	copied, err := p.backend.Create(t.Context(), copyOf(4, 1, rec, false))
	must(t, err)
	if !p.subvolumes.of[inodeNumber(p.dirOf(copied))] {
		t.Error("what was made of a directory is no subvolume")
	}
}

// What a pod has made subvolumes in is not copied without them, and is removed with them.
func TestSubvolumesInSubvolumes(t *testing.T) {
	t.Parallel()
	p := newSubvolumePool(t)
	rec, dir := volumeWith(t, p, 1)
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	p.subvolumes.made(t, path.Join(dir, "below", "own"))
	p.subvolumes.made(t, path.Join(dir, "below", "own", "inner"))
	writeFile(t, path.Join(dir, "below", "own", "inner", "file"), "data")
	_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "subvolumes of its own") {
		t.Errorf("Snapshot = %v, want a refusal", err)
	}
	p.settle(t)
	wantNothing(t, p, before)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	p.settle(t)
	p.subvolumes.mu.Lock()
	defer p.subvolumes.mu.Unlock()
	if len(p.subvolumes.of) > 0 {
		t.Errorf("left are %d subvolumes", len(p.subvolumes.of))
	}
}

// What lies too deep in a subvolume is moved up within that: a btrfs renames nothing out of one.
func TestDeepSubvolumes(t *testing.T) {
	t.Parallel()
	p := newSubvolumePool(t)
	rec, dir := volumeWith(t, p, 1)
	for _, deep := range []string{strings.Repeat("d/", 200), "made by a pod/" + strings.Repeat("e/", 100)} {
		must(t, os.MkdirAll(path.Join(dir, deep), 0o755))
		p.subvolumes.made(t, path.Join(dir, deep, "own"))
	}
	p.stop()
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	most := 0
	p.backend.SetStep(func(string) error {
		most = max(most, len(globs(t, path.Join(p.root, ".trash/*"))))
		return nil
	})
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
	if most != 1 {
		t.Errorf("%d entries were in the trash", most)
	}
	if left := globs(t, path.Join(p.root, ".trash/*")); len(left) > 0 || len(p.subvolumes.of) > 0 {
		t.Errorf("left are %q and %d subvolumes", left, len(p.subvolumes.of))
	}
}
