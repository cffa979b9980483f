// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// lookAgain waits as long as the agent does before it looks at the pool again, and looks.
func (h *poolHost) lookAgain(wait time.Duration) time.Duration {
	h.t.Helper()
	time.Sleep(wait) //nolint:forbidigo // it is how the bubble's clock moves on
	result, err := h.pools.Reconcile(h.t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "fast"}})
	if err != nil {
		h.t.Fatal(err)
	}
	return result.RequeueAfter
}

func (h *poolHost) leftOvers() (kinds []string) {
	for _, l := range h.pool().Status.LeftOvers {
		kinds = append(kinds, fmt.Sprintf("%s %s %s", l.Kind, l.UID, l.Name))
	}
	return kinds
}

func TestPoolTellsOfLeftOvers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t, "a")
		defer func() { h.stop(); synctest.Wait() }()
		h.apply(poolSet())
		h.settle()
		memory := h.memory(h.pool().Status.VGUUID)
		entry := func(i int, state ledger.State) ledger.Entry {
			return ledger.Entry{
				UID: volumetest.ID(i), Name: fmt.Sprintf("pvc-%d", i), MachineID: machine, State: state, Mode: volume.ModeLVM, Pool: "fast", Access: volume.AccessBlock, Wipe: volume.WipeZero,
			}
		}
		for i := range 4 { // 0 has an object, 1 is forgotten, 2 is being deleted, 3 is not in the ledger
			rec, err := memory.Create(t.Context(), volume.Spec{ID: volumetest.ID(i), Name: "v", SizeBytes: mib, Access: volume.AccessBlock})
			if err != nil {
				t.Fatal(err)
			}
			e := entry(i, map[int]ledger.State{0: ledger.Ready, 1: ledger.Ready, 2: ledger.Deleting}[i])
			if e.Record = &rec; i == 3 {
				continue
			}
			e.Record.Mode, e.Record.LVM = volume.ModeLVM, &volume.LVMRecord{VGName: "berth-fast", VGUUID: "u", LVName: e.UID, LVUUID: "u"}
			if err := h.pools.Ledger.Put(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.pools.Ledger.Put(entry(4, ledger.Carving)); err != nil { // only in the ledger
			t.Fatal(err)
		}
		other := entry(5, ledger.Carving)
		other.Pool = "slow"
		if err := h.pools.Ledger.Put(other); err != nil {
			t.Fatal(err)
		}
		lv := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-0", UID: types.UID(volumetest.ID(0))}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Pool: "fast"}}
		if err := h.api.Create(t.Context(), lv); err != nil {
			t.Fatal(err)
		}

		wait := h.lookAgain(leftOverInterval)
		if got := h.leftOvers(); len(got) > 0 || wait != leftOverGrace {
			t.Fatalf("told at once: %s; again in %s", got, wait)
		}
		want := []string{
			"Record " + volumetest.ID(4) + " pvc-4", "Volume " + volumetest.ID(1) + " pvc-1", "Volume " + volumetest.ID(3) + " v",
		}
		wait = h.lookAgain(wait)
		if got := h.leftOvers(); !slices.Equal(got, want) || h.pool().Status.LeftOverCount != 3 || wait != leftOverRetry {
			t.Fatalf("told %s, want %s; again in %s", got, want, wait)
		}
		found, err := memory.List(t.Context())
		if err != nil || len(found) != 4 {
			t.Fatalf("it is not for the look to change anything: %v, %v", found, err)
		}

		// An agent that has just started says nothing new before it knows.
		h.start()
		wait = h.lookAgain(0)
		if got := h.pool().Status.LeftOverCount; got != 0 || wait != leftOverGrace {
			t.Errorf("it tells of %d, again in %s", got, wait)
		}
		lv.ResourceVersion, lv.Name, lv.UID = "", "pvc-1", types.UID(volumetest.ID(1))
		if err := h.api.Create(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
		h.lookAgain(wait)
		if got := h.leftOvers(); !slices.Equal(got, []string{want[0], want[2]}) {
			t.Errorf("told %s after one has its object again", got)
		}
	})
}

// What is seen to be left over is told after the grace, and not within the hour.
func TestPoolIsLookedThroughWhenAskedTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t, "a")
		defer func() { h.stop(); synctest.Wait() }()
		h.apply(poolSet())
		h.settle()
		h.pools.lookThrough("another")
		if wait := h.lookAgain(time.Minute); wait != leftOverInterval-time.Minute {
			t.Fatalf("it is looked at again in %s", wait)
		}
		e := ledger.Entry{UID: volumetest.ID(1), Name: "pvc-1", MachineID: machine, Mode: volume.ModeLVM, Pool: "fast", State: ledger.Carving, Access: volume.AccessBlock, Wipe: volume.WipeZero}
		if err := h.pools.Ledger.Put(e); err != nil {
			t.Fatal(err)
		}
		h.pools.lookThrough("fast")
		if wait := h.lookAgain(0); wait != leftOverGrace || len(h.leftOvers()) > 0 {
			t.Fatalf("told at once: %s; again in %s", h.leftOvers(), wait)
		}
		if h.lookAgain(leftOverGrace); len(h.leftOvers()) != 1 {
			t.Errorf("told %s", h.leftOvers())
		}
	})
}

