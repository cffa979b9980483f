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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// quotas are those of a filesystem that begins at a directory. What a project has is found by
// looking at all that is there, as the kernel would have counted it.
type quotas struct {
	top string

	mu       sync.Mutex
	off      bool
	limits   map[uint32]int64
	projects map[uint64]uint32 // by inode
}

// fakeBlock is what each directory and file of a project counts for.
const fakeBlock = 4096

func newQuotas(top string) *quotas {
	return &quotas{top: top, limits: map[uint32]int64{}, projects: map[uint64]uint32{}}
}

func (q *quotas) Check(int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.off {
		return fmt.Errorf("%w: mount it with the option prjquota", quota.ErrUnsupported)
	}
	return nil
}

func (q *quotas) setOff(off bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.off = off
}

func (q *quotas) Usage(_ int, project uint32) (quota.Usage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := quota.Usage{LimitBytes: q.limits[project]}
	err := filepath.WalkDir(q.top, func(name string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		var st unix.Stat_t
		if err == nil && unix.Lstat(name, &st) == nil && q.projects[st.Ino] == project {
			u.Inodes++
			u.UsedBytes += fakeBlock
		}
		return err
	})
	return u, err
}

func (q *quotas) SetLimit(_ int, project uint32, limitBytes int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limits[project] = limitBytes
	return nil
}

func (q *quotas) ProjectOf(fd int) (uint32, bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.projects[st.Ino], q.projects[st.Ino] != 0, nil
}

func (q *quotas) Assign(fd int, project uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var flags unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &flags); err == nil && flags.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
		return unix.EPERM
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.projects[st.Ino] = project
	return nil
}

func (q *quotas) AssignFile(fd int, project uint32) error { return q.Assign(fd, project) }

// of returns the project and the limit of a volume.
func (q *quotas) of(t *testing.T, p *pool, rec volume.Record) (project uint32, limitBytes int64) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path.Join(p.root, rec.Hostpath.Directory), &st))
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.projects[st.Ino], q.limits[q.projects[st.Ino]]
}

// The suite of all backends where sizes are enforced.
func TestConformanceWithQuotas(t *testing.T) {
	t.Parallel()
	conform(t, func(t *testing.T) *pool { return newLimitedPool(t, newQuotas(t.TempDir())) })
}

func newLimitedPool(t *testing.T, q *quotas) *pool {
	t.Helper()
	return startPool(t, &pool{root: path.Join(q.top, strings.ReplaceAll(t.Name(), "/", "-")), used: map[string]bool{}, quotas: q})
}

func create(t *testing.T, p *pool, n int, sizeBytes int64) volume.Record {
	t.Helper()
	rec, err := p.backend.Create(t.Context(), volume.Spec{
		ID: volumetest.ID(n), Name: "pvc", SizeBytes: sizeBytes, Access: volume.AccessFilesystem, Limited: true,
	})
	must(t, err)
	return rec
}

// Each volume has a limit of its own, which grows with it and goes with it; a project is not
// handed out again before all that it counts is gone.
func TestLimits(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := newLimitedPool(t, q)
	must(t, p.backend.Limits(t.Context()))
	one, two := create(t, p, 1, mib), create(t, p, 2, 2*mib)
	project, limitBytes := q.of(t, p, one)
	if project < 1<<30 || limitBytes != mib {
		t.Fatalf("project %d, limited to %d bytes", project, limitBytes)
	}
	if other, limitBytes := q.of(t, p, two); other == project || limitBytes != 2*mib {
		t.Fatalf("both are of project %d; the second is limited to %d bytes", other, limitBytes)
	}
	again := create(t, p, 1, mib)
	if same, _ := q.of(t, p, again); same != project {
		t.Fatalf("repeated: project %d, before %d", same, project)
	}
	_, err := p.backend.Grow(t.Context(), volumetest.ID(1), one, 3*mib)
	must(t, err)
	if same, limitBytes := q.of(t, p, one); same != project || limitBytes != 3*mib {
		t.Fatalf("grown: project %d, limited to %d bytes", same, limitBytes)
	}
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &one, volume.WipeNone))
	p.settle(t)
	if u, err := q.Usage(0, project); err != nil || u != (quota.Usage{}) {
		t.Fatalf("of a deleted volume: %+v, %v", u, err)
	}
}

