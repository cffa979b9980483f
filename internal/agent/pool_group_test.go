// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestPoolGrowth(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*v1alpha1.PoolSet)
		want   []string
	}{
		"Auto":   {nil, []string{"a", "b"}},
		"Manual": {func(s *v1alpha1.PoolSet) { s.Spec.Growth = v1alpha1.GrowthManual }, []string{"a"}},
		"Manual, by name": {func(s *v1alpha1.PoolSet) {
			s.Spec.Growth = v1alpha1.GrowthManual
			s.Spec.DeviceSelector.Names = []string{"a", "b"}
		}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 0; ; n++ {
				h := newPoolHost(t, "a")
				s := poolSet()
				if tc.change != nil {
					tc.change(s)
				}
				h.apply(s)
				h.settle()
				h.disks["b"] = &fakeDisk{}
				h.killer.arm(n)
				_ = h.reconcile()
				died := h.killer.died()
				h.start()
				h.settle()
				h.wantHealthy(tc.want...)
				if !died {
					return
				}
			}
		})
	}
}

// The scheduler looks at what is published of a pool's room, and whoever waits for room waits to
// be told.
func TestPoolGrowthIsTold(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.apply(poolSet())
	h.settle()
	told := 0
	h.backends.OnTouch(func(pool string) {
		if pool != "fast" {
			t.Errorf("pool %q was touched", pool)
		}
		told++
	})
	h.settle()
	if told > 0 {
		t.Fatal("told of what has not changed")
	}
	h.disks["b"] = &fakeDisk{}
	h.settle()
	h.wantHealthy("a", "b")
	if told == 0 {
		t.Error("nobody was told of the disk's room")
	}
}

func TestPoolWaitsForDisks(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet())
	h.settle()
	h.want(v1alpha1.PoolPending, v1alpha1.ReasonNoDisks)
	if _, err := h.backends.ForNew(volume.ModeLVM, "fast"); err == nil {
		t.Error("usable without disks")
	}
	h.disks["a"] = &fakeDisk{}
	h.settle()
	h.wantHealthy("a")
}

// A group that has too few disks for its layout is not made, and keeps no disk from
// others.
func TestStripedPoolWaitsForItsSecondDisk(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newPoolHost(t, "a")
		s := poolSet()
		s.Spec.Layout = v1alpha1.LayoutStriped
		h.apply(s)
		h.settle()
		h.want(v1alpha1.PoolPending, v1alpha1.ReasonNoDisks)
		if c := meta.FindStatusCondition(h.pool().Status.Conditions, v1alpha1.PoolReady); !strings.Contains(c.Message, "layout striped needs 2 disks on a node, here are 1") {
			t.Errorf("it says %q", c.Message)
		}
		if owner := h.disks["a"].owner; owner != "" {
			t.Errorf("the disk is held by %s", owner)
		}
		h.disks["b"] = &fakeDisk{}
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.settle()
		h.wantHealthy("a", "b")
		if got := h.pool().Status.Type; got != string(v1alpha1.LayoutStriped) {
			t.Errorf("type %q", got)
		}
		// Another PoolSet of the name that wants it otherwise changes nothing.
		if err := h.api.Delete(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		linear := poolSet()
		linear.Spec.Layout = v1alpha1.LayoutLinear
		h.apply(linear)
		h.settle()
		h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
		if !died {
			return
		}
	}
}

func TestForeignVolumeGroupIsLeftAlone(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.groups["theirs"] = &fakeGroup{name: "berth-fast", poolUID: "somebody's"}
	h.apply(poolSet())
	h.settle()
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonForeignVG)
	if len(h.groups) != 1 || h.creates != 0 {
		t.Errorf("groups %v", h.groups)
	}
}

// A failing disk of a pool is told where its volumes are looked for; one that is not in
// it is not.
func TestPoolWithAFailingDisk(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet())
	h.settle()
	said := func() string {
		return meta.FindStatusCondition(h.pool().Status.Conditions, v1alpha1.PoolReady).Message
	}
	h.disks["b"].failing = "it has 3 bad blocks"
	h.disks["z"] = &fakeDisk{owner: "somebody", failing: "it is gone"}
	h.settle()
	h.wantHealthy("a", "b")
	if want := "volumes can be made; BlockDevice b (/dev/vdb) is failing: it has 3 bad blocks"; said() != want {
		t.Errorf("it says %q, want %q", said(), want)
	}
	h.disks["b"].failing = ""
	h.settle()
	if want := "volumes can be made"; said() != want {
		t.Errorf("it says %q, want %q", said(), want)
	}
}
