// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/nodeagent"
	"github.com/berth-dev/berth/pkg/mount"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// By its own rights, and where the cluster has no snapshots, an agent finds what a left-over
// belongs to before it purges it.
func TestAgentLooksForOwners(t *testing.T) {
	t.Parallel()
	const node, uid = "node-purge", "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a14"
	memory := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), TotalBytes: 1 << 20})
	if _, err := memory.Create(t.Context(), volume.Spec{ID: uid, Name: "pvc-purge", SizeBytes: 1 << 20, Access: volume.AccessBlock}); err != nil {
		t.Fatal(err)
	}
	exam, err := memory.Examine(t.Context(), uid)
	if err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	place := agent.PurgePlace{PoolSet: "fast", Mode: volume.ModeLVM, Backend: memory, Again: func() {}}
	// With what the agent's own client knows: a cluster without snapshots answers otherwise than a client that never heard of them.
	live, err := client.New(agentConfig(t, node), client.Options{Scheme: server.scheme, Mapper: nodeagent.NewMapper()})
	if err != nil {
		t.Fatal(err)
	}
	look := func(want v1alpha1.PurgeState, says string) {
		t.Helper()
		purger, err := agent.NewPurger(agent.PurgeOptions{
			Live: live, Ledger: book, Directory: t.TempDir(), Filesystems: noFilesystems{}, Log: slog.New(slog.DiscardHandler),
			Carver: &agent.Carver{Journal: book, Backends: agent.NewBackends(nil), Mounts: noFilesystems{}, MachineID: "m", Locks: &agent.Locks{}},
		})
		if err != nil {
			t.Fatal(err)
		}
		all, _ := purger.Tend(t.Context(), place, []v1alpha1.PurgeRequest{{UID: uid, Kind: v1alpha1.LeftOverVolume, Identity: exam.Identity}})
		if len(all) != 1 || all[0].State != want || !strings.Contains(all[0].Message, says) {
			t.Fatalf("it is %+v, want %s with %q", all, want, says)
		}
	}
	look(v1alpha1.PurgeQuarantined, "")
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "purge-by-hand"},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: "pvc-purge"}},
		},
	}
	if err := server.admin.Create(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	look(v1alpha1.PurgeRefused, "PersistentVolume purge-by-hand")
	pv.Finalizers = nil // nobody here takes that of the protection away
	if err := server.admin.Update(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	if err := server.admin.Delete(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	look(v1alpha1.PurgeQuarantined, "")
	lv := localVolume("pvc-purge", "node-other")
	if err := server.admin.Create(t.Context(), lv); err != nil {
		t.Fatal(err)
	}
	look(v1alpha1.PurgeRefused, "LocalVolume pvc-purge")
}

// By its own rights an agent finds what a left-over belongs to before it gives it to a LocalVolume,
// and does not take that for the owner.
func TestAgentAdoptsALeftOver(t *testing.T) {
	t.Parallel()
	const node, uid = "node-adopt", "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a15"
	memory := volumetest.NewMemory(volumetest.MemoryOptions{Dir: t.TempDir(), TotalBytes: 1 << 20})
	rec, err := memory.Create(t.Context(), volume.Spec{ID: uid, Name: "pvc-adopt", SizeBytes: 1 << 20, Access: volume.AccessBlock})
	if err != nil {
		t.Fatal(err)
	}
	exam, err := memory.Examine(t.Context(), uid)
	if err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	live, err := client.New(agentConfig(t, node), client.Options{Scheme: server.scheme, Mapper: nodeagent.NewMapper()})
	if err != nil {
		t.Fatal(err)
	}
	backends := agent.NewBackends(nil)
	backends.Set(agent.PoolBackend{Name: "fast", Mode: volume.ModeLVM, Backend: memory})
	carver := &agent.Carver{Journal: book, Backends: backends, Mounts: noFilesystems{}, MachineID: "m", Locks: &agent.Locks{}}
	carver.LeftOvers, err = agent.NewPurger(agent.PurgeOptions{
		Live: live, Ledger: book, Directory: t.TempDir(), Filesystems: noFilesystems{}, Log: slog.New(slog.DiscardHandler), Carver: carver,
	})
	if err != nil {
		t.Fatal(err)
	}
	asking := func(name string) agent.Wish {
		t.Helper()
		lv := localVolume(name, node)
		lv.Spec.VolumeMode, lv.Spec.FSType = v1alpha1.VolumeBlock, ""
		lv.Spec.Adopt = &v1alpha1.Adoption{LeftOver: &v1alpha1.AdoptedLeftOver{UID: uid, Identity: exam.Identity}}
		if err := server.admin.Create(t.Context(), lv); err != nil {
			t.Fatal(err)
		}
		return agent.Wish{
			UID: string(lv.UID), Name: name, Mode: volume.ModeLVM, Pool: "fast", Access: volume.AccessBlock, Wipe: volume.WipeZero, SizeBytes: 1 << 20,
			Adopt: &volume.Adoption{LeftOver: &volume.LeftOver{ID: uid, Identity: exam.Identity}},
		}
	}
	wish, other := asking("lv-adopt"), asking("lv-adopt-too")
	if _, err := carver.Make(t.Context(), wish); !errors.Is(err, volume.ErrNotAdoptable) || !strings.Contains(err.Error(), "LocalVolume lv-adopt-too, which asks to adopt it") {
		t.Fatalf("two ask for it: %v", err)
	}
	lv := &v1alpha1.LocalVolume{}
	if err := server.admin.Get(t.Context(), client.ObjectKey{Name: other.Name}, lv); err != nil {
		t.Fatal(err)
	}
	lv.Annotations = map[string]string{"berth.dev/allow-delete": "true"}
	if err := errors.Join(server.admin.Update(t.Context(), lv), server.admin.Delete(t.Context(), lv)); err != nil {
		t.Fatal(err)
	}
	e, err := carver.Make(t.Context(), wish)
	if err != nil || e.Record.LVM.LVUUID != rec.LVM.LVUUID || e.Record.LVM.LVName != wish.UID {
		t.Fatalf("it is %+v, %v", e, err)
	}
}

type noFilesystems struct{}

func (noFilesystems) MountsOf(context.Context, string) ([]string, error) { return nil, nil }

func (noFilesystems) Inspect(context.Context, string) (mount.Superblock, error) {
	return mount.Superblock{}, mount.ErrNoFilesystem
}
