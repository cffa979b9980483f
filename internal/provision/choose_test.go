// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
	"github.com/berth-dev/berth/pkg/volume"
)

func poolOf(set, node string, free int64, change ...func(*berth.Pool)) *berth.Pool {
	pool := &berth.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: set + "-" + node},
		Spec:       berth.PoolSpec{NodeName: node, PoolSetName: set, Kind: berth.PoolHostpath},
		Status: berth.PoolStatus{
			Free: resource.NewQuantity(free, resource.BinarySI), Quota: berth.QuotaEnforced,
			Conditions: []metav1.Condition{{Type: berth.PoolReady, Status: metav1.ConditionTrue, Reason: berth.ReasonPoolReady, LastTransitionTime: metav1.Now()}},
		},
	}
	for _, c := range change {
		c(pool)
	}
	return pool
}

func inPools(name string, sizeBytes int64, pools ...string) provision.Request {
	r := request(name, sizeBytes)
	r.Spec.Mode, r.Spec.Pool, r.Spec.FSType, r.Pools = berth.ModeHostpath, "", "", pools
	r.Labels = provision.Labels(r.Spec)
	return r
}

// A volume is made in the pool with the most room on its node.
func TestVolumesChooseAPool(t *testing.T) {
	t.Parallel()
	readOnly := func(p *berth.Pool) { p.Status.ReadOnly = true }
	notReady := func(p *berth.Pool) { p.Status.Conditions[0].Status = metav1.ConditionFalse }
	noQuota := func(p *berth.Pool) { p.Status.Quota = berth.QuotaNone }
	lvm := func(p *berth.Pool) { p.Spec.Kind = berth.PoolLVM }
	for name, test := range map[string]struct {
		pools        []*berth.Pool
		requireQuota bool
		want         string
	}{
		"the most room":             {pools: []*berth.Pool{poolOf("a", node, 3*gib), poolOf("b", node, 5*gib), poolOf("c", node, 4*gib)}, want: "b"},
		"the first of equal ones":   {pools: []*berth.Pool{poolOf("c", node, gib), poolOf("b", node, gib), poolOf("a", node, gib)}, want: "a"},
		"this node's":               {pools: []*berth.Pool{poolOf("a", node, 2*gib), poolOf("b", "node2", 5*gib)}, want: "a"},
		"not one that is read-only": {pools: []*berth.Pool{poolOf("a", node, 2*gib), poolOf("b", node, 5*gib, readOnly)}, want: "a"},
		"not one that is not ready": {pools: []*berth.Pool{poolOf("a", node, 5*gib, notReady), poolOf("b", node, 2*gib)}, want: "b"},
		"not one of another class":  {pools: []*berth.Pool{poolOf("a", node, 2*gib), poolOf("z", node, 5*gib)}, want: "a"},
		"not one of another kind":   {pools: []*berth.Pool{poolOf("a", node, 5*gib, lvm), poolOf("b", node, 2*gib)}, want: "b"},
		"one with quotas":           {pools: []*berth.Pool{poolOf("a", node, 5*gib, noQuota), poolOf("b", node, 2*gib)}, requireQuota: true, want: "b"},
		"the first where none is":   {want: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t, nodeObject(node))
			c.NewAgent(t, node, 10*gib)
			for _, pool := range test.pools {
				if err := c.Backdoor.Create(t.Context(), pool); err != nil {
					t.Fatal(err)
				}
			}
			r := inPools("pvc-1", gib, "a", "b", "c")
			r.Spec.RequireQuota = test.requireQuota
			lv, err := c.Volumes.Ensure(within(t, 10*time.Second), r)
			if err != nil {
				t.Fatal(err)
			}
			if lv.Spec.Pool != test.want || lv.Labels["berth.dev/pool"] != test.want {
				t.Errorf("it is in pool %q, labels %v, want %q", lv.Spec.Pool, lv.Labels, test.want)
			}
		})
	}
}

