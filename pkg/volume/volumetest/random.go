// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package volumetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/volume"
)

const (
	randomOperations = 500
	randomWorkers    = 8
	// cancelledOf operations one is given up after a moment, so that its outcome is open.
	cancelledOf = 5
	// patience is the longest such moment.
	patience = 3 * time.Millisecond
	// seedEnv sets another seed than seed1; what the workers do beside each other differs
	// each time.
	seedEnv = "BERTH_TEST_SEED"
	seed1   = 1
)

// randomRun is a place, and what must be there by all that was said about it.
type randomRun struct {
	*bench
	slots []*slot
	// counted operations by what came of them, for the log.
	mu      sync.Mutex
	counted map[string]int
}

// slot is one volume and one snapshot of it. Whoever has the lock uses them.
type slot struct {
	sync.Mutex

	n        int
	lives    int
	volume   thing
	snapshot thing
}

// thing is what the model knows of a volume or a snapshot.
type thing struct {
	// rec is nil while nothing was said to be there.
	rec *volume.Record
	// creating and deleting are set when such a call did not come to its end: it may have
	// done everything or nothing.
	creating, deleting bool
	mark               string
}

func (x *thing) absent() bool { return x.rec == nil && !x.creating && !x.deleting }

// testRandomOperations has several workers do whatever can be done, in random order, some
// of it given up half way, and then compares the place with a model of it.
func (s suite) testRandomOperations(t *testing.T) {
	b := s.place(t)
	b.create(t, 1)
	empty := b.capacity(t) // a thin pool is made with the first volume
	b.deleteFound(t)

	r := &randomRun{bench: b, counted: map[string]int{}}
	for n := range b.Volumes + 1 {
		r.slots = append(r.slots, &slot{n: n + 1})
	}
	seed := randomSeed(t)
	t.Logf("%s=%d", seedEnv, seed)
	var wg sync.WaitGroup
	for w := range randomWorkers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), seed))
			for range randomOperations / randomWorkers {
				r.step(t, s, random)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%v", r.counted)

	volumes, snapshots := map[int]volume.Record{}, map[int]volume.Record{}
	for _, x := range r.slots {
		r.resolve(t, x)
		if x.volume.rec != nil {
			volumes[x.n] = *x.volume.rec
		}
		if x.snapshot.rec != nil {
			snapshots[snapshotOf(x.n)] = *x.snapshot.rec
		}
	}
	b.settle(t)
	b.reboot(t)
	b.wantList(t, volumes)
	if s.CanSnapshot {
		b.wantSnapshots(t, snapshots)
	}
	for _, x := range r.slots {
		if x.volume.rec != nil && !hasMark(t, b.locate(t, x.n, *x.volume.rec), x.volume.mark) {
			t.Errorf("volume %d does not hold %q", x.n, x.volume.mark)
		}
		if x.snapshot.rec != nil {
			b.deleteSnapshot(t, snapshotOf(x.n), x.snapshot.rec)
		}
	}
	b.deleteFound(t)
	b.create(t, 1)
	if got := b.capacity(t); got != empty {
		t.Errorf("something has leaked: Capacity is %+v, was %+v", got, empty)
	}
}

func randomSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(seedEnv)
	if text == "" {
		return seed1
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", seedEnv, err)
	}
	return seed
}

// deleteFound empties the place.
func (b *bench) deleteFound(t *testing.T) {
	t.Helper()
	for id, rec := range b.list(t) {
		if err := b.Backend.Delete(t.Context(), id, &rec, volume.WipeZero); err != nil {
			t.Fatalf("Delete(%s): %v", id, err)
		}
	}
	b.settle(t)
}

func snapshotOf(n int) int { return n + 1000 }

