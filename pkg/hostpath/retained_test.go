// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// keep makes the n-th volume, writes a file into it and deletes it.
func keep(t *testing.T, p *pool, n int) {
	t.Helper()
	rec := makeRetained(t, p, n)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(n), &rec, volume.WipeZero))
}

func makeRetained(t *testing.T, p *pool, n int) volume.Record {
	t.Helper()
	rec, err := asking{p.backend, p}.Create(t.Context(), spec(n, mib))
	must(t, err)
	writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "precious")
	return rec
}

func kept(t *testing.T, p *pool) []hostpath.Retained {
	t.Helper()
	all, err := p.backend.Retained(t.Context())
	must(t, err)
	return all
}

// wantPrecious checks that a directory holds what keep has written.
func wantPrecious(t *testing.T, dir string) {
	t.Helper()
	if data, err := os.ReadFile(path.Join(dir, "file")); err != nil || string(data) != "precious" {
		t.Fatalf("%s holds %q, %v", dir, data, err)
	}
}

// tend has the root looked after once, as Run does.
func tend(t *testing.T, p *pool) {
	t.Helper()
	_, err := hostpath.TendRetained(p.backend, t.Context())
	must(t, err)
	must(t, hostpath.EmptyTrash(p.backend, t.Context()))
}

// What was deleted is kept for its time and counts until then, and is removed afterwards.
func TestRetained(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	before, err := p.backend.Capacity(t.Context())
	must(t, err)
	keep(t, p, 1)
	tend(t, p)

	all := kept(t, p)
	if len(all) != 1 {
		t.Fatalf("kept are %+v", all)
	}
	got := all[0]
	if got.Name != "pvc-1" || got.Claim != "shop/db" || got.SizeBytes != mib || got.UsedBytes >= 0 || got.TakenBack ||
		got.KeptUntil.Sub(got.Deleted) != retainFor || time.Since(got.Deleted) > time.Minute {
		t.Errorf("kept is %+v", got)
	}
	wantPrecious(t, got.Directory)
	c, err := p.backend.Capacity(t.Context())
	must(t, err)
	if c.AllocatedBytes != mib || c.FreeBytes != before.FreeBytes-mib || c.Volumes != 0 {
		t.Errorf("while it is kept: %+v, before there was a volume: %+v", c, before)
	}
	if found, err := p.backend.List(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("List shows what was deleted: %v, %v", found, err)
	}

	p.pass(retainFor - time.Second)
	tend(t, p)
	wantPrecious(t, got.Directory)
	p.pass(2 * time.Second)
	tend(t, p)
	if all := kept(t, p); len(all) > 0 {
		t.Errorf("after its time: %+v", all)
	}
	if left, err := filepath.Glob(path.Join(p.root, ".[rt]*/*")); err != nil || len(left) > 0 {
		t.Errorf("after its time there is %v, %v", left, err)
	}
	if c, err := p.backend.Capacity(t.Context()); err != nil || c != before {
		t.Errorf("after its time: %+v, %v; before there was a volume: %+v", c, err, before)
	}
}

// An empty volume is not worth keeping, nor is one whose class does not ask for it.
func TestNotRetained(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	rec, err := asking{p.backend, p}.Create(t.Context(), spec(1, mib))
	must(t, err)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
	rec, err = p.backend.Create(t.Context(), spec(2, mib))
	must(t, err)
	writeFile(t, path.Join(p.root, rec.Hostpath.Directory, "file"), "not precious")
	must(t, p.backend.Delete(t.Context(), volumetest.ID(2), &rec, volume.WipeZero))
	if all := kept(t, p); len(all) > 0 || len(trash(t, p)) != 2 {
		t.Errorf("kept is %+v, in the trash are %v", all, trash(t, p))
	}
}

// The time counts while somebody looks after the root, whatever the time of day is, and goes
// on where it was.
func TestRetainedClock(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	dir := kept(t, p)[0].Directory

	// A process that ends writes down what it has counted.
	p.restart(t)
	p.pass(retainFor - time.Hour)
	p.restart(t)
	p.stop()
	p.pass(time.Hour - 2*time.Second)
	tend(t, p)
	wantPrecious(t, dir)

	// One that is killed has written it down not long ago.
	p.start(t)
	p.stop()
	p.pass(time.Minute)
	tend(t, p)
	if len(kept(t, p)) > 0 {
		t.Fatal("what was counted before a process ended was lost")
	}

	// A clock that was lost or damaged goes on from the last deletion.
	keep(t, p, 2)
	dir = kept(t, p)[0].Directory
	for _, damage := range []func(file string) error{
		os.Remove,
		func(file string) error { return os.WriteFile(file, []byte("{"), 0o600) },
		func(file string) error {
			return os.WriteFile(file, []byte(`{"countedSeconds":9223372036854775807}`), 0o600)
		},
	} {
		must(t, damage(path.Join(p.root, ".berth/clock.json")))
		p.start(t)
		p.stop()
		p.pass(time.Hour)
		tend(t, p)
		wantPrecious(t, dir)
		must(t, os.WriteFile(path.Join(p.root, ".berth/clock.json"), nil, 0o600))
	}
	must(t, os.Remove(path.Join(p.root, ".berth/clock.json")))
	p.start(t)
	p.stop()
	p.pass(retainFor + time.Minute)
	tend(t, p)
	if len(kept(t, p)) > 0 {
		t.Error("what is kept with a lost clock is never removed")
	}
}

