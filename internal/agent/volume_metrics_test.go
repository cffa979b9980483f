// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/ledger"
	"github.com/berth-dev/berth/internal/metrics/metricstest"
	"github.com/berth-dev/berth/pkg/volume"
	"github.com/berth-dev/berth/pkg/volume/volumetest"
)

// Volumes that are well have no series; what is wrong with the others is told with their
// claim.
func TestVolumeCollector(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	volume := func(name string, conditions ...metav1.Condition) *v1alpha1.LocalVolume {
		return &v1alpha1.LocalVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.LocalVolumeSpec{NodeName: "n1", ClaimRef: &v1alpha1.ClaimReference{Namespace: "shop", Name: "claim-of-" + name}},
			Status:     v1alpha1.LocalVolumeStatus{Conditions: conditions},
		}
	}
	ready := metav1.Condition{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionTrue, Reason: "Carved"}
	missing := metav1.Condition{Type: v1alpha1.LocalVolumeReady, Status: metav1.ConditionFalse, Reason: "Missing"}
	degraded := metav1.Condition{Type: v1alpha1.LocalVolumeHealthy, Status: metav1.ConditionFalse, Reason: "NotRedundant"}
	deleted := volume("d", ready)
	deleted.Spec.ClaimRef = nil
	deleted.Finalizers = []string{"berth.dev/test"}
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Unix(1700000000, 0)}
	synced := false
	c := &VolumeCollector{
		Cache: fake.NewClientBuilder().WithScheme(scheme).WithObjects(
			volume("a", ready), volume("b", missing), volume("c", ready, degraded), deleted, volume("new"),
		).Build(),
		CacheSynced: func() bool { return synced },
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
		t.Errorf("%d series before anything is known, %v", n, err)
	}
	synced = true
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP berth_volume_deletion_timestamp_seconds When the deletion of a LocalVolume that is still there was asked for, in seconds since 1970.
# TYPE berth_volume_deletion_timestamp_seconds gauge
berth_volume_deletion_timestamp_seconds{claim="",claim_namespace="",localvolume="d"} 1.7e+09
# HELP berth_volume_unhealthy 1 for each LocalVolume of this node that is not ready, or not healthy, by the condition that says so and its reason.
# TYPE berth_volume_unhealthy gauge
berth_volume_unhealthy{claim="claim-of-b",claim_namespace="shop",condition="Ready",localvolume="b",reason="Missing"} 1
berth_volume_unhealthy{claim="claim-of-c",claim_namespace="shop",condition="Healthy",localvolume="c",reason="NotRedundant"} 1
# HELP berth_volumes LocalVolumes of this node.
# TYPE berth_volumes gauge
berth_volumes 5
`)); err != nil {
		t.Error(err)
	}
	metricstest.CheckSeries(t, registry, "berth_volumes", "berth_volume_unhealthy", "berth_volume_deletion_timestamp_seconds")
}

// A whole disk has no pool that could tell that its volume has no object.
func TestVolumeCollectorCountsDisksThatAreLeftOver(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(*ledger.Entry){
		func(*ledger.Entry) {}, // it has its object
		func(*ledger.Entry) {},
		func(e *ledger.Entry) { e.State = ledger.Deleting },
		func(e *ledger.Entry) { e.Mode, e.Pool = volume.ModeLVM, "fast" },
	} {
		e := ledger.Entry{
			UID: volumetest.ID(i), Name: fmt.Sprintf("pvc-%d", i), MachineID: machine, State: ledger.Carving, Mode: volume.ModeDevice, Access: volume.AccessBlock, Wipe: volume.WipeZero,
		}
		change(&e)
		if err := book.Put(e); err != nil {
			t.Fatal(err)
		}
	}
	lv := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-0", UID: types.UID(volumetest.ID(0))}}
	c := &VolumeCollector{Cache: fake.NewClientBuilder().WithScheme(scheme).WithObjects(lv).Build(), CacheSynced: func() bool { return true }, Ledger: book}
	if err := testutil.CollectAndCompare(c, strings.NewReader(`
# HELP berth_left_over_disks Whole disks of this node that are a volume by its ledger, of which the LocalVolume is gone.
# TYPE berth_left_over_disks gauge
berth_left_over_disks 1
`), "berth_left_over_disks"); err != nil {
		t.Error(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	metricstest.CheckSeries(t, registry, "berth_volumes", "berth_left_over_disks")
}