// On a filesystem that others have filled, what the volumes have not written yet is not
// promised once more.
func TestCapacityBesideOthers(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := newLimitedPool(t, q)
	p.others.Store(3 * volumeBytes) // of five
	want := func(sizeBytes int64) {
		t.Helper()
		c, err := p.backend.Capacity(t.Context())
		if err != nil || c.FreeBytes != sizeBytes || c.MaxVolumeBytes != sizeBytes {
			t.Fatalf("capacity %+v, %v, want %d bytes free", c, err, sizeBytes)
		}
	}
	want(2 * volumeBytes)
	create(t, p, 1, volumeBytes)
	want(volumeBytes + fakeBlock) // its directory is written
	p.others.Add(fakeBlock)       // and that is not free any more
	want(volumeBytes)
	_, err := p.backend.Create(t.Context(), volume.Spec{
		ID: volumetest.ID(2), Name: "pvc", SizeBytes: 2 * volumeBytes, Access: volume.AccessFilesystem, Limited: true,
	})
	if !errors.Is(err, volume.ErrNoSpace) {
		t.Fatalf("a volume that what is left does not hold: %v", err)
	}
}

// What others on the filesystem have numbered so is left to them, and two roots on one
// filesystem never take the same.
func TestProjectsOfOthers(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	seen := map[uint32]bool{}
	for n := range uint32(3) {
		dir := path.Join(q.top, fmt.Sprint("theirs", n))
		must(t, os.Mkdir(dir, 0o755))
		var st unix.Stat_t
		must(t, unix.Stat(dir, &st))
		q.projects[st.Ino] = 1<<30 + n
		seen[1<<30+n] = true
	}
	roots := []*pool{newLimitedPool(t, q), startPool(t, &pool{root: path.Join(q.top, "second"), used: map[string]bool{}, quotas: q})}
	const each = 5
	records := make([][each]volume.Record, len(roots))
	var wg sync.WaitGroup
	for r, p := range roots {
		for n := range each {
			wg.Go(func() { records[r][n] = create(t, p, n+1, mib) })
		}
	}
	wg.Wait()
	for r, p := range roots {
		for _, rec := range records[r] {
			project, limitBytes := q.of(t, p, rec)
			if seen[project] || project == 0 || limitBytes != mib {
				t.Errorf("project %d is somebody's already, or it is limited to %d bytes", project, limitBytes)
			}
			seen[project] = true
		}
	}
}

// A volume of which a killed call has written down a project that somebody has got since gets
// another one.
func TestProjectTakenMeanwhile(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := newLimitedPool(t, q)
	spec := volume.Spec{ID: volumetest.ID(1), Name: "pvc", SizeBytes: mib, Access: volume.AccessFilesystem}
	for n := 0; ; n++ {
		dead := p.crashAt(t, n)
		_, err := p.backend.Create(t.Context(), spec)
		if !dead() {
			must(t, err)
			break
		}
		p.restart(t)
		// Whatever is written down, with a directory or without, is another one's now, unless
		// the directory has it.
		dir := path.Join(q.top, fmt.Sprint("theirs", n))
		must(t, os.Mkdir(dir, 0o755))
		var st unix.Stat_t
		must(t, unix.Stat(dir, &st))
		next := uint32(1<<30 + n)
		var own unix.Stat_t
		if unix.Stat(path.Join(p.root, "volumes", spec.ID), &own) != nil || q.projects[own.Ino] != next {
			q.projects[st.Ino] = next
		}
	}
	// The last round may have taken just as many steps as it was given: nothing dies any more.
	p.restart(t)
	rec := create(t, p, 1, mib)
	project, limitBytes := q.of(t, p, rec)
	if u, err := q.Usage(0, project); err != nil || u.Inodes != 1 || limitBytes != mib {
		t.Fatalf("project %d of %d directories is limited to %d bytes, %v", project, u.Inodes, limitBytes, err)
	}
}

// A limit that is set after all else is on the disk when the call returns: something that is made
// after it is made durable.
func TestLimitIsDurable(t *testing.T) {
	t.Parallel()
	p := limitedBeside(t)
	for name, call := range map[string]func() error{
		"grow": func() error {
			rec := create(t, p, 1, mib)
			_, err := p.backend.Grow(t.Context(), volumetest.ID(1), rec, 2*mib)
			return err
		},
		"adopt": func() error {
			_, err := adopt(t, p, 2, handed(t, p), mib)
			return err
		},
	} {
		must(t, call())
		steps := p.taken()
		slices.Reverse(steps)
		if durable := slices.Index(steps, "write behind the limit"); durable < 0 || durable > slices.Index(steps, "limit") {
			t.Errorf("%s: nothing is made durable after the limit; the steps, the last one first, are %q", name, steps)
		}
	}
}

