// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func snapshotSpec(n, of int, rec volume.Record) volume.SnapshotSpec {
	return volume.SnapshotSpec{ID: volumetest.ID(n), Name: fmt.Sprintf("snap-%d", n), VolumeID: volumetest.ID(of), Volume: rec}
}

// copyOf is a wish for volume n as a copy of something.
func copyOf(n, of int, rec volume.Record, isSnapshot bool) volume.Spec {
	s := spec(n, rec.SizeBytes)
	s.Source = &volume.Source{ID: volumetest.ID(of), Record: rec, Snapshot: isSnapshot}
	return s
}

func (p *pool) dirOf(rec volume.Record) string { return path.Join(p.root, rec.Hostpath.Directory) }

// volumeWith is a volume in which a file is.
func volumeWith(t *testing.T, p *pool, n int) (rec volume.Record, dir string) {
	t.Helper()
	rec, err := p.backend.Create(t.Context(), spec(n, mib))
	must(t, err)
	dir = p.dirOf(rec)
	writeFile(t, path.Join(dir, "below", "file"), "data")
	return rec, dir
}

// Files are copied one after another: of a volume that somebody can write to nothing is made.
func TestCopyOfWhatIsWrittenTo(t *testing.T) {
	t.Parallel()
	for _, during := range []bool{false, true} {
		t.Run(fmt.Sprintf("mounted during the copy %t", during), func(t *testing.T) {
			t.Parallel()
			p := newCopyingPool(t)
			rec, dir := volumeWith(t, p, 1)
			before, err := p.backend.Capacity(t.Context())
			must(t, err)
			if during {
				p.cloning = func() { p.write(dir, true) }
			} else {
				p.write(dir, true)
			}
			_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), "stop the pods") {
				t.Errorf("Snapshot = %v, want a refusal that says what to do", err)
			}
			p.write(dir, false)
			if !during {
				p.write(dir, true)
			}
			if _, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false)); !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("Create of a clone = %v, want a refusal", err)
			}
			p.settle(t)
			wantNothing(t, p, before)
			p.cloning = nil
			p.write(dir, false)
			_, err = p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
			must(t, err)
		})
	}
}

// wantNothing checks that a call that was refused has left nothing.
func wantNothing(t *testing.T, p *pool, before volume.Capacity) {
	t.Helper()
	found, err := p.backend.ListSnapshots(t.Context())
	must(t, err)
	volumes, err := p.backend.List(t.Context())
	must(t, err)
	after, err := p.backend.Capacity(t.Context())
	must(t, err)
	if len(found) != 0 || len(volumes) != before.Volumes || after != before {
		t.Errorf("left are %d snapshots and %d volumes, capacity %+v, was %+v", len(found), len(volumes), after, before)
	}
}

// A snapshot that is deleted while a volume is made of it makes none.
func TestSnapshotDeletedDuringRestore(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	p.cloning = func() { must(t, p.backend.DeleteSnapshot(t.Context(), volumetest.ID(5), &snap)) }
	if _, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true)); err == nil {
		t.Error("a volume was made of half a snapshot")
	}
	// What was removed under the walk's feet says nothing about the snapshot; the retry does.
	if _, err := p.backend.Create(t.Context(), copyOf(2, 5, snap, true)); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a copy of what is deleted: %v", err)
	}
	p.settle(t)
	before.AllocatedBytes, before.FreeBytes, before.MaxVolumeBytes = before.AllocatedBytes-mib, before.FreeBytes+mib, before.MaxVolumeBytes+mib
	wantNothing(t, p, before)
}

// Where files cannot share their blocks, copies are refused with the reason, and so are trees
// that cannot be copied.
func TestCopyRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	if _, err := p.backend.Copies(t.Context()); err == nil {
		t.Skip("the filesystem of the tests has reflinks")
	} else if !errors.Is(err, hostpath.ErrNoCopies) || !strings.Contains(err.Error(), "reflink=1") {
		t.Fatalf("Copies = %v", err)
	}
	rec, _ := volumeWith(t, p, 1)
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	if _, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec)); !errors.Is(err, volume.ErrInvalid) || !errors.Is(err, hostpath.ErrNoCopies) {
		t.Errorf("Snapshot = %v", err)
	}
	wantNothing(t, p, before)
	if left, err := filepath.Glob(path.Join(p.root, ".berth/probe*")); err != nil || len(left) > 0 {
		t.Errorf("what was tried is still there: %v, %v", left, err)
	}
}

// A copy has a limit and a project of its own, and grows.
func TestCopyIsLimited(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, copies: true})
	rec, _ := volumeWith(t, p, 1)
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	larger := copyOf(2, 5, snap, true)
	larger.SizeBytes, larger.Limited = 3*mib, true
	restored, err := p.backend.Create(t.Context(), larger)
	must(t, err)
	seen := map[uint32]bool{}
	for name, want := range map[*volume.Record]int64{&rec: mib, &snap: mib, &restored: 3 * mib} {
		project, limit := q.of(t, p, *name)
		if seen[project] || project == 0 || limit != want {
			t.Errorf("%s has project %d and limit %d, want one of its own and %d", name.Hostpath.Directory, project, limit, want)
		}
		seen[project] = true
	}
}

