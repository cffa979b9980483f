// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/capacity"
	"github.com/berth-dev/berth/pkg/hostpath"
	"github.com/berth-dev/berth/pkg/quota"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

func TestPoolWritesNothingWhileNothingChanges(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.apply(poolSet())
	h.settle()
	if h.writes > 2 {
		t.Errorf("%d writes to make a pool, want 2: its object and its status", h.writes)
	}
	h.writes = 0
	for range 20 {
		if err := h.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	h.settle()
	if h.writes != 0 {
		t.Errorf("%d writes while nothing changed", h.writes)
	}
}

func TestPoolNumbersAreWrittenTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newPoolHost(t, "a")
		defer func() { h.stop(); synctest.Wait() }()
		h.apply(poolSet())
		h.settle()
		vg := h.pool().Status.VGUUID
		h.writes = 0
		for i := range 40 { // one per second, 1 MiB of 100 each
			_, err := h.memory(vg).Create(t.Context(), volume.Spec{ID: volumetest.ID(i), Name: "v", SizeBytes: mib, Access: volume.AccessBlock})
			if err != nil {
				t.Fatal(err)
			}
			if err := h.reconcile(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) //nolint:forbidigo // it is how the bubble's clock moves on
		}
		if h.writes > 10 {
			t.Errorf("%d writes for 40 volumes", h.writes)
		}
		time.Sleep(numbersInterval) //nolint:forbidigo // as above
		h.settle()
		if p := h.pool(); p.Status.VolumeCount != 40 || p.Status.Free.Value() != 60*mib || p.Status.Allocated.Value() != 40*mib {
			t.Errorf("ended at %+v", p.Status)
		}
	})
}

// TestPoolObjectMadeAnew: etcd was restored to before the Pool was made.
func TestPoolObjectMadeAnew(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet())
	h.settle()
	was := h.wantHealthy("a", "b")
	was.Finalizers = nil
	if err := h.api.Update(t.Context(), was); err != nil {
		t.Fatal(err)
	}
	if err := h.api.Delete(t.Context(), was); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.settle()
	now := h.wantHealthy("a", "b")
	if now.UID == was.UID || now.Status.VGUUID != was.Status.VGUUID || h.creates != 1 {
		t.Errorf("was %s %s, is %s %s, made %d times", was.UID, was.Status.VGUUID, now.UID, now.Status.VGUUID, h.creates)
	}
	h.disks["c"] = &fakeDisk{}
	h.settle()
	h.wantHealthy("a", "b", "c")
}

func TestPoolOfALostStateDirectory(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]*v1alpha1.PoolSet{"lvm": poolSet(), "hostpath": poolSet(hostpathSet)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPoolHost(t, "a")
			h.apply(set)
			h.settle()
			h.stateDir = t.TempDir()
			h.start()
			h.writes = 0
			h.settle()
			h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
			if h.creates+h.inits != 1 || h.writes != 0 {
				t.Errorf("made %d times, %d writes", h.creates+h.inits, h.writes)
			}
		})
	}
}

func TestPoolThatIsNotWhole(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a", "b")
	h.apply(poolSet())
	h.settle()
	vg := h.pool().Status.VGUUID
	h.disks["b"].missing = true
	h.groups[vg].missing = 1
	h.settle()
	h.want(v1alpha1.PoolDegraded, v1alpha1.ReasonVGPartial)
	if s := h.pool().Status; s.DiskCount != 2 || s.MissingDiskCount != 1 {
		t.Errorf("%d disks, %d of them missing", s.DiskCount, s.MissingDiskCount)
	}
	if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err != nil {
		t.Errorf("volumes on the disks that are there do not go on: %v", err)
	}
	if got := h.pools.live("fast").devices.get(); len(got) != 1 || got[0] != "/dev/a" {
		t.Errorf("commands are limited to %v", got)
	}
	gone := h.groups[vg]
	delete(h.groups, vg)
	h.settle()
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonVGMissing)
	if h.creates != 1 {
		t.Fatal("made anew")
	}
	gone.missing, h.groups[vg], h.disks["b"].missing = 0, gone, false
	h.settle()
	h.wantHealthy("a", "b")
	if s := h.pool().Status; s.DiskCount != 2 || s.MissingDiskCount != 0 {
		t.Errorf("whole again: %d disks, %d of them missing", s.DiskCount, s.MissingDiskCount)
	}
}

