// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package hostpath_test

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func sure(context.Context) error { return nil }

// takeOver makes the volume 1 the n-th one.
func takeOver(t *testing.T, p *pool, n int, identity string) (volume.Record, error) {
	t.Helper()
	return p.backend.TakeOver(t.Context(), spec(n, mib), volume.LeftOver{ID: volumetest.ID(1), Identity: identity}, sure)
}

func identityOf(t *testing.T, p *pool) string {
	t.Helper()
	e, err := p.backend.Examine(t.Context(), volumetest.ID(1))
	must(t, err)
	return e.Identity
}

// What was at a path of its own, was adopted before, or is limited, is all that as before, but
// that it lies at the ID of its volume; killed at each step, it is in one place.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		newPool func(*testing.T) *pool
		make    func(t *testing.T, p *pool) volume.Record
	}{
		"at a path": {newPool, func(t *testing.T, p *pool) volume.Record {
			rec, err := p.backend.Create(t.Context(), named(1, "shop/db"))
			must(t, err)
			return rec
		}},
		"limited": {limitedBeside, func(t *testing.T, p *pool) volume.Record { return create(t, p, 1, mib) }},
		"adopted": {limitedBeside, func(t *testing.T, p *pool) volume.Record {
			rec, err := adopt(t, p, 1, handed(t, p), mib)
			must(t, err)
			return rec
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n, alive := 0, false; !alive; n++ {
				p := test.newPool(t)
				rec := test.make(t, p)
				from := path.Join(p.root, rec.Hostpath.Directory)
				writeFile(t, path.Join(from, "file"), "precious")
				content, was, identity := snapshot(t, from), inode(t, from), identityOf(t, p)
				var project uint32
				if p.quotas != nil {
					project, _ = p.quotas.of(t, p, rec)
				}
				dead := p.crashAt(t, n)
				_, err := takeOver(t, p, 2, identity)
				alive = !dead()
				if alive {
					must(t, err)
				}
				to := path.Join(p.root, "volumes", volumetest.ID(2))
				if exists(t, from) == exists(t, to) {
					t.Fatalf("killed at step %d: it is in both places, or in none", n)
				}
				p.restart(t)
				rec, err = takeOver(t, p, 2, identity)
				must(t, err)
				if snapshot(t, to) != content || inode(t, to) != was || exists(t, from) || exists(t, path.Join(p.root, "named/shop")) {
					t.Fatalf("killed at step %d: it is not what it was", n)
				}
				if promises := globs(t, path.Join(p.root, ".berth/volumes/*")); len(promises) != 1 {
					t.Fatalf("killed at step %d: the promises are %v", n, promises)
				}
				if p.quotas != nil {
					if now, limitBytes := p.quotas.of(t, p, rec); now != project || now == 0 || limitBytes != mib {
						t.Fatalf("killed at step %d: project %d, was %d, limited to %d", n, now, project, limitBytes)
					}
				}
				must(t, p.backend.Delete(t.Context(), volumetest.ID(2), &rec, volume.WipeZero))
				if given := globs(t, path.Join(p.root, "taken-back/*")); (len(given) == 1) != (name == "adopted") || exists(t, to) {
					t.Fatalf("killed at step %d: deleted, there is %v", n, given)
				}
			}
		})
	}
}

// The old promise does not end before it is durable that the directory was moved, also where a killed
// call has moved it.
func TestTakeOverMakesDurableWhatWasMoved(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		p := newPool(t)
		create1(t, p)
		identity := identityOf(t, p)
		p.taken()
		dead := p.crashAt(t, n)
		_, _ = takeOver(t, p, 2, identity)
		if !dead() {
			t.Fatal("it was not killed where it should have been")
		}
		if steps := p.taken(); len(steps) == 0 || steps[len(steps)-1] != "take over" || !exists(t, path.Join(p.root, "volumes", volumetest.ID(2))) {
			continue
		}
		p.restart(t)
		_, err := takeOver(t, p, 2, identity)
		must(t, err)
		steps := p.taken()
		if durable := slices.Index(steps, "sync the place"); durable < 0 || durable > slices.Index(steps, "remove promise") {
			t.Errorf("the steps are %q", steps)
		}
		return
	}
}

