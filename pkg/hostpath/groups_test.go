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
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// groups are those of the subvolumes of a filesystem that begins at a directory. Each subvolume
// has one while quotas are on; it is removed by whoever asks for it when the subvolume is gone.
type groups struct {
	top        string
	subvolumes *subvolumes

	mu sync.Mutex
	// state is what is wrong with the quotas.
	state  error
	limits map[uint64]int64
	// dropping are removed, and what was in them is not yet.
	dropping map[uint64]bool
	// left are the groups of subvolumes that are gone.
	left map[uint64]bool
	// lost is the error of everything that is asked.
	lost error
}

func newGroups(top string) *groups {
	s := &subvolumes{of: map[uint64]bool{}}
	s.groups = &groups{top: top, subvolumes: s, limits: map[uint64]int64{}, dropping: map[uint64]bool{}, left: map[uint64]bool{}}
	return s.groups
}

var (
	errOff        = fmt.Errorf("%w: btrfs quota enable", quota.ErrOff)
	errRescanning = fmt.Errorf("%w: it is being counted", quota.ErrUncounted)
)

func (g *groups) Check(int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.lost, g.state)
}

// set changes the state of the quotas. When they are switched off, everything is forgotten.
func (g *groups) set(state error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state = state; errors.Is(state, errOff) {
		clear(g.limits)
		clear(g.left)
	}
}

// whose returns the directory of a subvolume.
func (g *groups) whose(id uint64) (dir string) {
	g.subvolumes.mu.Lock()
	defer g.subvolumes.mu.Unlock()
	_ = filepath.WalkDir(g.top, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && g.subvolumes.of[inodeNumber(name)] && g.subvolumes.ids[inodeNumber(name)] == id {
			dir = name
			return fs.SkipAll
		}
		return nil
	})
	return dir
}

// Usage counts a block for each name in it. That of a subvolume in it counts as one.
func (g *groups) Usage(_ int, id uint64) (quota.Usage, error) {
	dir := g.whose(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	u := quota.Usage{LimitBytes: g.limits[id]}
	if dir == "" || errors.Is(g.state, errOff) {
		return u, g.lost
	}
	err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		u.UsedBytes += fakeBlock
		return err
	})
	return u, errors.Join(err, g.lost)
}

func (g *groups) SetLimit(_ int, id uint64, limitBytes int64) error {
	there := g.whose(id) != ""
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case errors.Is(g.state, errOff):
		return errOff
	case !there:
		return fmt.Errorf("no group 0/%d", id)
	}
	g.limits[id] = limitBytes
	if limitBytes == 0 {
		delete(g.limits, id)
	}
	return g.lost
}

func (g *groups) Remove(_ int, id uint64) error {
	there := g.whose(id) != ""
	g.mu.Lock()
	defer g.mu.Unlock()
	if there || g.dropping[id] {
		delete(g.dropping, id) // it is gone when it is looked at next
		return unix.EBUSY
	}
	delete(g.left, id)
	delete(g.limits, id)
	return g.lost
}

// inherit: a copy has the limit of what it was copied of (btrfs_qgroup_inherit).
func (g *groups) inherit(from, to uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if limit := g.limits[from]; limit != 0 {
		g.limits[to] = limit
	}
}

// drop: a subvolume is removed in the background.
func (g *groups) drop(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !errors.Is(g.state, errOff) {
		g.dropping[id], g.left[id] = true, true
	}
}

// of returns the number and the limit of a volume's subvolume.
func (g *groups) of(t *testing.T, p *pool, rec volume.Record) (id uint64, limitBytes int64) {
	t.Helper()
	dir := p.dirOf(rec)
	g.subvolumes.mu.Lock()
	id = g.subvolumes.ids[inodeNumber(dir)]
	g.subvolumes.mu.Unlock()
	if id == 0 {
		t.Fatalf("%s is no subvolume", dir)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return id, g.limits[id]
}

func newGroupPool(t *testing.T, g *groups) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(g.top, "pool"), used: map[string]bool{}, copies: true, subvolumes: g.subvolumes, groups: g})
}

// The suite of all backends where subvolumes are limited, by their IDs and at paths.
func TestConformanceWithGroups(t *testing.T) {
	t.Parallel()
	skipUnderRace(t)
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named %t", named), func(t *testing.T) {
			conform(t, func(t *testing.T) *pool {
				p := newGroupPool(t, newGroups(t.TempDir()))
				p.named = named
				return p
			})
		})
	}
}

// wantLimit fails unless a volume's subvolume is limited to so many bytes.
func (g *groups) wantLimit(t *testing.T, p *pool, rec volume.Record, limitBytes int64) {
	t.Helper()
	if id, got := g.of(t, p, rec); got != limitBytes {
		t.Errorf("subvolume %d, %s, is limited to %d bytes, want %d", id, rec.Hostpath.Directory, got, limitBytes)
	}
}