func TestLostRootIsNeverMadeAnew(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet(hostpathSet))
	h.settle()
	marker := h.roots["/srv/berth"]
	delete(h.roots, "/srv/berth") // not mounted
	for range 3 {
		h.start()
		h.settle()
		h.want(v1alpha1.PoolFailed, v1alpha1.ReasonRootUnavailable)
	}
	if h.inits != 1 {
		t.Fatalf("made %d times", h.inits)
	}
	h.roots["/srv/berth"] = marker
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
}

// A root says whether it keeps volumes to their sizes, and a class that needs it finds no room
// where it does not.
func TestRootWithoutQuotas(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet(hostpathSet))
	h.settle()
	if got := h.pool().Status.Quota; got != v1alpha1.QuotaEnforced {
		t.Fatalf("quota %q", got)
	}
	volumes := &VolumeReconciler{Carver: &Carver{Backends: h.backends}}
	h.backends.SetSynced()
	class := map[string]string{"mode": "hostpath", "pool": "fast", "requireQuota": "true"}
	if room, err := volumes.Room(t.Context(), class); err != nil || room.FreeBytes == 0 {
		t.Fatalf("room %+v, %v", room, err)
	}
	h.limits = fmt.Errorf("%w: mount it with the option prjquota", quota.ErrUnsupported)
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	if got, said := h.pool().Status.Quota, h.says(); got != v1alpha1.QuotaNone || !strings.Contains(said, "promised and not enforced") || !strings.Contains(said, "prjquota") {
		t.Fatalf("quota %q, it says %q", got, said)
	}
	if _, err := volumes.Room(t.Context(), class); !errors.Is(err, capacity.ErrNoPlace) {
		t.Fatalf("room for what must be limited: %v", err)
	}
	if wait := h.lookAgain(0); wait != 0 && wait <= poolRetry {
		t.Errorf("what takes an unmount is looked at again in %s", wait)
	}
	for _, passes := range []error{quota.ErrOff, quota.ErrUncounted} {
		h.limits = passes
		if wait := h.lookAgain(0); wait != poolRetry || h.pool().Status.Quota != v1alpha1.QuotaNone {
			t.Errorf("%v: quota %q, looked at again in %s", passes, h.pool().Status.Quota, wait)
		}
		if _, err := volumes.Room(t.Context(), class); !errors.Is(err, capacity.ErrNoPlace) {
			t.Errorf("%v: room for what must be limited: %v", passes, err)
		}
	}
	class["requireQuota"] = "false"
	room, err := volumes.Room(t.Context(), class)
	if err != nil || room.FreeBytes == 0 {
		t.Fatalf("room for what need not be: %+v, %v", room, err)
	}
	class["pool"] = "elsewhere,fast"
	if both, err := volumes.Room(t.Context(), class); err != nil || both != room {
		t.Fatalf("room in the one of two pools that is here: %+v, %v, want %+v", both, err, room)
	}
	class["pool"] = "elsewhere,nowhere"
	if _, err := volumes.Room(t.Context(), class); !errors.Is(err, capacity.ErrNoPlace) {
		t.Fatalf("room in pools that are not here: %v", err)
	}
}

// A root says whether its volumes can be copied; that they cannot, or that it is not known,
// keeps nobody from making volumes.
func TestRootThatCopies(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t)
	h.apply(poolSet(hostpathSet))
	h.settle()
	if got := h.pool().Status.Copies; got != v1alpha1.CopiesReflink {
		t.Fatalf("copies %q", got)
	}
	h.instant = true
	h.settle()
	if got := h.pool().Status.Copies; got != v1alpha1.CopiesSubvolume {
		t.Fatalf("copies %q", got)
	}
	h.noCopies = fmt.Errorf("%w: the filesystem has no reflinks", hostpath.ErrNoCopies)
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	if got, said := h.pool().Status.Copies, h.says(); got != v1alpha1.CopiesNone || !strings.Contains(said, "no reflinks") {
		t.Fatalf("copies %q, it says %q", got, said)
	}
	h.noCopies = errors.New("no space left on device")
	h.settle()
	h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonPoolReady)
	if said := h.says(); !strings.Contains(said, "no space left") {
		t.Fatalf("it says %q", said)
	}
}

