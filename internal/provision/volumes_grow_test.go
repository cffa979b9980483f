// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
	"github.com/berth-dev/berth/pkg/volume"
)

func TestGrowAnswers(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	var failure *provision.Failure
	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 100*gib); !errors.As(err, &failure) || !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("too large: %#v", err)
	}
	// The answer stands when it is asked again, and a smaller wish gets its own.
	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 100*gib); !errors.Is(err, volume.ErrNoSpace) {
		t.Errorf("too large again: %v", err)
	}
	if lv, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 2*gib); err != nil || lv.Status.Capacity.Value() != 2*gib {
		t.Errorf("smaller: %v, %v", lv, err)
	}
	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "nothing", gib); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	agent.Pause()
	var pending *provision.Pending
	if _, err := c.Volumes.Grow(within(t, 100*time.Millisecond), "pvc-1", 3*gib); !errors.As(err, &pending) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %#v", err)
	}
}

// A claim whose growth was refused asks for less: down to what the volume has, at which the node has
// nothing more to try.
func TestGrowTakesBackWhatWasRefused(t *testing.T) {
	t.Parallel()
	pool := &berth.Pool{ObjectMeta: metav1.ObjectMeta{Name: "fast-node1"}, Spec: berth.PoolSpec{NodeName: node, PoolSetName: "fast", Kind: berth.PoolLVM}}
	c := provisiontest.New(t, nodeObject(node), pool)
	c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	publish := func(free int64) {
		t.Helper()
		pool.Status.Free = resource.NewQuantity(free, resource.BinarySI)
		if err := c.Backdoor.Update(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		ask, free, capacity, spec int64
		want                      error
	}{
		{100, 200, 1, 100, volume.ErrNoSpace}, // the pool has published more than it has
		{50, 1, 1, 50, volume.ErrNoSpace},     // less, and still too much: also that is taken back
		{1, 1, 1, 1, nil},
		{50, 200, 1, 50, volume.ErrNoSpace},
		{3, 9, 3, 3, nil},
	} {
		publish(step.free * gib)
		if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", step.ask*gib); !errors.Is(err, step.want) {
			t.Fatalf("%+v: %v", step, err)
		}
		lv := &berth.LocalVolume{}
		if err := c.Backdoor.Get(t.Context(), types.NamespacedName{Name: "pvc-1"}, lv); err != nil {
			t.Fatal(err)
		}
		if lv.Spec.SizeBytes != step.spec*gib || lv.Status.Capacity.Value() != step.capacity*gib {
			t.Errorf("%+v: it is asked for with %d bytes and has %s", step, lv.Spec.SizeBytes, lv.Status.Capacity)
		}
		eventually(t, "it is seen", func() bool { return c.Tracker.Get("pvc-1").Spec.SizeBytes == lv.Spec.SizeBytes })
	}
}

// What the pool has not published room for is not asked of the node, which would go on trying.
func TestGrowLooksAtThePoolFirst(t *testing.T) {
	t.Parallel()
	pool := &berth.Pool{ObjectMeta: metav1.ObjectMeta{Name: "fast-node1"}, Spec: berth.PoolSpec{NodeName: node, PoolSetName: "fast", Kind: berth.PoolLVM}}
	pool.Status.Free = resource.NewQuantity(5*gib, resource.BinarySI)
	c := provisiontest.New(t, nodeObject(node), pool)
	c.NewAgent(t, node, 10*gib)
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), request("pvc-1", gib)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 7*gib); !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), "fast-node1") {
		t.Errorf("got %v", err)
	}
	if got := c.Tracker.Get("pvc-1").Spec.SizeBytes; got != gib {
		t.Errorf("spec.sizeBytes became %d", got)
	}
	if _, err := c.Volumes.Grow(within(t, 10*time.Second), "pvc-1", 6*gib); err != nil {
		t.Errorf("what fits: %v", err)
	}
}
