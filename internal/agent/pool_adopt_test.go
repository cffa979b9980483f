// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/dm"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

const adoptedUUID = "AAAAAA-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"

func adoptingSet(s *v1alpha1.PoolSet) {
	s.Spec.DeviceSelector, s.Spec.Growth = nil, ""
	s.Spec.Adopt = &v1alpha1.AdoptedGroup{VGName: "data", VGUUID: adoptedUUID}
}

// newAdoptingHost has a volume group of somebody else's on a disk, and a disk that is free.
func newAdoptingHost(t *testing.T) *poolHost {
	t.Helper()
	h := newPoolHost(t, "a", "b")
	h.groups[adoptedUUID] = &fakeGroup{name: "data", devices: []string{"/dev/a"}}
	return h
}

// wantAdopted checks that the group serves volumes and is as it was.
func (h *poolHost) wantAdopted() {
	h.t.Helper()
	s := h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady).Status
	if !s.Adopted || s.VGName != "data" || s.VGUUID != adoptedUUID || len(s.BlockDevices) != 0 || s.DiskCount != 1 || s.Type != "linear" {
		h.t.Errorf("the Pool shows %+v", s)
	}
	if _, err := h.backends.ForNew(volume.ModeLVM, "fast"); err != nil {
		h.t.Errorf("not usable: %v", err)
	}
	h.wantUntouched()
}

func (h *poolHost) wantUntouched() {
	h.t.Helper()
	g := h.groups[adoptedUUID]
	if g == nil || g.name != "data" || g.poolUID != "" || !slices.Equal(g.devices, []string{"/dev/a"}) || h.creates != 0 || len(h.groups) != 1 {
		h.t.Errorf("the volume group is %+v of %v", g, h.groups)
	}
	for name, d := range h.disks {
		if d.owner != "" || d.released {
			h.t.Errorf("disk %s is %+v", name, d)
		}
	}
}

func TestAdoptedGroup(t *testing.T) {
	t.Parallel()
	h := newAdoptingHost(t)
	h.apply(poolSet(adoptingSet))
	h.settle()
	h.wantAdopted()
	if got := h.pools.live("fast").devices.get(); !slices.Equal(got, []string{"/dev/a"}) {
		t.Errorf("commands are limited to %v", got)
	}
	h.news.expect(t, "Normal PoolReady")

	h.start()
	h.settle()
	h.wantAdopted()
	if err := os.RemoveAll(h.stateDir); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.settle()
	h.wantAdopted() // by the status

	// Its disk comes back under another name.
	h.groups[adoptedUUID].devices, h.groups[adoptedUUID].missing = []string{"/dev/c"}, 1
	h.settle()
	h.groups[adoptedUUID].missing = 0
	h.settle()
	if got := h.pools.live("fast").devices.get(); !slices.Equal(got, []string{"/dev/c"}) {
		t.Errorf("commands are limited to %v", got)
	}
	h.groups[adoptedUUID].devices = []string{"/dev/a"}

	if _, err := h.memory(adoptedUUID).Create(t.Context(), volume.Spec{ID: lvUID, Name: lvName, SizeBytes: mib, Access: volume.AccessBlock}); err != nil {
		t.Fatal(err)
	}
	h.deleteSet()
	h.settle()
	h.deletePool()
	h.settle()
	if h.pool() == nil {
		t.Fatal("it was let go with a volume in it")
	}
	if err := h.memory(adoptedUUID).Delete(t.Context(), lvUID, nil, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
	h.settle()
	if h.pool() != nil || h.backends.Has("fast") {
		t.Errorf("it was not let go: %+v", h.pool())
	}
	h.wantUntouched()
	h.apply(poolSet(adoptingSet))
	h.settle()
	h.wantAdopted()
}

func TestGroupThatCannotBeAdopted(t *testing.T) {
	t.Parallel()
	elsewhere := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "fast-n2"},
		Spec:       v1alpha1.PoolSpec{NodeName: "n2", PoolSetName: "fast", Kind: v1alpha1.PoolLVM},
	}
	for name, c := range map[string]struct {
		spoil, mend func(h *poolHost)
		state       v1alpha1.PoolState
		reason      string
	}{
		"not here": {
			func(h *poolHost) { h.groups["elsewhere"] = h.groups[adoptedUUID]; delete(h.groups, adoptedUUID) },
			func(h *poolHost) { h.groups[adoptedUUID] = h.groups["elsewhere"]; delete(h.groups, "elsewhere") },
			v1alpha1.PoolPending, v1alpha1.ReasonVGMissing,
		},
		"another name": {
			func(h *poolHost) { h.groups[adoptedUUID].name = "system" },
			func(h *poolHost) { h.groups[adoptedUUID].name = "data" },
			v1alpha1.PoolFailed, v1alpha1.ReasonForeignVG,
		},
		"a pool's": {
			func(h *poolHost) { h.groups[adoptedUUID].poolUID = "other" },
			func(h *poolHost) { h.groups[adoptedUUID].poolUID = "" },
			v1alpha1.PoolFailed, v1alpha1.ReasonForeignVG,
		},
		"on two nodes": {
			func(h *poolHost) {
				pool := elsewhere.DeepCopy()
				if err := h.api.Create(t.Context(), pool); err != nil {
					t.Fatal(err)
				}
				pool.Status = v1alpha1.PoolStatus{Adopted: true, VGUUID: adoptedUUID}
				if err := h.api.Status().Update(t.Context(), pool); err != nil {
					t.Fatal(err)
				}
			},
			func(h *poolHost) {
				if err := h.api.Delete(t.Context(), elsewhere.DeepCopy()); err != nil {
					t.Fatal(err)
				}
			},
			v1alpha1.PoolFailed, v1alpha1.ReasonForeignVG,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newAdoptingHost(t)
			c.spoil(h)
			h.apply(poolSet(adoptingSet))
			h.settle()
			h.want(c.state, c.reason)
			if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err == nil {
				t.Error("volumes can be made in it")
			}
			if s := h.pool().Status; s.VGUUID != "" {
				t.Errorf("the node says that it has %s", s.VGUUID)
			}
			c.mend(h)
			h.settle()
			h.wantAdopted()
		})
	}
}