func TestPoolWithoutItsPoolSetServesAndTakesNothingNew(t *testing.T) {
	t.Parallel()
	for name, unwant := range map[string]func(*poolHost){
		"deleted": (*poolHost).deleteSet,
		"selects other nodes": func(h *poolHost) {
			s := &v1alpha1.PoolSet{}
			if err := h.api.Get(h.t.Context(), types.NamespacedName{Name: "fast"}, s); err != nil {
				h.t.Fatal(err)
			}
			s.Spec.NodeSelector = map[string]string{"disk": "hdd"}
			if err := h.api.Update(h.t.Context(), s); err != nil {
				h.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPoolHost(t, "a")
			h.apply(poolSet())
			h.settle()
			unwant(h)
			h.disks["b"] = &fakeDisk{}
			h.start()
			h.settle()
			h.want(v1alpha1.PoolHealthy, v1alpha1.ReasonNoPoolSet)
			if _, err := h.backends.ForNew(volume.ModeLVM, "fast"); err == nil {
				t.Error("takes new volumes")
			}
			if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err != nil {
				t.Errorf("does not serve its volumes: %v", err)
			}
			if len(h.groups) != 1 || h.disks["b"].owner != "" {
				t.Errorf("groups %v, disks %+v", h.groups, h.disks)
			}
		})
	}
}

// New hardware under the old name knows nothing of the pool, which is not made its own.
func TestPoolOfAMachineThatWasReplaced(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.apply(poolSet())
	h.settle()
	if h.pool().Status.MachineID != h.machineID {
		t.Fatalf("the pool is of machine %q", h.pool().Status.MachineID)
	}
	h.machineID = "ffffffffffffffffffffffffffffffff"
	if err := os.RemoveAll(h.stateDir); err != nil {
		t.Fatal(err)
	}
	h.disks = map[string]*fakeDisk{"b": {}}
	h.groups = nil
	h.start()
	h.settle()
	h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
	if c := meta.FindStatusCondition(h.pool().Status.Conditions, v1alpha1.PoolReady); !strings.Contains(c.Message, "forget-node NODE --machine=") {
		t.Errorf("it does not say the way out: %s", c.Message)
	}
	if h.disks["b"].owner != "" {
		t.Error("a disk was claimed")
	}
}

func TestPoolOfAnotherMachineOrADamagedRecord(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*poolHost){
		"machine": func(h *poolHost) { h.machineID = "ffffffffffffffffffffffffffffffff" },
		"record": func(h *poolHost) {
			if err := os.WriteFile(filepath.Join(h.stateDir, "fast.json"), []byte(`{"schemaVersion":1}`), 0o600); err != nil {
				h.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newPoolHost(t, "a")
			h.apply(poolSet())
			h.settle()
			spoil(h)
			h.disks["b"] = &fakeDisk{}
			h.start()
			h.settle()
			h.want(v1alpha1.PoolFailed, v1alpha1.ReasonPoolError)
			if _, err := h.backends.ForNew(volume.ModeLVM, "fast"); err == nil {
				t.Error("usable")
			}
			if h.disks["b"].owner != "" {
				t.Error("a disk was claimed")
			}
			h.deletePool()
			h.settle()
			if h.pool() == nil || len(h.groups) != 1 {
				t.Error("removed")
			}
		})
	}
}

func TestRestoredPoolsServeBeforeTheAPIServerAnswers(t *testing.T) {
	t.Parallel()
	h := newPoolHost(t, "a")
	h.apply(poolSet())
	h.settle()
	h.start()
	if _, err := h.backends.ForExisting(volume.ModeLVM, "fast"); err != nil {
		t.Errorf("existing volumes: %v", err)
	}
	if h.backends.Synced() {
		t.Error("synced before the PoolSets were looked at")
	}
	if err := h.reconcile(); err != nil || !h.backends.Synced() {
		t.Errorf("not synced after all were looked at: %v", err)
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"": 0, "5%": 50, "2.5%": 25, "0%": 0, "99.99%": 1000, "10Gi": 1000, "300": 300} {
		var r reserve
		if err := r.set(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got := r.bytes(1000); got != want {
			t.Errorf("%q of 1000 is %d, want %d", text, got, want)
		}
	}
	for _, text := range []string{"x", "-1", "101%", "%", "NaN%"} {
		if _, err := parseReserve(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