// What is taken back is there for good, and counts until whoever took it removes it.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	keep(t, p, 2)
	if _, err := p.backend.TakeBack(t.Context(), "pvc-3"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("TakeBack of what never was = %v", err)
	}
	dir, err := p.backend.TakeBack(t.Context(), "pvc-1")
	must(t, err)
	if !strings.HasPrefix(dir, path.Join(p.root, "taken-back")+"/") {
		t.Errorf("it was taken back to %s", dir)
	}
	again, err := p.backend.TakeBack(t.Context(), path.Base(dir))
	if err != nil || again != dir {
		t.Errorf("again: %s, %v, before %s", again, err, dir)
	}
	p.restart(t)
	p.stop()
	p.pass(10 * retainFor)
	tend(t, p)
	wantPrecious(t, dir)
	all := kept(t, p)
	if len(all) != 1 || !all[0].TakenBack || all[0].Directory != dir {
		t.Errorf("kept is %+v", all)
	}
	if c, err := p.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != mib {
		t.Errorf("what was taken back does not count: %+v, %v", c, err)
	}
	if _, err := p.backend.TakeBack(t.Context(), "pvc-2"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("TakeBack of what was removed = %v", err)
	}
	must(t, os.RemoveAll(dir))
	if _, err := p.backend.TakeBack(t.Context(), "pvc-1"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("TakeBack of what was taken and removed = %v", err)
	}
	tend(t, p)
	if c, err := p.backend.Capacity(t.Context()); err != nil || c.AllocatedBytes != 0 {
		t.Errorf("what was removed counts: %+v, %v", c, err)
	}
}

// Two of one name are told apart.
func TestTakeBackOfTwo(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	keep(t, p, 1)
	_, err := p.backend.TakeBack(t.Context(), "pvc-1")
	if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), volumetest.ID(1)+".") {
		t.Fatalf("TakeBack of two = %v, want a refusal that names one", err)
	}
	for _, k := range kept(t, p) {
		dir, err := p.backend.TakeBack(t.Context(), k.Entry)
		must(t, err)
		wantPrecious(t, dir)
	}
}

// Nothing is taken back over what is there, and nothing that is mounted is moved or removed.
func TestRetainedInUse(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	k := kept(t, p)[0]
	p.hold(k.Directory, true)
	p.pass(2 * retainFor)
	if _, err := hostpath.TendRetained(p.backend, t.Context()); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("what is mounted has expired: %v", err)
	}
	wantPrecious(t, k.Directory)
	if _, err := p.backend.TakeBack(t.Context(), k.Entry); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("what is mounted was moved: %v", err)
	}
	p.hold(k.Directory, false)

	there := path.Join(p.root, "taken-back", k.Entry)
	writeFile(t, path.Join(there, "file"), "somebody else's")
	if _, err := p.backend.TakeBack(t.Context(), k.Entry); !errors.Is(err, volume.ErrExists) {
		t.Errorf("TakeBack over a directory = %v, want ErrExists", err)
	}
	wantPrecious(t, k.Directory)
	if data, err := os.ReadFile(path.Join(there, "file")); err != nil || string(data) != "somebody else's" {
		t.Errorf("what was there is %q, %v", data, err)
	}
	must(t, os.RemoveAll(there))
	// It was asked for, so it is not removed any more, though its time is over.
	tend(t, p)
	wantPrecious(t, there)
}

// Killed at each step, taking back loses nothing and comes to its end.
func TestTakeBackIsKilled(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		p := newRetainingPool(t)
		p.stop()
		keep(t, p, 1)
		p.pass(2 * retainFor)
		dead := p.crashAt(t, n)
		dir, err := p.backend.TakeBack(t.Context(), "pvc-1")
		if !dead() {
			must(t, err)
			wantPrecious(t, dir)
			if n < 4 {
				t.Errorf("only %d steps were found", n)
			}
			return
		}
		if err == nil {
			t.Fatalf("killed at step %d, and yet it was taken back to %s", n, dir)
		}
		found, err := filepath.Glob(path.Join(p.root, "*", "*", "file"))
		must(t, err)
		if len(found) != 1 {
			t.Fatalf("killed at step %d the data is at %v", n, found)
		}
		// The time of the process that was killed was not written down.
		p.restart(t)
		p.stop()
		dir, err = p.backend.TakeBack(t.Context(), "pvc-1")
		must(t, err)
		wantPrecious(t, dir)
		p.pass(2 * retainFor)
		tend(t, p)
		wantPrecious(t, dir)
	}
}

