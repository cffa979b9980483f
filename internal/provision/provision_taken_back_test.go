// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

// What cannot be made any more for a claim that was deleted meanwhile is taken back: the library
// does not ask again.
func TestProvisionTakesBackWhatNobodyWaitsFor(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		claim func(*corev1.PersistentVolumeClaim) // nil: it is gone
		pv    bool
		left  int
		state controller.ProvisioningState
	}{
		"the claim is gone":         {nil, false, 0, controller.ProvisioningFinished},
		"it was made anew":          {func(c *corev1.PersistentVolumeClaim) { c.UID = "a-new-one" }, false, 0, controller.ProvisioningFinished},
		"it has a PersistentVolume": {nil, true, 1, controller.ProvisioningFinished},
		"the claim waits":           {func(*corev1.PersistentVolumeClaim) {}, false, 1, controller.ProvisioningInBackground},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects, wanted := []client.Object{nodeObject(node)}, claim("1Gi")
			if test.claim != nil {
				there := wanted.DeepCopy()
				test.claim(there)
				objects = append(objects, there)
			}
			c := provisiontest.New(t, objects...)
			agent := c.NewAgent(t, node, 10*gib)
			agent.Pause()
			p := provisioner(c, nil)
			if _, state, err := p.Provision(within(t, 200*time.Millisecond), options(wanted, class(lvmParams), node)); state != controller.ProvisioningInBackground {
				t.Fatalf("%v, %v", state, err)
			}
			agent.Resume()
			eventually(t, "the node makes it", func() bool { return agent.Carved() == 1 })
			if test.pv {
				if err := c.Backdoor.Create(t.Context(), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1a1"}}); err != nil {
					t.Fatal(err)
				}
			}
			// Its VolumeAttributesClass is gone, too.
			gone := "gone"
			wanted.Spec.VolumeAttributesClassName = &gone
			_, state, err := p.Provision(within(t, 10*time.Second), options(wanted, class(lvmParams), node))
			if state != test.state || err == nil || !strings.Contains(err.Error(), `VolumeAttributesClass "gone"`) {
				t.Errorf("%v, %v", state, err)
			}
			if agent.Carved() != test.left {
				t.Errorf("%d volumes are left, want %d", agent.Carved(), test.left)
			}
		})
	}
}

// The scheduler changed its mind while the outcome was open.
func TestProvisionMovesWhatWasNeverUsed(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	first, second := c.NewAgent(t, node, 10*gib), c.NewAgent(t, "node2", 10*gib)
	first.Pause()
	p := provisioner(c, nil)
	if _, state, _ := p.Provision(within(t, 200*time.Millisecond), options(claim("1Gi"), class(lvmParams), node)); state != controller.ProvisioningInBackground {
		t.Fatal(state)
	}
	first.Resume()
	eventually(t, "the first node makes it", func() bool { return first.Carved() == 1 })
	pv, _, err := p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), "node2"))
	if err != nil {
		t.Fatal(err)
	}
	if got := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; got != "node2" {
		t.Errorf("affinity to %s", got)
	}
	if first.Carved() != 0 || second.Carved() != 1 {
		t.Errorf("node1 holds %d, node2 %d", first.Carved(), second.Carved())
	}

	// Once it was handed out it stays: its PersistentVolume is being saved.
	pv, _, err = p.Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node))
	if err != nil || pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "node2" {
		t.Errorf("handed out, and replaced: %v, %v", pv, err)
	}
	// So it does when another process saved it.
	if err := c.Backdoor.Create(t.Context(), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1a1"}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node)); err == nil || second.Carved() != 1 {
		t.Errorf("a volume with a PersistentVolume was replaced: %v", err)
	}
}

