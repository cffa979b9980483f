// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestPoolWithVolumesIsNotRemoved(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.apply(poolSet())
	h.settle()
	vg := h.pool().Status.VGUUID
	rec, err := h.memory(vg).Create(t.Context(), volume.Spec{ID: lvUID, Name: "v", SizeBytes: mib, Access: volume.AccessBlock})
	if err != nil {
		t.Fatal(err)
	}
	h.deletePool()
	h.settle()
	if h.pool() == nil || len(h.groups) != 1 || h.disks["a"].released {
		t.Fatal("a pool with a volume was removed")
	}
	if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err != nil {
		t.Errorf("does not serve its volumes: %v", err)
	}
	if err := h.memory(vg).Delete(t.Context(), lvUID, &rec, volume.WipeZero); err != nil {
		t.Fatal(err)
	}
	h.settle()
	// The PoolSet still wants the pool; its disk is being cleaned.
	h.want(v1alpha1.PoolPending, v1alpha1.ReasonNoDisks)
	if len(h.groups) != 0 || !h.disks["a"].released {
		t.Errorf("groups %v, disk %+v", h.groups, h.disks["a"])
	}
}

// The volumes of a pool that is being deleted go on until they are deleted, wherever its disks come
// back.
func TestDisksOfAPoolThatIsBeingDeletedAreFollowed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		host   func(*testing.T) *poolHost
		set    *v1alpha1.PoolSet
		move   func(h *poolHost, vg string)
		follow []string
	}{
		"one of its own": {
			func(t *testing.T) *poolHost { return newPoolHost(t, "a", "b") }, poolSet(),
			func(h *poolHost, _ string) { h.disks["b"].missing = true },
			[]string{"/dev/a"},
		},
		"one that was adopted": {
			newAdoptingHost, poolSet(adoptingSet),
			func(h *poolHost, vg string) { h.groups[vg].devices = []string{"/dev/c"} },
			[]string{"/dev/c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := tc.host(t)
			h.apply(tc.set)
			h.settle()
			vg := h.pool().Status.VGUUID
			if _, err := h.memory(vg).Create(t.Context(), volume.Spec{ID: lvUID, Name: "v", SizeBytes: mib, Access: volume.AccessBlock}); err != nil {
				t.Fatal(err)
			}
			h.deletePool()
			h.settle()
			told := 0
			h.backends.OnChange(func() { told++ })
			h.settle()
			if told != 0 {
				t.Errorf("who waits for the pool is told %d times that nothing has changed", told)
			}
			tc.move(h, vg)
			h.settle()
			if told == 0 {
				t.Error("who waits for the pool is not told")
			}
			if got := h.pools.live("fast").devices.get(); !slices.Equal(got, tc.follow) {
				t.Errorf("commands are limited to %v, want %v", got, tc.follow)
			}
		})
	}
}

func TestHostpathPoolIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet(hostpathSet))
	h.settle()
	h.deleteSet()
	h.settle()
	h.deletePool()
	h.settle()
	if h.pool() != nil || h.backends.Has("fast") == false && len(h.roots) != 1 {
		t.Fatalf("pool %+v, roots %v", h.pool(), h.roots)
	}
	h.apply(poolSet(hostpathSet))
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	if h.inits != 1 {
		t.Errorf("made %d times", h.inits)
	}
}

// A name is free again when its Pool was deleted: the root of then stays as it is.
func TestDeletedHostpathPoolFreesItsName(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(*v1alpha1.PoolSet){
		"at another path": func(s *v1alpha1.PoolSet) { hostpathSet(s); s.Spec.Hostpath.Path = "/srv/other" },
		"as a group":      func(*v1alpha1.PoolSet) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPoolHost(t, "a")
			h.apply(poolSet(hostpathSet))
			h.settle()
			h.deleteSet()
			h.settle()
			h.apply(poolSet(other))
			h.settle()
			h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
			if h.inits != 1 || len(h.groups) != 0 {
				t.Fatalf("%d roots, groups %v while the first Pool is there", h.inits, h.groups)
			}
			h.deletePool()
			h.settle()
			h.start()
			h.settle()
			h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
			if len(h.roots) < 1 {
				t.Error("the first root is gone")
			}
		})
	}
}

// A Pool that is deleted and has volumes again when it is deleted the next time is not empty.
func TestHostpathPoolIsDeletedTwice(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet(hostpathSet))
	h.settle()
	h.deletePool()
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	b, err := h.backends.ForNew(volume.ModeHostpath, "fast")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), volume.Spec{ID: "a0000000-0000-4000-8000-000000000001", Name: "pvc-1", SizeBytes: 1 << 20, Access: volume.AccessFilesystem}); err != nil {
		t.Fatal(err)
	}
	h.deletePool()
	h.settle()
	if h.pool() == nil {
		t.Fatal("the Pool is gone, with a volume in it")
	}
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
}