// What a pool has free is more than the largest volume that it can make, where that lies on several
// disks. When it refuses one, the others are asked: the scheduler has sent the claim here for them.
func TestVolumesGoToThePoolThatTakesThem(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		takes   string
		refusal string
	}{
		"the next":             {takes: "b"},
		"the last":             {takes: "c"},
		"none":                 {refusal: "no room in a"},
		"not one that is away": {takes: "d", refusal: "no room in a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := provisiontest.New(t, nodeObject(node))
			agent := c.NewAgent(t, node, 10*gib)
			for i, set := range []string{"a", "b", "c"} {
				if err := c.Backdoor.Create(t.Context(), poolOf(set, node, int64(9-i)*gib)); err != nil {
					t.Fatal(err)
				}
			}
			agent.Answer(func(lv *berth.LocalVolume) (string, string) {
				if lv.Spec.Pool == test.takes {
					return "", ""
				}
				return berth.ReasonNoSpace, "no room in " + lv.Spec.Pool
			})
			lv, err := c.Volumes.Ensure(within(t, 10*time.Second), inPools("pvc-1", gib, "a", "b", "c", "d"))
			switch {
			case test.refusal != "":
				if !errors.Is(err, volume.ErrNoSpace) || !strings.Contains(err.Error(), test.refusal) || agent.Carved() != 0 {
					t.Errorf("%v, %v, %d carved; want %q", lv, err, agent.Carved(), test.refusal)
				}
			case err != nil || lv.Spec.Pool != test.takes || agent.Carved() != 1:
				t.Errorf("%v, %v, %d carved; want it in %s", lv, err, agent.Carved(), test.takes)
			}
		})
	}
}

// Volumes that are asked for before the agent has answered for the ones before go
// elsewhere, though the pools say that they are as free as ever.
func TestVolumesSpreadABurst(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 100*gib)
	for _, pool := range []*berth.Pool{poolOf("a", node, 10*gib), poolOf("b", node, 10*gib)} {
		if err := c.Backdoor.Create(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
	agent.Pause()
	made := make(chan error, 6)
	for i := range 6 {
		name := fmt.Sprintf("pvc-%d", i)
		go func() {
			_, err := c.Volumes.Ensure(within(t, 10*time.Second), inPools(name, gib, "a", "b"))
			made <- err
		}()
		eventually(t, name+" is asked for", func() bool { return c.Tracker.Get(name) != nil })
	}
	agent.Resume()
	in := map[string]int{}
	for i := range 6 {
		if err := <-made; err != nil {
			t.Fatal(err)
		}
		in[c.Tracker.Get(fmt.Sprintf("pvc-%d", i)).Spec.Pool]++
	}
	if in["a"] != 3 || in["b"] != 3 {
		t.Errorf("volumes by pool: %v, want three in each", in)
	}
}

// A volume stays where it was made, whichever pool has more room by then.
func TestVolumesKeepTheirPool(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	c.NewAgent(t, node, 10*gib)
	if err := c.Backdoor.Create(t.Context(), poolOf("a", node, 2*gib)); err != nil {
		t.Fatal(err)
	}
	first, err := c.Volumes.Ensure(within(t, 10*time.Second), inPools("pvc-1", gib, "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Backdoor.Create(t.Context(), poolOf("b", node, 9*gib)); err != nil {
		t.Fatal(err)
	}
	again, err := c.Volumes.Ensure(within(t, 10*time.Second), inPools("pvc-1", gib, "a", "b"))
	if err != nil || again.UID != first.UID || again.Spec.Pool != "a" {
		t.Errorf("asked again: %v, %v", again, err)
	}
	if _, err := c.Volumes.Ensure(within(t, 10*time.Second), inPools("pvc-1", gib, "b", "c")); err == nil {
		t.Error("a volume in another pool than those allowed was returned")
	}
}
