// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/discovery"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestVolumeProblems(t *testing.T) {
	t.Parallel()
	h := newHost(t, volume.ModeLVM, localVolume())
	h.settle()
	var failing []discovery.FailingDisk
	health := &Health{
		Volumes: h.view(), Failing: func() []discovery.FailingDisk { return failing },
		Under: func(_ context.Context, path string) ([]string, error) {
			if path != h.device() {
				return nil, volume.ErrNotFound
			}
			return []string{"dm-0", "sdb"}, nil
		},
	}
	problems := func() []csi.Problem {
		t.Helper()
		problems, err := health.VolumeProblems(t.Context(), lvName)
		if err != nil {
			t.Fatal(err)
		}
		return problems
	}
	failing = []discovery.FailingDisk{{Name: "bd-other", KernelName: "sdc"}}
	if got := problems(); len(got) != 0 {
		t.Errorf("a whole volume: %+v", got)
	}
	failing = append(failing, discovery.FailingDisk{Name: "bd-under", KernelName: "sdb", Message: "its own check has failed"})
	if got := problems(); len(got) != 1 || got[0].Severity != csi.Degraded || got[0].Reason != "DiskFailing" || !strings.Contains(got[0].Message, "bd-under (/dev/sdb) is failing: its own") {
		t.Errorf("a failing disk under it: %+v", got)
	}
	failing = nil
	b, err := health.Volumes.Backends.ForExisting(volume.ModeLVM, "fast")
	if err != nil {
		t.Fatal(err)
	}
	told := &tellingBackend{Backend: b, problems: []volume.Problem{{Reason: "NotRedundant", Message: "a disk is missing"}, {Inaccessible: true, Reason: "ThinPoolFailed", Message: "gone"}}}
	health.Volumes.Backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: told})
	if got := problems(); len(got) != 2 || got[0] != (csi.Problem{Severity: csi.Degraded, Reason: "NotRedundant", Message: "a disk is missing"}) || got[1].Severity != csi.Inaccessible {
		t.Errorf("told by its backend: %+v", got)
	}
	health.Volumes.Backends.Set(PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: b})
	health.Volumes.MachineID = "ffffffffffffffffffffffffffffffff"
	if got := problems(); len(got) != 1 || got[0].Severity != csi.Inaccessible || got[0].Reason != v1alpha1.ReasonIdentityMismatch {
		t.Errorf("on another machine: %+v", got)
	}
	health.Volumes = h.view()
	if err := h.memory.Vanish(lvUID); err != nil {
		t.Fatal(err)
	}
	if got := problems(); len(got) != 1 || got[0].Severity != csi.Inaccessible || got[0].Reason != v1alpha1.ReasonMissing {
		t.Errorf("its storage is not there: %+v", got)
	}
	if _, err := health.VolumeProblems(t.Context(), "pvc-2"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of a volume that is not here: %v, want ErrNotFound", err)
	}
	health.Volumes.Backends = NewBackends(nil)
	health.Volumes.Backends.SetSynced()
	if got := problems(); len(got) != 1 || got[0].Severity != csi.Inaccessible || got[0].Reason != "PoolUnavailable" {
		t.Errorf("without its pool: %+v", got)
	}
}

type tellingBackend struct {
	volume.Backend
	problems []volume.Problem
}

func (b *tellingBackend) Problems(context.Context, string, volume.Record) ([]volume.Problem, error) {
	return b.problems, nil
}

func TestStorageProblems(t *testing.T) {
	t.Parallel()
	pool := func(name, node string, state v1alpha1.PoolState, message string) *v1alpha1.Pool {
		return &v1alpha1.Pool{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PoolSpec{NodeName: node},
			Status: v1alpha1.PoolStatus{State: state, Conditions: []metav1.Condition{{Type: v1alpha1.PoolReady, Message: message}}},
		}
	}
	h := newHost(t, volume.ModeLVM,
		pool("a", "node1", v1alpha1.PoolHealthy, ""), pool("b", "node1", v1alpha1.PoolDegraded, "misses a disk"),
		pool("c", "node1", v1alpha1.PoolFailed, "the volume group is not there"), pool("d", "node2", v1alpha1.PoolFailed, ""))
	synced := false
	health := &Health{
		Cache: h.api, PoolsSynced: func() bool { return synced }, NodeName: "node1",
		Failing: func() []discovery.FailingDisk {
			return []discovery.FailingDisk{{Name: "bd-free"}, {Name: "bd-held", Held: true}}
		},
	}
	reasons := func() string {
		t.Helper()
		problems, err := health.StorageProblems(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var reasons []string
		for _, p := range problems {
			reasons = append(reasons, p.Reason)
		}
		return strings.Join(reasons, " ")
	}
	if got := reasons(); got != "DiskFailing" {
		t.Errorf("while the API server is away: %s", got)
	}
	synced = true
	if got := reasons(); got != "PoolDegraded PoolFailed DiskFailing" {
		t.Errorf("%s", got)
	}
}