// What is kept is not what a link points to, and what a record does not say is not touched.
func TestRetainedIsHostile(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]func(entry string) string{
		"the directory":         func(entry string) string { return ".retained/" + entry },
		"what holds it":         func(string) string { return ".retained" },
		"what holds the record": func(string) string { return ".berth/retained" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newRetainingPool(t)
			p.stop()
			keep(t, p, 1)
			k := kept(t, p)[0]
			exchanged := path.Join(p.root, exchange(k.Entry))
			outside := t.TempDir()
			victim := path.Join(outside, "copy")
			must(t, os.Rename(exchanged, victim))
			must(t, os.Symlink(victim, exchanged))
			before := snapshot(t, outside)
			p.pass(2 * retainFor)
			if _, err := hostpath.TendRetained(p.backend, t.Context()); err == nil {
				t.Error("what a link points to has expired")
			}
			if dir, err := p.backend.TakeBack(t.Context(), k.Entry); err == nil {
				t.Errorf("what a link points to was taken back to %s", dir)
			}
			must(t, hostpath.EmptyTrash(p.backend, t.Context()))
			if after := snapshot(t, outside); after != before {
				t.Errorf("something outside changed from\n%s\nto\n%s", before, after)
			}
		})
	}

	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	stray := path.Join(p.root, ".retained", volumetest.ID(9)+".abcdefghijklm")
	writeFile(t, path.Join(stray, "file"), "precious")
	p.pass(2 * retainFor)
	tend(t, p)
	wantPrecious(t, stray)
}

// A record that says what cannot be is not believed, and nothing is removed by it.
func TestRetainedRecordIsDamaged(t *testing.T) {
	t.Parallel()
	p := newRetainingPool(t)
	p.stop()
	keep(t, p, 1)
	k := kept(t, p)[0]
	file := path.Join(p.root, ".berth/retained", k.Entry+".json")
	good, err := os.ReadFile(file)
	must(t, err)
	for name, bad := range map[string]string{
		"empty":              "",
		"another's":          strings.ReplaceAll(string(good), k.Entry, volumetest.ID(2)+".abc"),
		"of another volume":  strings.ReplaceAll(string(good), `"id":"`+volumetest.ID(1), `"id":"`+volumetest.ID(2)),
		"never due":          strings.Replace(string(good), `"dueSeconds":`, `"dueSeconds":-`, 1),
		"of a negative size": strings.Replace(string(good), `"sizeBytes":`, `"sizeBytes":-`, 1),
	} {
		if bad == string(good) {
			t.Fatalf("%s: nothing was changed in %s", name, good)
		}
		must(t, os.WriteFile(file, []byte(bad), 0o600))
		p.pass(2 * retainFor)
		if _, err := hostpath.TendRetained(p.backend, t.Context()); err == nil {
			t.Errorf("%s: it was believed", name)
		}
		if _, err := p.backend.Capacity(t.Context()); err == nil {
			t.Errorf("%s: the capacity was said to be known", name)
		}
		wantPrecious(t, k.Directory)
	}
	must(t, os.WriteFile(file, good, 0o600))
	tend(t, p)
	if len(kept(t, p)) > 0 {
		t.Error("after the record was put right it is kept for ever")
	}
}

// The project of what is kept is nobody else's, and its limit stays.
func TestRetainedKeepsItsProject(t *testing.T) {
	t.Parallel()
	q := newQuotas(t.TempDir())
	p := startPool(t, &pool{root: path.Join(q.top, "pool"), used: map[string]bool{}, quotas: q, retainFor: retainFor})
	p.stop()
	rec := makeRetained(t, p, 1)
	project, _ := q.of(t, p, rec)
	must(t, p.backend.Delete(t.Context(), volumetest.ID(1), &rec, volume.WipeZero))
	if all := kept(t, p); len(all) != 1 || all[0].UsedBytes < 0 {
		t.Errorf("kept is %+v, and it is not known how much it holds", all)
	}
	if q.limits[project] != mib {
		t.Errorf("it is limited to %d bytes", q.limits[project])
	}
	p.restart(t)
	p.stop()
	for n := range 3 {
		if other, _ := q.of(t, p, create(t, p, 10+n, mib)); other == project {
			t.Error("its project was given to another volume")
		}
	}
	p.pass(2 * retainFor)
	tend(t, p)
	if q.limits[project] != 0 {
		t.Error("it is gone and its project is limited")
	}
}