// Two nodes that see the same disks and say so at the same time both stay away.
func TestGroupThatTwoNodesAdoptAtOnce(t *testing.T) {
	t.Parallel()
	h := newAdoptingHost(t)
	h.apply(poolSet(adoptingSet))
	if err := h.reconcile(); err != nil {
		t.Fatal(err)
	}
	if s := h.pool().Status; s.VGUUID != adoptedUUID || s.State != v1alpha1.PoolPending {
		t.Fatalf("after one step: %+v", s)
	}
	other := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "fast-n2"}, Spec: v1alpha1.PoolSpec{NodeName: "n2", PoolSetName: "fast", Kind: v1alpha1.PoolLVM}}
	if err := h.api.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	other.Status.VGUUID = adoptedUUID
	if err := h.api.Status().Update(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	h.settle()
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonForeignVG)
	h.wantUntouched()
}

// An adopted group and one that was made are not taken for each other.
func TestAdoptionIsNotChanged(t *testing.T) {
	t.Parallel()
	for name, sets := range map[string][2]func(*v1alpha1.PoolSet){
		"adopted, then to be made": {adoptingSet, func(*v1alpha1.PoolSet) {}},
		"another group": {adoptingSet, func(s *v1alpha1.PoolSet) {
			adoptingSet(s)
			s.Spec.Adopt.VGUUID = "BBBBBB-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
		}},
		"the group, then a thin pool in it": {adoptingSet, adoptingThinSet},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newAdoptingHost(t)
			h.apply(poolSet(sets[0]))
			h.settle()
			h.wantAdopted()
			h.deleteSet()
			h.settle()
			h.apply(poolSet(sets[1]))
			h.settle()
			h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
			h.wantUntouched()
		})
	}
}

func TestAdoptionKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newAdoptingHost(t)
		h.apply(poolSet(adoptingSet))
		h.killer.arm(n)
		for range 3 {
			_ = h.reconcile()
		}
		died := h.killer.died()
		h.start()
		h.settle()
		h.wantAdopted()
		h.deleteSet()
		h.settle()
		h.deletePool()
		h.killer.arm(n)
		for range 2 {
			_ = h.reconcile()
		}
		died = died || h.killer.died()
		h.start()
		h.settle()
		if h.pool() != nil || h.backends.Has("fast") {
			t.Fatalf("killed at step %d: not let go: %+v", n, h.pool())
		}
		h.wantUntouched()
		if t.Failed() {
			t.Fatalf("killed at step %d", n)
		}
		if !died {
			if n < 4 {
				t.Errorf("only %d steps were tried", n)
			}
			return
		}
	}
}

