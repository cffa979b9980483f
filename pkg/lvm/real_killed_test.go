// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

// lvm is killed by SIGKILL at moments all over its work, and the call repeated
// converges on what a model says.
func TestKernelKilled(t *testing.T) { killOnKernel(t, lvm.LayoutLinear, false) }

func TestKernelKilledThin(t *testing.T) { killOnKernel(t, lvm.LayoutLinear, true) }

func TestKernelKilledMirror(t *testing.T) { killOnKernel(t, lvm.LayoutMirror, false) }

func TestKernelKilledThinMirror(t *testing.T) { killOnKernel(t, lvm.LayoutMirror, true) }

// lvm is killed while it makes a redundant thin pool, of which each step is one of its own.
func TestKernelMakingAPoolIsKilled(t *testing.T) {
	const rounds = 30
	r := newRigOf(t, lvm.LayoutMirror)
	r.thin = true
	started := time.Now()
	r.tend(t, r.backend(t, 0))
	usual := time.Since(started)
	killed := 0
	for round := range rounds {
		r.lvm(t, "lvremove", "--yes", r.group.Name+"/thin")
		r.timeout.Store(int64(rand.N(usual/2) + time.Millisecond))
		b := r.backend(t, 0)
		for range 3 {
			if _, err := b.Tend(t.Context()); err != nil {
				killed++
			}
		}
		r.timeout.Store(0)
		r.boot.Add(1)
		b = r.tend(t, r.backend(t, 0))
		if _, err := b.Create(t.Context(), spec(1, 8*mib)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := b.Delete(t.Context(), id(1), nil, volume.WipeSignatures); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d calls failed", killed)
	if killed == 0 {
		t.Error("nothing was killed")
	}
}

func killOnKernel(t *testing.T, layout lvm.Layout, thin bool) {
	const rounds, workers = 40, 3
	r := newRigOf(t, layout)
	r.thin = thin
	b := r.tend(t, r.backend(t, 0))
	if _, err := b.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if _, err := b.Create(t.Context(), spec(0, 8*mib)); err != nil {
		t.Fatal(err)
	}
	usual := time.Since(started)
	want := map[string]int64{id(0): 8 * mib}
	killed := 0
	for round := range rounds {
		r.timeout.Store(int64(rand.N(usual) + time.Millisecond))
		var wg sync.WaitGroup
		errs := make([]error, workers)
		for w := range workers {
			n := 1 + round%4*workers + w
			wg.Go(func() { errs[w] = r.toggle(t.Context(), b, n, want[id(n)]) })
		}
		wg.Wait()
		r.timeout.Store(0)
		if round%5 == 4 {
			r.boot.Add(1)
			b = r.backend(t, 0)
		}
		for w, err := range errs {
			n := 1 + round%4*workers + w
			if err != nil {
				killed++
				if err := r.toggle(t.Context(), b, n, want[id(n)]); err != nil {
					t.Fatalf("round %d: repeated after %v: %v", round, errs[w], err)
				}
			}
			if want[id(n)] == 0 {
				want[id(n)] = 8 * mib
			} else {
				delete(want, id(n))
			}
		}
		found, err := b.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]int64{}
		for _, f := range found {
			have[f.ID] = f.Record.SizeBytes
			if _, err := b.Locate(t.Context(), f.ID, f.Record); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if !equal(have, want) {
			t.Fatalf("round %d: there is %v, want %v", round, have, want)
		}
	}
	t.Logf("%d of %d operations were killed", killed, rounds*workers)
	if killed == 0 {
		t.Error("nothing was killed")
	}
}

// toggle creates what is not there and deletes what is.
func (r *rig) toggle(ctx context.Context, b *lvm.Backend, n int, size int64) error {
	if size == 0 {
		_, err := b.Create(ctx, spec(n, 8*mib))
		return err
	}
	return b.Delete(ctx, id(n), nil, volume.WipeSignatures)
}