// Blocks that are shared are there once, and may be written anew: where others fill the
// filesystem, too, they are not promised a second time.
func TestCapacityWithSharedBlocks(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, copies: true})
	rec, dir := volumeWith(t, p, 1)
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	const files = 8
	for n := range files {
		writeFile(t, path.Join(dir, fmt.Sprint(n)), "")
		q.count(t, path.Join(dir, fmt.Sprint(n)), dir)
	}
	snap, err := p.backend.Snapshot(t.Context(), snapshotSpec(5, 1, rec))
	must(t, err)
	for n := range files {
		q.count(t, path.Join(p.dirOf(snap), fmt.Sprint(n)), p.dirOf(snap))
	}
	// What the volume has is the filesystem's, the snapshot's is shared, and the rest is others'.
	const used = (files + 1) * fakeBlock
	p.others.Store(5*volumeBytes - 10*mib)
	c, err := p.backend.Capacity(t.Context())
	must(t, err)
	if want := int64(10*mib - 2*mib + used); c.FreeBytes != want {
		t.Errorf("free are %d bytes, want %d: what the two have not written yet, and what they share, is theirs", c.FreeBytes, want)
	}
}

// count lets a file be counted by the project of a directory, as it would be had it been made
// in it.
func (q *quotas) count(t *testing.T, file, dir string) {
	t.Helper()
	var of, in unix.Stat_t
	must(t, unix.Lstat(file, &of))
	must(t, unix.Lstat(dir, &in))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.projects[of.Ino] = q.projects[in.Ino]
}

// What a killed copy has left is removed when the next process begins, and a volume that is
// there is not.
func TestCopiesAreSweptUp(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	must(t, os.MkdirAll(path.Join(p.root, ".copies", volumetest.ID(2)+".abcdefghijklm", "tree", "sub"), 0o700))
	p.restart(t)
	p.settle(t)
	_, err := p.backend.Locate(t.Context(), volumetest.ID(1), rec)
	must(t, err)
}

// AbandonCopy removes what was begun, and no volume.
func TestAbandonCopy(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	p.crashAt(t, 7)
	if _, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false)); err == nil || !p.dead() {
		t.Fatalf("Create = %v, want it to be killed", err)
	}
	p.restart(t)
	for _, n := range []int{1, 2, 2, 3} {
		must(t, p.backend.AbandonCopy(t.Context(), volumetest.ID(n)))
	}
	found, err := p.backend.List(t.Context())
	must(t, err)
	if len(found) != 1 || found[0].ID != volumetest.ID(1) {
		t.Errorf("there are %v", found)
	}
	clone, err := p.backend.Create(t.Context(), copyOf(2, 1, rec, false))
	must(t, err)
	must(t, p.backend.AbandonCopy(t.Context(), volumetest.ID(2)))
	_, err = p.backend.Locate(t.Context(), volumetest.ID(2), clone)
	must(t, err)
}

// What shall not wait for its turn is told how to, and finds what it has begun.
func TestCopiesAwaitTheirTurn(t *testing.T) {
	t.Parallel()
	p := newCopyingPool(t)
	rec, _ := volumeWith(t, p, 1)
	clone, snapshot := copyOf(2, 1, rec, false), snapshotSpec(5, 1, rec)
	clone.Source.NoWait, snapshot.NoWait = true, true
	first, err := hostpath.TakeTurn(t.Context(), false)
	must(t, err)
	second, err := hostpath.TakeTurn(t.Context(), false)
	must(t, err)
	makeClone := func() error { _, err := p.backend.Create(t.Context(), clone); return err }
	makeSnapshot := func() error { _, err := p.backend.Snapshot(t.Context(), snapshot); return err }
	var waits *volume.NoTurn
	for _, copies := range []func() error{makeClone, makeSnapshot} {
		if err := copies(); !errors.As(err, &waits) || !errors.Is(err, volume.ErrBusy) {
			t.Errorf("with others at it: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := waits.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("there was a turn: %v", err)
	}
	first()
	second()
	for _, copies := range []func() error{makeClone, makeSnapshot} {
		err := copies()
		for ; errors.As(err, &waits); err = copies() { // other tests copy as well
			must(t, waits.Await(t.Context()))
		}
		must(t, err)
	}
}

// A clone of many files that share their blocks:
//
//	BERTH_TEST_REFLINK_DIR=/mnt/xfs go test -bench Clone ./pkg/hostpath
func BenchmarkClone(b *testing.B) {
	const files, perDir, fileBytes = 20_000, 100, 64 << 10
	where, err := os.MkdirTemp(os.Getenv("BERTH_TEST_REFLINK_DIR"), "berth-bench-")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(where) })
	root := hostpath.Where{Root: path.Join(where, "pool")}
	id, err := hostpath.Init(b.Context(), root, poolUID)
	must(b, err)
	p, err := hostpath.New(hostpath.Options{Where: root, RootID: id, PoolUID: poolUID})
	must(b, err)
	if _, err := p.Copies(b.Context()); err != nil {
		b.Skipf("set BERTH_TEST_REFLINK_DIR to a directory of a filesystem with reflinks: %v", err)
	}
	rec, err := p.Create(b.Context(), spec(1, files*fileBytes))
	must(b, err)
	data := bytes.Repeat([]byte("berth"), fileBytes/5)
	for n := range files {
		dir := path.Join(root.Root, rec.Hostpath.Directory, fmt.Sprint(n/perDir))
		if n%perDir == 0 {
			must(b, os.Mkdir(dir, 0o755))
		}
		must(b, os.WriteFile(path.Join(dir, fmt.Sprint(n)), data, 0o600))
	}
	n := 0
	for b.Loop() {
		clone, err := p.Create(b.Context(), copyOf(2+n, 1, rec, false))
		must(b, err)
		b.StopTimer()
		must(b, p.Delete(b.Context(), volumetest.ID(2+n), &clone, volume.WipeNone))
		must(b, hostpath.EmptyTrash(p, b.Context()))
		n++
		b.StartTimer()
	}
	b.ReportMetric(float64(files+files/perDir)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