// step does one operation on one volume.
func (r *randomRun) step(t *testing.T, s suite, random *rand.Rand) {
	x := r.slots[random.IntN(len(r.slots))]
	x.Lock()
	defer x.Unlock()
	ctx := t.Context()
	if random.IntN(cancelledOf) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(random.Int64N(int64(patience))))
		defer cancel()
	}
	if s.CanSnapshot && random.IntN(3) == 0 {
		r.snapshotStep(ctx, t, x, random)
		return
	}
	size := r.VolumeBytes
	if s.CanGrow && random.IntN(4) == 0 {
		size *= 2
	}
	switch v := &x.volume; {
	case v.deleting, v.creating && random.IntN(2) == 0:
		r.delete(ctx, t, x)
	case v.rec == nil:
		r.make(ctx, t, x, r.sized(x.n, size))
	default:
		switch random.IntN(4) {
		case 0:
			r.delete(ctx, t, x)
		case 1:
			r.grow(ctx, t, x, size)
		case 2:
			r.hold(ctx, t, x)
		default:
			r.look(ctx, t, x)
		}
	}
}

func (r *randomRun) sized(n int, sizeBytes int64) volume.Spec {
	spec := r.spec(n)
	spec.SizeBytes = sizeBytes
	return spec
}

// done counts an operation, and reports whether it came to an end. An error that the
// model does not expect fails the test.
func (r *randomRun) done(t *testing.T, verb string, x *slot, err error, expected ...error) bool {
	outcome := "done"
	for _, e := range expected {
		if errors.Is(err, e) {
			outcome = e.Error()
		}
	}
	switch {
	case err == nil || outcome != "done":
	case errors.Is(err, context.DeadlineExceeded):
		outcome = "given up"
	default:
		t.Errorf("%s %d: %v", verb, x.n, err)
		outcome = "failed"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counted[verb+" "+outcome]++
	return err == nil
}

// make makes the volume of a slot, or finds the one of a call that was given up.
func (r *randomRun) make(ctx context.Context, t *testing.T, x *slot, spec volume.Spec) {
	v := &x.volume
	found := v.creating
	rec, err := r.Backend.Create(ctx, spec)
	if !r.done(t, "create", x, err, volume.ErrNoSpace) {
		// What was begun before may stand though there is no room to make it larger now.
		v.creating = found || !errors.Is(err, volume.ErrNoSpace)
		r.settle(t) // the room of what was deleted may come back later
		return
	}
	*v = thing{rec: &rec}
	loc := r.find(t, x)
	if !found && spec.Source == nil {
		wantBlankEnds(t, loc)
	}
	if spec.Source == nil {
		r.write(t, x, loc)
	}
}

func (r *randomRun) write(t *testing.T, x *slot, loc volume.Location) {
	x.lives++
	x.volume.mark = fmt.Sprintf("volume-%d-life-%d", x.n, x.lives)
	writeMark(t, loc, x.volume.mark)
}

// find locates a volume that must be there.
func (r *randomRun) find(t *testing.T, x *slot) volume.Location {
	t.Helper()
	return r.locate(t, x.n, *x.volume.rec)
}

func (r *randomRun) delete(ctx context.Context, t *testing.T, x *slot) {
	v := &x.volume
	if !r.done(t, "delete", x, r.Backend.Delete(ctx, ID(x.n), v.rec, volume.WipeZero)) {
		v.deleting = true
		return
	}
	*v = thing{}
}

func (r *randomRun) grow(ctx context.Context, t *testing.T, x *slot, sizeBytes int64) {
	v := &x.volume
	rec, err := r.Backend.Grow(ctx, ID(x.n), *v.rec, sizeBytes)
	// A volume with snapshots that keep what is overwritten cannot grow.
	if r.done(t, "grow", x, err, volume.ErrNoSpace, volume.ErrInUse) {
		if rec.SizeBytes < sizeBytes || !rec.SameStorage(*v.rec) {
			t.Errorf("Grow(%d) to %d returned %s", x.n, sizeBytes, show(rec))
		}
		v.rec = &rec
	}
	r.look(t.Context(), t, x)
}

// hold checks that a volume that somebody uses is not deleted.
func (r *randomRun) hold(ctx context.Context, t *testing.T, x *slot) {
	if r.Hold == nil {
		return
	}
	release := r.Hold(t, r.find(t, x))
	err := r.Backend.Delete(ctx, ID(x.n), x.volume.rec, volume.WipeZero)
	release()
	if r.done(t, "delete in use", x, err, volume.ErrInUse) {
		t.Errorf("volume %d was deleted though it was in use", x.n)
	}
	r.look(t.Context(), t, x)
}

func (r *randomRun) look(ctx context.Context, t *testing.T, x *slot) {
	loc, err := r.Backend.Locate(ctx, ID(x.n), *x.volume.rec)
	if r.done(t, "locate", x, err) && !beginsWithMark(t, loc, x.volume.mark) {
		t.Errorf("volume %d does not begin with %q", x.n, x.volume.mark)
	}
}

// snapshotStep does something with the snapshot of a slot, or copies a volume into it.
func (r *randomRun) snapshotStep(ctx context.Context, t *testing.T, x *slot, random *rand.Rand) {
	snapshots, v, snap := r.snapshotter(t), &x.volume, &x.snapshot
	usable := v.rec != nil && !v.deleting
	switch {
	case snap.deleting, snap.rec != nil && random.IntN(2) == 0:
		err := snapshots.DeleteSnapshot(ctx, ID(snapshotOf(x.n)), snap.rec)
		if snap.deleting = !r.done(t, "delete snapshot", x, err); !snap.deleting {
			*snap = thing{}
		}
	case snap.rec == nil && usable:
		rec, err := snapshots.Snapshot(ctx, r.snapshotSpec(snapshotOf(x.n), x.n, *v.rec))
		switch {
		case r.done(t, "snapshot", x, err, volume.ErrNoSpace):
			*snap = thing{rec: &rec, mark: v.mark}
		case !errors.Is(err, volume.ErrNoSpace):
			// It may stand, and would then be of what the volume is now: its deletion is what
			// a caller does who does not want to know.
			snap.deleting = true
		}
	case snap.rec != nil && v.absent():
		spec := r.copyOf(x.n, volume.Source{ID: ID(snapshotOf(x.n)), Record: *snap.rec, Snapshot: true}, snap.rec.SizeBytes)
		r.make(ctx, t, x, spec)
		if v.creating {
			v.deleting = true // it may have the bytes of its snapshot, or none yet
		}
		v.mark = snap.mark
	case v.absent():
		r.clone(ctx, t, x, r.slots[random.IntN(len(r.slots))])
	case usable:
		r.look(ctx, t, x)
	}
}

// clone makes the volume of a slot as a copy of another one's, if nobody uses that.
func (r *randomRun) clone(ctx context.Context, t *testing.T, x, of *slot) {
	if x == of || !of.TryLock() {
		return
	}
	defer of.Unlock()
	if of.volume.rec == nil || of.volume.deleting {
		return
	}
	r.make(ctx, t, x, r.copyOf(x.n, volume.Source{ID: ID(of.n), Record: *of.volume.rec}, of.volume.rec.SizeBytes))
	if x.volume.creating {
		x.volume.deleting = true // as with what is made of a snapshot
	}
	x.volume.mark = of.volume.mark
}

// resolve brings what was given up to its end.
func (r *randomRun) resolve(t *testing.T, x *slot) {
	t.Helper()
	switch {
	case x.volume.deleting || x.volume.creating:
		r.delete(t.Context(), t, x)
	case x.volume.rec != nil:
		// A growth that was given up may have taken place.
		rec, err := r.Backend.Grow(t.Context(), ID(x.n), *x.volume.rec, x.volume.rec.SizeBytes)
		if r.done(t, "look at the size of", x, err) {
			x.volume.rec = &rec
		}
	}
	if x.snapshot.deleting {
		r.deleteSnapshot(t, snapshotOf(x.n), x.snapshot.rec)
		x.snapshot = thing{}
	}
}

// beginsWithMark looks at the first sector only, and at files as hasMark does.
func beginsWithMark(t *testing.T, loc volume.Location, text string) bool {
	t.Helper()
	if loc.Directory != "" {
		return hasMark(t, loc, text)
	}
	f, err := os.Open(loc.Device)
	if err != nil {
		t.Error(err)
		return false
	}
	defer f.Close()
	sector := make([]byte, markSize)
	_, err = io.ReadFull(f, sector)
	return err == nil && bytes.Equal(sector, mark(text))
}