var tank = lvm.ThinPoolID{Name: "tank", UUID: "CCCCCC-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"}

func adoptingThinSet(s *v1alpha1.PoolSet) {
	adoptingSet(s)
	s.Spec.Adopt.ThinPoolName, s.Spec.Adopt.ThinPoolUUID = tank.Name, tank.UUID
	s.Spec.Thin = thinSet().Spec.Thin
}

// newThinAdoptingHost has a thin pool of somebody else's in it.
func newThinAdoptingHost(t *testing.T) *poolHost {
	t.Helper()
	h := newAdoptingHost(t)
	h.groups[adoptedUUID].thinPool = tank
	h.thin = &lvm.ThinState{DataBytes: 100 * mib, MetadataBytes: 8 * mib, Usage: dm.ThinPool{Mode: dm.ThinPoolWritable, DataUsed: 20, DataBlocks: 100, MetadataBlocks: 100}}
	return h
}

func (h *poolHost) wantThinAdopted() {
	h.t.Helper()
	s := h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady).Status
	if !s.Adopted || s.VGUUID != adoptedUUID || s.ThinPoolName != tank.Name || s.ThinPoolUUID != tank.UUID || s.Type != "thin" || s.Thin == nil || s.Thin.DataPercent != 20 {
		h.t.Errorf("the Pool shows %+v", s)
	}
	h.wantUntouched()
}

func TestAdoptedThinPool(t *testing.T) {
	t.Parallel()
	h := newThinAdoptingHost(t)
	h.apply(poolSet(adoptingThinSet))
	h.settle()
	h.wantThinAdopted()
	h.start()
	h.settle()
	h.wantThinAdopted()
	if err := os.RemoveAll(h.stateDir); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.settle()
	h.wantThinAdopted() // by the status
	h.deleteSet()
	h.settle()
	h.deletePool()
	h.settle()
	if h.pool() != nil || h.groups[adoptedUUID].thinPool != tank {
		t.Errorf("it was not let go: %+v", h.pool())
	}
	h.wantUntouched()
}

// What is wrong with the pool is said, before it is adopted and afterwards, and ends with it.
func TestThinPoolThatCannotBeAdopted(t *testing.T) {
	t.Parallel()
	other := tank
	other.UUID = "DDDDDD-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
	for name, spoil := range map[string]lvm.ThinPoolID{"gone": {}, "another one": other, "renamed": {Name: "lake", UUID: tank.UUID}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newThinAdoptingHost(t)
			h.groups[adoptedUUID].thinPool = spoil
			h.apply(poolSet(adoptingThinSet))
			h.settle()
			h.want(v1alpha1.PoolPending, v1alpha1.ReasonThinPoolMissing)
			if s := h.pool().Status; s.VGUUID != "" || s.ThinPoolUUID != "" {
				t.Errorf("the node says that it has %+v", s)
			}
			h.groups[adoptedUUID].thinPool = tank
			h.settle()
			h.wantThinAdopted()
			h.groups[adoptedUUID].thinPool = spoil
			h.settle()
			h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolMissing)
			if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err != nil {
				t.Errorf("its volumes cannot be used: %v", err)
			}
			h.groups[adoptedUUID].thinPool = tank
			h.settle()
			h.wantThinAdopted()
		})
	}
}

// A pool that is full names what its owner can do.
func TestAdoptedThinPoolIsFull(t *testing.T) {
	t.Parallel()
	h := newThinAdoptingHost(t)
	h.thin.Usage.Mode, h.thin.Usage.DataUsed = dm.ThinPoolOutOfData, 100
	h.apply(poolSet(adoptingThinSet))
	h.settle()
	pool := h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonThinPoolFull)
	if c := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady); !strings.Contains(c.Message, "extend tank (lvextend)") {
		t.Errorf("it says %q", c.Message)
	}
}
