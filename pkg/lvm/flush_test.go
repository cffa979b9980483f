// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/lvm/lvmtest"
	"github.com/berth-dev/berth/pkg/volume"
)

// A pool that was made and never used survives a loss of power with every disk: lvm
// itself leaves its labels in the caches of the disks.
func TestPoolSurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	h, spec := poolHost(t)
	first, all := spec, spec
	first.Devices = spec.Devices[:1]
	steps := []struct {
		name string
		do   func(*lvm.Client) (*lvm.Group, error)
		want int
	}{
		{"CreateGroup", func(c *lvm.Client) (*lvm.Group, error) { return c.CreateGroup(t.Context(), first) }, 1},
		{"ExtendGroup", func(c *lvm.Client) (*lvm.Group, error) {
			g, err := c.FindGroup(t.Context(), spec.PoolUID)
			if err != nil {
				return nil, err
			}
			return c.ExtendGroup(t.Context(), g.UUID, all)
		}, 2},
	}
	for _, step := range steps {
		if _, err := step.do(lvm.NewClient(h.Runner(), h.Flush)); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		h.LoseCaches()
		h.Reboot()
		g, err := lvm.NewClient(h.Runner(), h.Flush).FindGroup(t.Context(), spec.PoolUID)
		if err != nil || g.State() != lvm.StateReady || len(g.PVs) != step.want {
			t.Fatalf("after %s and a power loss: %+v, %v", step.name, g, err)
		}
	}
}

// A process that was killed before it had flushed the disks is made up for by the next.
func TestRepeatedCreateGroupIsDurable(t *testing.T) {
	t.Parallel()
	h, spec := poolHost(t)
	h.SetNoFlush(true)
	if _, err := lvm.NewClient(h.Runner(), h.Flush).CreateGroup(t.Context(), spec); err == nil {
		t.Fatal("a pool that may be lost with the power was called made")
	}
	h.SetNoFlush(false)
	if _, err := lvm.NewClient(h.Runner(), h.Flush).CreateGroup(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	h.LoseCaches()
	h.Reboot()
	if g, err := lvm.NewClient(h.Runner(), h.Flush).FindGroup(t.Context(), spec.PoolUID); err != nil || g.State() != lvm.StateReady {
		t.Fatalf("after a power loss: %+v, %v", g, err)
	}
}

// A volume is not called made, or removed, before the disks have it on the medium, and
// is not made twice for that.
func TestChangeThatCannotBeFlushed(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 64*mib)
	b := vg.Backend()
	vg.SetNoFlush(true)
	for range 2 {
		if _, err := b.Create(t.Context(), spec(1, 8*mib)); err == nil {
			t.Fatal("a volume that may be lost with the power was called made")
		}
	}
	if _, err := b.List(t.Context()); err != nil {
		t.Errorf("looking needs no flush: %v", err)
	}
	vg.SetNoFlush(false)
	rec, err := b.Create(t.Context(), spec(1, 8*mib))
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, command := range vg.Commands() {
		if strings.HasPrefix(command, "lvcreate ") {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d times lvcreate for one volume: %q", made, vg.Commands())
	}
	vg.SetNoFlush(true)
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeNone); err == nil {
		t.Fatal("a volume that may come back with the power was called deleted")
	}
	vg.SetNoFlush(false)
	if err := b.Delete(t.Context(), id(1), &rec, volume.WipeNone); err != nil {
		t.Fatal(err)
	}
}

// A volume that was made by a process of which nobody learned what it did is flushed
// before a later call that finds it says that it is there.
func TestChangeOfUnknownOutcomeIsFlushed(t *testing.T) {
	t.Parallel()
	vg := lvmtest.NewVG(t, 64*mib)
	b := vg.Backend()
	if _, err := b.Create(t.Context(), spec(1, 8*mib)); err != nil {
		t.Fatal(err)
	}
	vg.Inject(lvmtest.Fault{Command: "lvcreate", Mode: lvmtest.DieAfter})
	vg.Inject(lvmtest.Fault{Command: "lvs", Mode: lvmtest.DieBefore})
	if _, err := b.Create(t.Context(), spec(2, 8*mib)); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Fatalf("Create = %v, want that the outcome is not known", err)
	}
	rec, err := b.Create(t.Context(), spec(2, 8*mib))
	if err != nil {
		t.Fatal(err)
	}
	vg.LoseCaches()
	vg.Reboot()
	if _, err := vg.Backend().Locate(t.Context(), id(2), rec); err != nil {
		t.Errorf("what was called made is lost: %v", err)
	}
}