// etcd was restored to a moment between the LocalVolume and its PersistentVolume: since then a pod
// has written to it, and nothing says so. A provisioner that has not made it does not take it back.
func TestProvisionKeepsWhatMayHaveBeenUsed(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node), claim("1Gi"))
	first, second := c.NewAgent(t, node, 10*gib), c.NewAgent(t, "node2", 10*gib)
	if _, _, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node)); err != nil {
		t.Fatal(err)
	}
	restart := func() *provision.Provisioner {
		tracker := provision.NewTracker()
		c.Feed(t, tracker)
		return provision.NewProvisioner(provision.NewVolumes(c.Client, c.Client, tracker), c.Client, knownPVs(nil), slog.New(slog.DiscardHandler))
	}
	p := restart()
	for name, ask := range map[string]struct {
		options controller.ProvisionOptions
		says    string
	}{
		"another node": {
			options(claim("1Gi"), class(lvmParams), "node2"),
			"ask for it as it was made: kubectl -n default annotate pvc data volume.kubernetes.io/selected-node=node1 --overwrite",
		},
		"another class": {
			options(claim("1Gi"), class(map[string]string{"mode": "lvm", "pool": "fast", "csi.storage.k8s.io/fstype": "xfs"}), node),
			"ask for it as it was made: delete the StorageClass of claim default/data",
		},
	} {
		_, state, err := p.Provision(within(t, 10*time.Second), ask.options)
		if err == nil || state != controller.ProvisioningFinished || first.Carved() != 1 || second.Made() != 0 {
			t.Fatalf("%s: %v, %v, node1 holds %d, node2 has made %d", name, state, err, first.Carved(), second.Made())
		}
		for _, part := range []string{ask.says, "kubectl annotate localvolume pvc-c1a1 berth.dev/allow-delete=true"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", name, err, part)
			}
		}
	}
	// The way to its data.
	if _, _, err := restart().Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node)); err != nil || first.Made() != 1 {
		t.Errorf("asked for as it was made: %v, made %d", err, first.Made())
	}
	// The way without them.
	allowDelete(t, c, "pvc-c1a1")
	if _, _, err := restart().Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), "node2")); err != nil || first.Carved() != 0 || second.Carved() != 1 {
		t.Errorf("a person said that nothing is needed: %v, node1 holds %d, node2 %d", err, first.Carved(), second.Carved())
	}
}

// allowDelete is a person's word that nothing on a volume is needed.
func allowDelete(t *testing.T, c *provisiontest.Cluster, name string) {
	t.Helper()
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"berth.dev/allow-delete":"true"}}}`))
	if err := c.Backdoor.Patch(t.Context(), &berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}, patch); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the annotation is seen", func() bool { return c.Tracker.Get(name).Annotations["berth.dev/allow-delete"] == "true" })
}

// The same with a claim that was deleted after the restore, and a class that is gone.
func TestProvisionLeavesToOrphansWhatMayHaveBeenUsed(t *testing.T) {
	t.Parallel()
	c := provisiontest.New(t, nodeObject(node))
	agent := c.NewAgent(t, node, 10*gib)
	if _, _, err := provisioner(c, nil).Provision(within(t, 10*time.Second), options(claim("1Gi"), class(lvmParams), node)); err != nil {
		t.Fatal(err)
	}
	tracker := provision.NewTracker()
	c.Feed(t, tracker)
	p := provision.NewProvisioner(provision.NewVolumes(c.Client, c.Client, tracker), c.Client, knownPVs(nil), slog.New(slog.DiscardHandler))
	agent.Pause()
	grown := claim("1Gi")
	c.Fail(func(verb string, _ runtime.Object, name string) (before, after error) {
		if verb == "GET" && name == "pvc-c1a1" {
			return errors.New("no answer"), nil
		}
		return nil, nil
	})
	if _, state, err := p.Provision(within(t, 10*time.Second), options(grown, class(lvmParams), "node2")); state != controller.ProvisioningInBackground {
		t.Fatalf("%v, %v", state, err)
	}
	c.Fail(nil)
	agent.Resume()
	if _, state, err := p.Provision(within(t, 10*time.Second), options(grown, class(map[string]string{"mode": "gone"}), "node2")); state != controller.ProvisioningFinished || err == nil || agent.Carved() != 1 {
		t.Errorf("%v, %v, %d volumes are left", state, err, agent.Carved())
	}
}