// A volume, its snapshot and what is made of that are each limited to their own size, whatever
// the filesystem has them inherit.
func TestGroupsLimit(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	p := newGroupPool(t, g)
	must(t, p.backend.Limits(t.Context()))
	one, two := create(t, p, 1, mib), create(t, p, 2, 2*mib)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, one))
	must(t, err)
	larger := copyOf(3, 5, snap, true)
	larger.SizeBytes, larger.Limited = 3*mib, true
	restored, err := p.backend.Create(t.Context(), larger)
	must(t, err)
	for rec, limitBytes := range map[*volume.Record]int64{&one: mib, &two: 2 * mib, &snap: mib, &restored: 3 * mib} {
		g.wantLimit(t, p, *rec, limitBytes)
	}
	_, err = p.backend.Grow(t.Context(), volumetest.ID(1), one, 4*mib)
	must(t, err)
	g.wantLimit(t, p, one, 4*mib)
	g.wantLimit(t, p, snap, mib)
}

// What a pod writes on a shared filesystem is not promised twice, and what is kept of a deleted
// volume still counts, with what it holds.
func TestGroupsCount(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	p := newGroupPool(t, g)
	p.retainFor = retainFor
	p.others.Store(3 * volumeBytes) // of five
	want := func(when string, sizeBytes int64) {
		t.Helper()
		if c, err := p.backend.Capacity(t.Context()); err != nil || c.FreeBytes != sizeBytes {
			t.Errorf("%s: free are %d bytes, %v, want %d", when, c.FreeBytes, err, sizeBytes)
		}
	}
	want("at first", 2*volumeBytes)
	rec, err := asking{p.backend, p}.Create(t.Context(), spec(1, volumeBytes))
	must(t, err)
	want("with a volume", volumeBytes+fakeBlock)
	writeFile(t, path.Join(p.dirOf(rec), "file"), "data")
	want("with a file in it", volumeBytes+2*fakeBlock)
	g.set(errRescanning)
	want("while it is being counted", volumeBytes+2*fakeBlock)
	g.set(nil)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
	want("where it is kept", volumeBytes+2*fakeBlock)
	if all := kept(t, p); len(all) != 1 || all[0].UsedBytes != 2*fakeBlock {
		t.Errorf("kept is %+v", all)
	}
	g.set(errOff)
	want("where nothing is counted any more", 2*volumeBytes)
	if all := kept(t, p); len(all) != 1 || all[0].UsedBytes >= 0 {
		t.Errorf("kept is %+v", all)
	}
}

// Whoever asks for a limit gets a volume only where that holds; a volume that was made without
// one stays without, and its copies have one.
func TestGroupsOff(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]error{"off": errOff, "being counted": errRescanning} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGroups(t.TempDir())
			g.state = state
			p := newGroupPool(t, g)
			if err := p.backend.Limits(t.Context()); !errors.Is(err, state) {
				t.Fatalf("Limits = %v", err)
			}
			limited := spec(1, mib)
			limited.Limited = true
			if _, err := p.backend.Create(t.Context(), limited); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "cannot be enforced") {
				t.Errorf("Create = %v", err)
			}
			if found, err := p.backend.List(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("a refusal has left %v, %v", found, err)
			}
			rec, err := p.backend.Create(t.Context(), spec(1, mib))
			must(t, err)
			limitBytes := int64(0)
			if errors.Is(state, quota.ErrUncounted) {
				limitBytes = mib // it holds as soon as it is counted
			}
			g.wantLimit(t, p, rec, limitBytes)
			g.set(nil)
			must(t, p.backend.Limits(t.Context()))
			_, err = p.backend.Grow(t.Context(), volumetest.ID(1), rec, 2*mib)
			must(t, err)
			g.wantLimit(t, p, rec, 2*limitBytes)
			clone, err := p.backend.Create(t.Context(), copyOf(2, 1, volume.Record{Mode: rec.Mode, SizeBytes: 2 * mib, Hostpath: rec.Hostpath}, false))
			must(t, err)
			g.wantLimit(t, p, clone, 2*mib)
		})
	}
}

// Limits that are lost are set again, and no others: not when the agent begins, not when quotas
// were switched off and on.
func TestGroupsAreRestored(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	g.state = errOff
	p := newGroupPool(t, g)
	before, err := p.backend.Create(t.Context(), spec(1, mib))
	must(t, err)
	g.set(nil)
	rec := create(t, p, 2, mib)
	eventually := func(when string) {
		t.Helper()
		for deadline, tick := time.After(time.Minute), time.Tick(time.Millisecond); ; {
			if _, limitBytes := g.of(t, p, rec); limitBytes == mib {
				break
			}
			select {
			case <-tick:
			case <-deadline:
				t.Fatalf("%s: it has no limit", when)
			}
		}
		g.wantLimit(t, p, before, 0)
	}
	off := func() {
		g.set(errOff)
		g.set(nil)
		g.wantLimit(t, p, rec, 0)
	}
	off()
	p.restart(t)
	eventually("after the start")

	g.set(errOff)
	_ = p.backend.Limits(t.Context())
	g.set(errRescanning)
	_ = p.backend.Limits(t.Context())
	eventually("after it was seen")

	off()
	p.pass(time.Hour)
	eventually("after a while")
}