func TestPoolWithoutLeftOversIsLookedThroughRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t, "a")
		defer func() { h.stop(); synctest.Wait() }()
		h.apply(poolSet())
		h.settle()
		h.writes = 0
		if wait := h.lookAgain(time.Minute); wait != leftOverInterval-time.Minute {
			t.Errorf("it is looked at again in %s", wait)
		}
		if wait := h.lookAgain(leftOverInterval); wait != leftOverInterval || h.writes > 0 {
			t.Errorf("it is looked at again in %s, after %d writes", wait, h.writes)
		}
	})
}

func TestLeftOversAreBounded(t *testing.T) {
	t.Parallel()
	var l leftOvers
	var found []v1alpha1.LeftOver
	for i := range 2 * mostLeftOvers {
		found = append(found, v1alpha1.LeftOver{Kind: v1alpha1.LeftOverVolume, UID: types.UID(volumetest.ID(2*mostLeftOvers - i))})
	}
	now := time.Now()
	if view := l.judge(now, found); view.count != 0 {
		t.Errorf("told %d at once", view.count)
	}
	view := l.judge(now.Add(leftOverGrace), found)
	if view.count != 2*mostLeftOvers || len(view.all) != mostLeftOvers || view.all[0].UID != types.UID(volumetest.ID(1)) {
		t.Errorf("told %d of %d, the first is %s", len(view.all), view.count, view.all[0].UID)
	}
	// What was not left over in between begins anew.
	l.judge(now.Add(2*leftOverGrace), nil)
	if view := l.judge(now.Add(3*leftOverGrace), found); view.count != 0 {
		t.Errorf("told %d at once", view.count)
	}
}

// snapshotting is a backend with snapshots, or one that cannot say which.
type snapshotting struct {
	*volumetest.Memory
	volume.Snapshotter // nothing else of it is called

	found []volume.Found
	err   error
}

func (b snapshotting) ListSnapshots(context.Context) ([]volume.Found, error) { return b.found, b.err }

func TestLeftOverSnapshots(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	s := &v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "s", UID: types.UID(volumetest.ID(0))}, Spec: v1alpha1.LocalSnapshotSpec{NodeName: "n1"}}
	if err := h.api.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b := snapshotting{Memory: h.memory("vg")}
	for i := range 2 {
		b.found = append(b.found, volume.Found{ID: volumetest.ID(i), Record: volume.Record{SizeBytes: mib, LVM: &volume.LVMRecord{VGName: "berth-fast", LVName: "snapshot"}}})
	}
	found, err := h.pools.findLeftOvers(t.Context(), &poolRecord{PoolSet: "fast"}, b)
	want := v1alpha1.LeftOver{Kind: v1alpha1.LeftOverSnapshot, UID: types.UID(volumetest.ID(1)), Location: "berth-fast/snapshot", SizeBytes: mib}
	if err != nil || len(found) != 1 || found[0] != want {
		t.Errorf("found %+v, %v; want %+v", found, err, want)
	}
	b.err = volume.ErrPoolUnavailable
	if found, err := h.pools.findLeftOvers(t.Context(), &poolRecord{PoolSet: "fast"}, b); !errors.Is(err, volume.ErrPoolUnavailable) || found != nil {
		t.Errorf("found %+v, %v", found, err)
	}
}

// A node that was forgotten (kubectl berth forget-node) comes back: its Pool and the claims on
// its disks are gone. It takes up what it has, makes nothing anew, and tells of the volume.
func TestPoolOfAForgottenNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t, "a", "b")
		defer func() { h.stop(); synctest.Wait() }()
		h.apply(poolSet())
		h.settle()
		before := h.wantHealthy("a", "b")
		memory := h.memory(before.Status.VGUUID)
		if _, err := memory.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "v", SizeBytes: mib, Access: volume.AccessBlock}); err != nil {
			t.Fatal(err)
		}
		forgotten := before.DeepCopy()
		forgotten.Finalizers = nil
		if err := h.api.Update(t.Context(), forgotten); err != nil {
			t.Fatal(err)
		}
		if err := h.api.Delete(t.Context(), forgotten); err != nil {
			t.Fatal(err)
		}
		for _, d := range h.disks {
			d.owner = ""
		}

		h.start()
		h.settle()
		after := h.wantHealthy("a", "b")
		if after.UID == before.UID || after.Status.VGUUID != before.Status.VGUUID || h.creates != 1 {
			t.Errorf("it is %s in %s after %d groups were made, and was %s in %s", after.UID, after.Status.VGUUID, h.creates, before.UID, before.Status.VGUUID)
		}
		if h.disks["a"].owner != "" || h.disks["b"].owner != "" {
			t.Error("disks that are not blank were claimed")
		}
		h.lookAgain(leftOverGrace)
		if got := h.leftOvers(); !slices.Equal(got, []string{"Volume " + volumetest.ID(1) + " v"}) {
			t.Errorf("told %s", got)
		}
		if found, err := memory.List(t.Context()); err != nil || len(found) != 1 {
			t.Errorf("the volume is not kept: %v, %v", found, err)
		}
	})
}

