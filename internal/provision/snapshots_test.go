// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"errors"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

var errUnreadable = errors.New("the API server does not answer")

// What cannot be followed is told at once, with the cause, and not after the wait: the node
// may go on.
func TestSnapshotsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	reads := 0
	api := interceptor.NewClient(fake.NewClientBuilder().WithScheme(provisiontest.Scheme()).Build(), interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			reads++
			return errUnreadable
		},
	})
	snapshots := &provision.Snapshots{Live: api}
	lv := &berth.LocalVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", UID: "0d"},
		Spec:       berth.LocalVolumeSpec{Mode: berth.ModeLVM, Pool: "fast", NodeName: "node1"},
	}
	began := time.Now()
	_, err := snapshots.Ensure(t.Context(), "snapshot-1", lv)
	var pending *provision.Pending
	if !errors.As(err, &pending) || !errors.Is(err, errUnreadable) || pending.Volume != "pvc-1" {
		t.Errorf("Ensure = %v, want that it goes on, and the cause", err)
	}
	_, err = snapshots.EnsureGroup(t.Context(), "group-1", []*berth.LocalVolume{lv})
	if !errors.As(err, &pending) || !errors.Is(err, errUnreadable) {
		t.Errorf("EnsureGroup = %v, want that it goes on, and the cause", err)
	}
	if took := time.Since(began); reads != 2 || took > 10*time.Second {
		t.Errorf("it was read %d times in %s", reads, took)
	}
}