// A pod that is root may give its directory whatever project, and it is another volume's. That
// keeps its limit when the pod's volume is deleted, and its project.
func TestLimitOfAnotherStays(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		retainFor time.Duration
		deep      bool
	}{
		"deleted":  {},
		"retained": {retainFor: time.Hour},
		"deep":     {deep: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQuotas(t.TempDir())
			p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, retainFor: tc.retainFor})
			victim := create(t, p, 1, mib)
			theirs, _ := q.of(t, p, victim)
			rec, err := p.backend.Create(t.Context(), volume.Spec{
				ID: volumetest.ID(2), Name: "pvc", SizeBytes: mib, Access: volume.AccessFilesystem, Limited: true, RetainFor: tc.retainFor,
			})
			must(t, err)
			own, _ := q.of(t, p, rec)
			dir := path.Join(p.root, rec.Hostpath.Directory)
			if tc.deep {
				dir += strings.Repeat("/deep", 600)
			}
			must(t, os.MkdirAll(path.Join(dir, "some"), 0o755))
			if tc.deep {
				must(t, filepath.WalkDir(path.Join(p.root, rec.Hostpath.Directory), func(name string, _ fs.DirEntry, err error) error {
					var st unix.Stat_t
					must(t, errors.Join(err, unix.Lstat(name, &st)))
					if name != path.Join(p.root, rec.Hostpath.Directory) {
						q.projects[st.Ino] = theirs
					}
					return nil
				}))
			} else {
				var st unix.Stat_t
				must(t, unix.Stat(dir, &st))
				q.projects[st.Ino] = theirs
			}
			must(t, p.backend.Delete(t.Context(), volumetest.ID(2), &rec, volume.WipeNone))
			p.settle(t)
			if project, limitBytes := q.of(t, p, victim); project != theirs || limitBytes != mib {
				t.Fatalf("the other volume, of project %d, is limited to %d bytes", project, limitBytes)
			}
			if u, err := q.Usage(0, own); err != nil || tc.deep && u.LimitBytes != 0 {
				t.Fatalf("its own project: %+v, %v", u, err)
			}
		})
	}
}

// A volume that has taken all it has out of its project keeps it: no volume of another root on
// the filesystem gets it.
func TestProjectThatNothingIsCountedBy(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	one := startPool(t, &pool{root: path.Join(q.top, "one"), used: map[string]bool{}, quotas: q})
	two := startPool(t, &pool{root: path.Join(q.top, "two"), used: map[string]bool{}, quotas: q})
	rec := create(t, one, 1, mib)
	own, _ := q.of(t, one, rec)
	var st unix.Stat_t
	must(t, unix.Stat(path.Join(one.root, rec.Hostpath.Directory), &st))
	q.projects[st.Ino] = 0
	if other, _ := q.of(t, two, create(t, two, 2, mib)); other == own {
		t.Fatalf("both have project %d", own)
	}
}

// Where nothing is limited a volume is a promise, unless it must be limited.
func TestWithoutQuotas(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := newLimitedPool(t, q)
	q.setOff(true)
	if err := p.backend.Limits(t.Context()); !errors.Is(err, quota.ErrUnsupported) || !strings.Contains(err.Error(), "prjquota") {
		t.Fatalf("got %v", err)
	}
	spec := volume.Spec{ID: volumetest.ID(1), Name: "pvc", SizeBytes: mib, Access: volume.AccessFilesystem, Limited: true}
	if _, err := p.backend.Create(t.Context(), spec); !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "prjquota") {
		t.Fatalf("got %v", err)
	}
	if found, err := p.backend.List(t.Context()); err != nil || len(found) > 0 {
		t.Fatalf("a refusal has left %v, %v", found, err)
	}
	spec.Limited = false
	rec, err := p.backend.Create(t.Context(), spec)
	must(t, err)
	if project, _ := q.of(t, p, rec); project != 0 {
		t.Fatalf("project %d where there are none", project)
	}
	q.setOff(false)
	_, err = p.backend.Grow(t.Context(), spec.ID, rec, 2*mib)
	must(t, err)
	if project, _ := q.of(t, p, rec); project != 0 {
		t.Fatal("what is in it already is not counted, and yet it has a project")
	}
	must(t, p.backend.Delete(t.Context(), spec.ID, &rec, volume.WipeNone))
	p.settle(t)
}

const mib = 1 << 20
