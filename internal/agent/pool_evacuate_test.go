// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// evacuate changes spec.evacuate of the pool.
func (h *poolHost) evacuate(disks ...string) {
	h.t.Helper()
	pool := h.pool()
	pool.Spec.Evacuate = disks
	if err := h.api.Update(h.t.Context(), pool); err != nil {
		h.t.Fatal(err)
	}
}

func (h *poolHost) evacuations() map[string]v1alpha1.DiskEvacuation {
	h.t.Helper()
	found := map[string]v1alpha1.DiskEvacuation{}
	for _, e := range h.pool().Status.Evacuations {
		found[e.Name] = e
	}
	return found
}

// A disk is emptied, leaves the pool, and does not come back while it is named.
func TestEvacuate(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet())
	h.settle()
	h.onDisk = 3*mib + 1
	h.evacuate("b", "z")
	h.settle()
	h.wantHealthy("a", "b")
	e := h.evacuations()
	if left := e["b"].Remaining; left == nil || left.String() != "4Mi" || !strings.Contains(e["b"].Message, "being moved") {
		t.Errorf("while it is emptied: %+v", e["b"])
	}
	if !strings.Contains(e["z"].Message, "no disk of this pool") {
		t.Errorf("a disk that is none of the pool: %+v", e["z"])
	}
	if said := h.says(); !strings.Contains(said, "disk b is being emptied") {
		t.Errorf("it says %q", said)
	}
	h.disks["z"] = &fakeDisk{}
	h.onDisk = 0
	h.settle()
	h.wantHealthy("a")
	if !h.disks["b"].released || h.disks["a"].released || h.disks["z"].owner != "" {
		t.Errorf("disks: %+v", h.disks)
	}
	if e := h.evacuations()["b"]; !strings.Contains(e.Message, "no disk of this pool") {
		t.Errorf("afterwards: %+v", e)
	}
	// It was wiped, and is usable again.
	h.disks["b"] = &fakeDisk{}
	h.settle()
	h.wantHealthy("a")
	h.evacuate()
	h.settle()
	h.wantHealthy("a", "b", "z")
	if len(h.evacuations()) > 0 {
		t.Errorf("nothing is asked for: %+v", h.evacuations())
	}
}

func TestEvacuateIsTakenBack(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet())
	h.settle()
	h.onDisk, h.stuck = mib, "no other disk of the pool has room"
	h.evacuate("b")
	h.settle()
	h.wantHealthy("a", "b")
	if said := h.says(); !strings.Contains(said, "disk b cannot be emptied: no other disk of the pool has room") {
		t.Errorf("it says %q", said)
	}
	h.start() // also by an agent that has begun nothing itself
	h.evacuate()
	h.settle()
	h.wantHealthy("a", "b")
	if g := h.groups[h.pool().Status.VGUUID]; len(g.closed) > 0 || h.disks["b"].released {
		t.Errorf("it is not as it was: %+v, %+v", g, h.disks["b"])
	}
}

func TestEvacuateKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newPoolHost(t, "a", "b", "c")
		h.apply(poolSet())
		h.settle()
		h.evacuate("b")
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.settle()
		h.wantHealthy("a", "c")
		if !h.disks["b"].released || h.disks["a"].released || h.disks["c"].released {
			t.Fatalf("killed at step %d: %+v", n, h.disks)
		}
		rec, err := h.pools.records.load("fast")
		if err != nil || len(rec.Evacuating) > 0 || !slices.Equal(rec.Disks, []string{"a", "c"}) {
			t.Fatalf("killed at step %d: the record is %+v, %v", n, rec, err)
		}
		if !died {
			if n < 4 {
				t.Errorf("only %d steps were tried", n)
			}
			return
		}
	}
}

// The agent is killed, and what was asked for is taken back before the next one looks: the disk
// is of the pool, or has left it and joins it again.
func TestEvacuateKilledAndTakenBack(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		h := newPoolHost(t, "a", "b", "c")
		h.apply(poolSet())
		h.settle()
		h.evacuate("b")
		h.killer.arm(n)
		_ = h.reconcile()
		died := h.killer.died()
		h.start()
		h.evacuate()
		h.settle()
		if h.disks["b"].released {
			h.disks["b"] = &fakeDisk{} // it was wiped
			h.settle()
		}
		h.wantHealthy("a", "b", "c")
		rec, err := h.pools.records.load("fast")
		if g := h.groups[rec.VGUUID]; err != nil || len(g.devices) != 3 || len(g.closed) > 0 || len(rec.Evacuating) > 0 {
			t.Fatalf("killed at step %d: the group is %+v, the record %+v, %v", n, g, rec, err)
		}
		if !died {
			return
		}
	}
}

// A disk that is lost while it is emptied is given up as any other that is lost: what is on it
// stays as it is.
func TestEvacuatedDiskIsLost(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b", "c")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.onDisk = mib
	h.evacuate("b")
	h.settle()
	h.lose("b")
	h.settle()
	h.wait()
	h.settle()
	h.wantHealthy("a", "c")
	if !h.disks["b"].released {
		t.Errorf("it is still claimed: %+v", h.disks["b"])
	}
	rec, err := h.pools.records.load("fast")
	if err != nil || len(rec.Evacuating) > 0 {
		t.Errorf("the record is %+v, %v", rec, err)
	}
}