// A deletion between the rename and the end of the old promise takes both along.
func TestTakeOverThenDelete(t *testing.T) {
	t.Parallel()
	for n, alive := 0, false; !alive; n++ {
		p := newPool(t)
		writeFile(t, path.Join(p.root, create1(t, p).Hostpath.Directory, "file"), "precious")
		dead := p.crashAt(t, n)
		_, err := takeOver(t, p, 2, identityOf(t, p))
		alive = !dead()
		p.restart(t)
		moved := exists(t, path.Join(p.root, "volumes", volumetest.ID(2)))
		if alive && (err != nil || !moved) {
			t.Fatalf("not killed, and yet: %v", err)
		}
		must(t, p.backend.Delete(t.Context(), volumetest.ID(2), nil, volume.WipeZero))
		found, err := p.backend.List(t.Context())
		if err != nil || moved && len(found) != 0 || !moved && (len(found) != 1 || found[0].ID != volumetest.ID(1)) {
			t.Fatalf("killed at step %d (moved: %v), then deleted: there is %v, %v", n, moved, found, err)
		}
		if !moved {
			wantPrecious(t, path.Join(p.root, "volumes", volumetest.ID(1)))
		}
	}
}

func create1(t *testing.T, p *pool) volume.Record {
	t.Helper()
	rec, err := p.backend.Create(t.Context(), spec(1, mib))
	must(t, err)
	return rec
}

func TestTakeOverRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// prepare returns what is asked for, in the place of that.
		prepare func(t *testing.T, p *pool, dir string, s *volume.Spec) (identity string)
		want    error
		says    string
	}{
		"another directory": {prepare: func(t *testing.T, p *pool, dir string, _ *volume.Spec) string {
			identity := identityOf(t, p)
			must(t, os.Rename(dir, dir+".away"))
			writeFile(t, path.Join(dir, "file"), "precious")
			must(t, os.RemoveAll(dir+".away"))
			return identity
		}, want: volume.ErrNotAdoptable, says: "another one than was named"},
		"no directory": {prepare: func(t *testing.T, p *pool, dir string, _ *volume.Spec) string {
			identity := identityOf(t, p)
			must(t, os.Rename(dir, path.Join(path.Dir(p.root), "away")))
			return identity
		}, want: volume.ErrNotAdoptable, says: "look at volumes/"},
		"without a limit": {prepare: func(t *testing.T, p *pool, _ string, s *volume.Spec) string {
			s.Limited = true
			return identityOf(t, p)
		}, want: volume.ErrNotAdoptable, says: "its size is not enforced"},
		"at a path": {prepare: func(t *testing.T, p *pool, _ string, s *volume.Spec) string {
			s.Directory = "shop/db"
			return identityOf(t, p)
		}, want: volume.ErrInvalid, says: "no path of its own"},
		"in the way": {prepare: func(t *testing.T, p *pool, dir string, _ *volume.Spec) string {
			writeFile(t, path.Join(path.Dir(dir), volumetest.ID(2), "file"), "somebody else's")
			return identityOf(t, p)
		}, want: volume.ErrExists, says: "that we did not make"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t)
			dir := path.Join(p.root, create1(t, p).Hostpath.Directory)
			writeFile(t, path.Join(dir, "file"), "precious")
			asked := spec(2, mib)
			identity := test.prepare(t, p, dir, &asked)
			before := snapshot(t, path.Dir(p.root))
			_, err := p.backend.TakeOver(t.Context(), asked, volume.LeftOver{ID: volumetest.ID(1), Identity: identity}, sure)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("TakeOver = %v, want %v that says %q", err, test.want, test.says)
			}
			if after := snapshot(t, path.Dir(p.root)); after != before {
				t.Errorf("a refusal has changed\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A directory that has taken the place of one that was taken over is not it.
func TestTakenOverIdentity(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	create1(t, p)
	rec, err := takeOver(t, p, 2, identityOf(t, p))
	must(t, err)
	at := path.Join(p.root, rec.Hostpath.Directory)
	must(t, os.Rename(at, at+".away"))
	writeFile(t, path.Join(at, "file"), "somebody else's")
	if _, err := p.backend.Locate(t.Context(), volumetest.ID(2), rec); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Locate of another directory = %v, want ErrIdentity", err)
	}
	if err := p.backend.Delete(t.Context(), volumetest.ID(2), &rec, volume.WipeNone); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("Delete of another directory = %v, want ErrIdentity", err)
	}
	if err := p.backend.LetGo(t.Context(), volumetest.ID(2)); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("LetGo of another directory = %v, want ErrIdentity", err)
	}
	rec = create1(t, p)
	if err := p.backend.LetGo(t.Context(), volumetest.ID(1)); !errors.Is(err, volume.ErrIdentity) {
		t.Errorf("LetGo of a volume that was made (%+v) = %v, want ErrIdentity", rec, err)
	}
}
