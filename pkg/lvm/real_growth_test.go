// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
)

const growthRounds = 7

// measured are the times of one thing by Berth and by lvm's own command, in turn, in
// milliseconds, and the lvm processes that Berth started.
type measured struct {
	ours, bare []float64
	processes  int64
}

func (m *measured) add(t *testing.T, r *rig, ours, bare func() error) {
	t.Helper()
	before := r.processes.Load()
	m.ours = append(m.ours, timed(t, ours))
	m.processes += r.processes.Load() - before
	m.bare = append(m.bare, timed(t, bare))
}

// cells are those of a row of the table.
func (m *measured) cells() []any {
	o, b := median(m.ours), median(m.bare)
	return []any{strconv.FormatFloat(o, 'f', 0, 64), strconv.FormatFloat(b, 'f', 0, 64), o / b, float64(m.processes) / growthRounds}
}

// TestKernelCostsOfSnapshots prints what one more snapshot costs, and a volume made of it,
// beside lvm's own command, by how many the volume has. With BERTH_TEST_COSTS only.
func TestKernelCostsOfSnapshots(t *testing.T) {
	numbers := costNumbers(t)
	const extra = 80000
	r := newRig(t)
	r.thin = true
	b := r.tend(t, r.backend(t, 0))
	source, err := b.Create(t.Context(), spec(1, 64*mib))
	if err != nil {
		t.Fatal(err)
	}
	wanted := func(n int) volume.SnapshotSpec {
		return volume.SnapshotSpec{ID: id(n), Name: fmt.Sprintf("snapshot-%d", n), VolumeID: id(1), Volume: source}
	}
	fmt.Fprintf(os.Stdout, "\n| snapshots of the volume, thin | snapshot, ms | lvcreate, ms | ratio | lvm processes | restore, ms | lvcreate, ms | ratio | lvm processes |\n|---|---|---|---|---|---|---|---|---|\n")
	have := 0
	for _, n := range numbers {
		for have < n {
			many := min(100, n-have)
			r.atOnce(t, many, func(i int) error { _, err := b.Snapshot(t.Context(), wanted(100+have+i)); return err })
			have += many
		}
		var snapshot, restore measured
		for range growthRounds {
			var rec volume.Record
			bare := plain(t, "lvcreate", "--quiet", "--yes", "--snapshot", "--name", "bare", r.group.Name+"/"+id(1))
			active := plain(t, "lvcreate", "--quiet", "--yes", "--snapshot", "--setactivationskip", "n", "--name", "bare-active", r.group.Name+"/"+id(1))
			snapshot.add(t, r, func() (err error) { rec, err = b.Snapshot(t.Context(), wanted(extra)); return err }, bare)
			from := spec(extra+1, 64*mib)
			from.Source = &volume.Source{ID: id(extra), Record: rec, Snapshot: true}
			// What somebody else has changed is looked at first: not in the measured call.
			refresh(t, b)
			restore.add(t, r, func() error { _, err := b.Create(t.Context(), from); return err }, active)
			r.lvm(t, "lvremove", "--yes", r.group.Name+"/bare", r.group.Name+"/bare-active")
			if err := b.Delete(t.Context(), id(extra+1), nil, volume.WipeNone); err != nil {
				t.Fatal(err)
			}
			if err := b.DeleteSnapshot(t.Context(), id(extra), &rec); err != nil {
				t.Fatal(err)
			}
			refresh(t, b)
		}
		row(append(append([]any{n}, snapshot.cells()...), restore.cells()...)...)
	}
}

// TestKernelCostsOfPools prints what a volume costs beside lvm's own command, by how many
// volume groups of 20 volumes the node has. With BERTH_TEST_COSTS only.
func TestKernelCostsOfPools(t *testing.T) {
	costNumbers(t)
	const volumes = 20
	r := newRig(t)
	b := r.backend(t, 0)
	r.atOnce(t, volumes, func(i int) error { _, err := b.Create(t.Context(), spec(100+i, 4*mib)); return err })
	client := lvm.NewClient(r.host, lvm.DiskFlusher("/"))
	fmt.Fprintf(os.Stdout, "\n| volume groups | create, ms | lvcreate, ms | ratio | lvm processes |\n|---|---|---|---|---|\n")
	for i, disk := range testDisks() {
		if i > 0 {
			uid := fmt.Sprintf("b0000000-0000-4000-8000-%012d", i)
			g, err := client.CreateGroup(t.Context(), lvm.GroupSpec{Name: fmt.Sprintf("berth-kernel-test-%d", i), PoolUID: uid, PoolSet: "test", Devices: []string{disk}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				r.lvm(t, "lvremove", "--yes", g.Name)
				if err := client.RemoveGroup(context.Background(), g.UUID, uid, nil); err != nil {
					t.Error(err)
				}
			})
			for n := range volumes {
				r.lvm(t, "lvcreate", "--yes", "--extents", "1", "--name", fmt.Sprintf("other-%d", n), g.Name)
			}
		}
		refresh(t, b)
		var create measured
		for range growthRounds {
			create.add(t, r, func() error { _, err := b.Create(t.Context(), spec(1, 4*mib)); return err },
				plain(t, "lvcreate", "--quiet", "--yes", "--extents", "1", "--name", "bare", r.group.Name))
			r.lvm(t, "lvremove", "--yes", r.group.Name+"/bare")
			if err := b.Delete(t.Context(), id(1), nil, volume.WipeNone); err != nil {
				t.Fatal(err)
			}
			refresh(t, b)
		}
		row(append([]any{i + 1}, create.cells()...)...)
	}
}

// refresh has the backend look at what somebody else has changed.
func refresh(t *testing.T, b *lvm.Backend) {
	t.Helper()
	if _, err := b.Capacity(t.Context()); err != nil {
		t.Fatal(err)
	}
}