// An operator who has limited a volume that had no limit has it grow with the volume, and never
// shrink.
func TestGroupsOfOperators(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	g.state = errOff
	p := newGroupPool(t, g)
	rec, err := p.backend.Create(t.Context(), spec(1, mib))
	must(t, err)
	g.set(nil)
	id, _ := g.of(t, p, rec)
	must(t, g.SetLimit(0, id, 3*mib))
	for _, step := range [][2]int64{{2 * mib, 3 * mib}, {4 * mib, 4 * mib}} {
		_, err := p.backend.Grow(t.Context(), volumetest.ID(1), rec, step[0])
		must(t, err)
		g.wantLimit(t, p, rec, step[1])
	}
}

// The group of a deleted volume goes as well, with those that pods have had made in it, wherever
// the process was killed; those of others stay.
func TestGroupsAreRemoved(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		g := newGroups(t.TempDir())
		p := newGroupPool(t, g)
		rec := create(t, p, 1, mib)
		g.subvolumes.made(t, path.Join(p.dirOf(rec), "own"))
		theirs := path.Join(g.top, "theirs")
		g.subvolumes.made(t, theirs)
		id := g.subvolumes.ids[inodeNumber(theirs)]
		must(t, g.SetLimit(0, id, mib))
		dead := p.crashAt(t, n)
		_ = p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone)
		p.settle(t)
		killed := dead()
		p.restart(t)
		must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeNone))
		p.settle(t)
		for deadline, tick := time.After(time.Minute), time.Tick(time.Millisecond); ; {
			p.backend.Kick() // as if the time had come
			g.mu.Lock()
			left := len(g.left)
			g.mu.Unlock()
			notes, err := os.ReadDir(path.Join(p.root, ".berth/qgroups"))
			must(t, err)
			if left == 0 && len(notes) == 0 {
				break
			}
			select {
			case <-tick:
			case <-deadline:
				t.Fatalf("killed at %d: left are %d groups and %v", n, left, notes)
			}
		}
		if g.limits[id] != mib || len(g.limits) != 1 {
			t.Errorf("killed at %d: limits are %v", n, g.limits)
		}
		p.stop()
		p.stop = func() {}
		if !killed {
			break
		}
	}
}

// What cannot be read is no proof that nothing is limited.
func TestGroupsFail(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	p := newGroupPool(t, g)
	rec := create(t, p, 1, mib)
	g.mu.Lock()
	g.lost = unix.EIO
	g.mu.Unlock()
	if err := p.backend.Limits(t.Context()); !errors.Is(err, unix.EIO) || errors.Is(err, quota.ErrUnsupported) {
		t.Errorf("Limits = %v", err)
	}
	if _, err := p.backend.Capacity(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("Capacity = %v", err)
	}
	if _, err := p.backend.Create(t.Context(), spec(2, mib)); err == nil {
		t.Error("a volume was made without a limit")
	}
	if _, err := p.backend.Grow(t.Context(), volumetest.ID(1), rec, 2*mib); !errors.Is(err, unix.EIO) {
		t.Errorf("Grow = %v", err)
	}
}

// A subvolume is limited when it is adopted, and a directory is not, which is refused where it
// must be.
func TestGroupsOfAdopted(t *testing.T) {
	t.Parallel()
	g := newGroups(t.TempDir())
	p := newGroupPool(t, g)
	sub, dir := path.Join(p.root, "sub"), path.Join(p.root, "dir")
	g.subvolumes.made(t, sub)
	must(t, os.Mkdir(dir, 0o755))
	for _, in := range []string{sub, dir} {
		writeFile(t, path.Join(in, "file"), "data")
	}
	asked := spec(1, mib)
	asked.Limited = true
	if _, err := p.backend.Adopt(t.Context(), asked, volume.Adoption{Directory: dir}); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "nothing but subvolumes") {
		t.Errorf("a directory: %v", err)
	}
	tooSmall := asked
	tooSmall.SizeBytes = fakeBlock
	if _, err := p.backend.Adopt(t.Context(), tooSmall, volume.Adoption{Directory: sub}); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "make that larger") {
		t.Errorf("of more than its size: %v", err)
	}
	rec, err := p.backend.Adopt(t.Context(), asked, volume.Adoption{Directory: sub})
	must(t, err)
	g.wantLimit(t, p, rec, mib)
	asked.ID, asked.Limited = volumetest.ID(2), false
	rec, err = p.backend.Adopt(t.Context(), asked, volume.Adoption{Directory: dir})
	must(t, err)
	if _, err := p.backend.Grow(t.Context(), volumetest.ID(2), rec, 2*mib); err != nil {
		t.Errorf("Grow of what is not limited = %v", err)
	}
}

var _ hostpath.Groups = (*groups)(nil)