// straying is a backend with something of somebody else beside its volumes.
type straying struct {
	*volumetest.Memory

	strays []string
	err    error
}

func (b straying) Strays(context.Context) ([]string, error) { return b.strays, b.err }

// mountedAt says of every device that it is mounted there.
type mountedAt []string

func (m mountedAt) MountsOf(context.Context, string) ([]string, error) { return m, nil }

// reachable is a backend whose volumes somebody has activated.
type reachable struct{ *volumetest.Memory }

func (b reachable) Examine(ctx context.Context, id string) (volume.Examination, error) {
	e, err := b.Memory.Examine(ctx, id)
	e.Device = "/dev/mapper/x"
	return e, err
}

func TestWhatIsToldOfLeftOvers(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	rec := &poolRecord{PoolSet: "fast"}
	var doubted []string
	h.pools.Doubt, h.pools.Mounts = func(name string) { doubted = append(doubted, name) }, mountedAt{"/mnt", "/mnt2"}
	dirs := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), Mode: volume.ModeHostpath, TotalBytes: mib})
	vg := h.memory("vg")
	for _, m := range []*volumetest.Memory{dirs, vg} {
		if _, err := m.Create(t.Context(), volume.Spec{ID: volumetest.ID(1), Name: "pvc-1", SizeBytes: mib, Access: volume.AccessFilesystem, Claim: "shop/orders"}); err != nil {
			t.Fatal(err)
		}
	}
	for i, pool := range []string{"fast", "fast", "slow"} { // 1 is left over: its object has another UID
		lv := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("lv-%d", i), UID: types.UID(volumetest.ID(20 + i))}, Spec: v1alpha1.LocalVolumeSpec{NodeName: "n1", Pool: pool}}
		if i != 1 {
			lv.Status.Conditions = []metav1.Condition{{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonCarved}}
		}
		if err := h.api.Create(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
	}
	find := func(b volume.Backend) []v1alpha1.LeftOver {
		t.Helper()
		found, err := h.pools.findLeftOvers(t.Context(), rec, b)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	// Owners without storage are looked at: those that say they have it.
	found := find(reachable{vg})
	if len(found) != 1 || found[0].InUse != "mounted at /mnt" || found[0].Identity == "" || found[0].Name != "pvc-1" || found[0].Claim != "shop/orders" {
		t.Errorf("found %+v", found)
	}
	if !slices.Equal(doubted, []string{"lv-0"}) {
		t.Errorf("doubted %s", doubted)
	}
	release := dirs.Hold(volumetest.ID(1))
	found = find(straying{Memory: dirs, strays: []string{"/srv/volumes/x"}})
	want := v1alpha1.LeftOver{Kind: v1alpha1.LeftOverDirectory, Location: "/srv/volumes/x"}
	if len(found) != 2 || found[0].InUse == "" || found[1] != want {
		t.Errorf("found %+v", found)
	}
	release()
	if found := find(dirs); len(found) != 1 || found[0].InUse != "" {
		t.Errorf("found %+v", found)
	}
	if found, err := h.pools.findLeftOvers(t.Context(), rec, straying{Memory: dirs, err: volume.ErrPoolUnavailable}); !errors.Is(err, volume.ErrPoolUnavailable) || found != nil {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestLeftOverMetrics(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	p := h.pools.live("fast")
	told := func() map[string]float64 {
		t.Helper()
		registry := prometheus.NewPedanticRegistry()
		if err := registry.Register(h.pools); err != nil {
			t.Fatal(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "berth_left_overs" {
					values[m.GetLabel()[0].GetValue()+" of "+m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
		return values
	}
	if got := told(); len(got) != 0 {
		t.Errorf("before the first look it tells %v", got)
	}
	now := time.Now()
	found := []v1alpha1.LeftOver{{Kind: v1alpha1.LeftOverVolume, UID: "a", SizeBytes: 1}, {Kind: v1alpha1.LeftOverVolume, UID: "b"}, {Kind: v1alpha1.LeftOverRecord, UID: "c"}}
	p.leftOvers.judge(now, found)
	if got := told(); got["Volume of fast"] != 0 || len(got) != 4 {
		t.Errorf("what was found once is told: %v", got)
	}
	found[0].SizeBytes, found[0].InUse = 2, "mounted" // it is the same all the same
	p.leftOvers.judge(now.Add(leftOverGrace), found)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(h.pools)
	metricstest.CheckSeries(t, registry, "berth_left_overs")
	if got := told(); got["Volume of fast"] != 2 || got["Record of fast"] != 1 || got["Snapshot of fast"] != 0 {
		t.Errorf("it tells %v", got)
	}
	p.reset()
	if got := told(); len(got) != 0 {
		t.Errorf("of a pool that is gone it tells %v", got)
	}
}
