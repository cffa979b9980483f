// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"log/slog"
	"testing"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/internal/metrics/metricstest"
)

// The metrics of the library are those that the alerts are written for.
func TestMetricsOfTheLibrary(t *testing.T) {
	t.Parallel()
	clients, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"}) // nothing asks it
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(clients, 0)
	recorder := metricstest.NewRecorder()
	if _, err := NewLibrary(t.Context(), LibraryOptions{
		Client: clients, Claims: factory.Core().V1().PersistentVolumeClaims().Informer(),
		PersistentVolumes: factory.Core().V1().PersistentVolumes().Informer(), Classes: factory.Storage().V1().StorageClasses().Informer(),
		Provisioner: &Provisioner{}, Tracker: NewTracker(), Workers: 1, Timeout: time.Second,
		Registerer: recorder, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	recorder.Check(t, "controller_persistentvolumeclaim_provision_total", "controller_persistentvolumeclaim_provision_failed_total",
		"controller_persistentvolumeclaim_provision_duration_seconds", "controller_persistentvolume_delete_total",
		"controller_persistentvolume_delete_failed_total", "controller_persistentvolume_delete_duration_seconds")
}
