// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestPoolKilledAtEveryStepOfItsMaking(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]*v1alpha1.PoolSet{"lvm": poolSet(), "hostpath": poolSet(hostpathSet)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n++ {
				h := newPoolHost(t, "a", "b")
				h.apply(set.DeepCopy())
				h.killer.arm(n)
				_ = h.reconcile()
				died := h.killer.died()
				h.start()
				h.settle()
				if set.Spec.Kind == v1alpha1.PoolLVM {
					h.wantHealthy("a", "b")
				} else {
					h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
				}
				if h.creates+h.inits != 1 {
					t.Fatalf("killed at step %d: made %d times", n, h.creates+h.inits)
				}
				if !died {
					if n < 4 {
						t.Errorf("only %d steps were tried", n)
					}
					return
				}
			}
		})
	}
}

func TestPoolKilledAtEveryStepOfItsRemoval(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newPoolHost(t, "a", "b")
		h.apply(poolSet())
		h.settle()
		h.deleteSet()
		h.settle()
		h.deletePool()
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.settle()
		if h.pool() != nil || len(h.groups) != 0 || !h.disks["a"].released || !h.disks["b"].released {
			t.Fatalf("killed at step %d: pool %+v, groups %v, disks %+v", n, h.pool(), h.groups, h.disks)
		}
		if h.backends.Has("fast") {
			t.Fatalf("killed at step %d: the backend is still known", n)
		}
		if names, err := h.pools.records.keys(); err != nil || len(names) > 0 {
			t.Fatalf("killed at step %d: records %v left, %v", n, names, err)
		}
		// The disks are clean again, and the operator changes his mind.
		h.disks["a"], h.disks["b"] = &fakeDisk{}, &fakeDisk{}
		h.apply(poolSet())
		h.settle()
		h.wantHealthy("a", "b")
		if !died {
			if n < 6 {
				t.Errorf("only %d steps were tried", n)
			}
			return
		}
	}
}
