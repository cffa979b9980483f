// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/pkg/lvm"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// newspaper keeps Events as "Type Reason of what: note".
type newspaper struct {
	mu    sync.Mutex
	lines []string
}

// Eventf implements Announcer.
func (n *newspaper) Eventf(regarding, _ runtime.Object, eventType, reason, _, note string, args ...any) {
	what := fmt.Sprintf("%T", regarding)
	if ref, ok := regarding.(*corev1.ObjectReference); ok {
		what = ref.Kind + " " + ref.Namespace + "/" + ref.Name
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf("%s %s of %s: %s", eventType, reason, what, fmt.Sprintf(note, args...)))
}

// expect takes the lines that came since the last call. Each must begin as wanted.
func (n *newspaper) expect(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	got := n.lines
	n.lines = nil
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("announced %q, not %q", got, want)
	}
}

func TestPoolsAreAnnounced(t *testing.T) {
	t.Parallel()
	const pool = " of *v1alpha1.Pool: "
	h := newPoolHost(t, "a")
	h.apply(poolSet(mirrorSet))
	h.settle()
	h.news.expect(t, "Warning NoDisks"+pool)
	h.disks["b"] = &fakeDisk{}
	h.settle()
	h.news.expect(t, "Normal DiskJoined"+pool+"joined the pool: a, b", "Normal PoolReady"+pool)
	h.settle()
	h.start()
	h.settle()
	h.news.expect(t) // nothing new, and a new process does not say it again
	h.lose("b")
	h.raid = lvm.RaidState{Volumes: 1, DegradedVolumes: 1, RebuiltPercent: 100}
	h.settle()
	h.news.expect(t, "Warning VGPartial"+pool+"1 of 2 disks")
	h.disks["c"] = &fakeDisk{}
	h.wait()
	h.raid.RebuildingVolumes, h.raid.RebuiltPercent = 1, 40
	h.settle()
	h.news.expect(t, "Normal DiskJoined"+pool+"joined the pool: c", "Normal DiskLeft"+pool+"left the pool: b", "Warning NotRedundant"+pool)
	h.raid.RebuiltPercent = 70
	h.settle()
	h.news.expect(t) // progress is in the status
	h.raid = lvm.RaidState{Volumes: 1, RebuiltPercent: 100}
	h.settle()
	h.news.expect(t, "Normal PoolReady"+pool)
}

func TestVolumesAreAnnounced(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume(func(lv *v1alpha1.LocalVolume) {
		lv.Spec.ClaimRef = &v1alpha1.ClaimReference{Namespace: "shop", Name: "db", UID: "1"}
	}))
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Reason: "no disks yet"})
	h.settle()
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory})
	h.settle()
	h.wantReady()
	h.news.expect(t) // the provisioner tells of creations

	empty := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), TotalBytes: 64 * mib})
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: empty})
	h.agent.Doubt(lvName)
	h.settle()
	h.wantCondition(metav1.ConditionFalse, v1alpha1.ReasonMissing)
	h.news.expect(t, "Warning Missing of PersistentVolumeClaim shop/db: volume "+lvName+" on node n1: verify volume")
	h.agent.Doubt(lvName)
	h.settle()
	h.news.expect(t)
	h.backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: h.memory})
	h.agent.Doubt(lvName)
	h.settle()
	h.wantReady()
	h.news.expect(t, "Normal Carved of PersistentVolumeClaim shop/db")
}
