// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// lostNode is the cluster without node1, which had something of everything.
func lostNode() *cluster {
	c := newCluster()
	delete(c.objects, "Node//node1")
	delete(c.objects, "Pod/berth-system/agent-node1")
	pv := get[*corev1.PersistentVolume](c, "PersistentVolume//pv-data")
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data"}
	pv.Status.Phase = corev1.VolumeBound
	kept := pv.DeepCopy()
	kept.Name, kept.Spec.CSI.VolumeHandle, kept.Status.Phase = "pv-kept", "pv-kept", corev1.VolumeReleased
	kept.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	kept.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "old"}
	gone := kept.DeepCopy()
	gone.Name, gone.Spec.CSI.VolumeHandle = "pv-gone", "pv-gone"
	gone.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *gib(3)}
	gone.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: berth.TopologyKeyNode, Operator: corev1.NodeSelectorOpIn, Values: []string{"node1"}}},
	}}}}
	local := func(name, node string) *berth.LocalVolume {
		return &berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: berth.LocalVolumeSpec{NodeName: node, Mode: berth.ModeLVM, Pool: "fast", SizeBytes: 2 << 30}}
	}
	deleting := local("pv-deleting", "node1")
	now := metav1.Now()
	deleting.DeletionTimestamp = &now
	snapshot := &berth.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "snap"}, Spec: berth.LocalSnapshotSpec{NodeName: "node1", Pool: "fast", VolumeName: "pv-data"},
		Status: berth.LocalSnapshotStatus{RestoreSize: resource.NewQuantity(1<<30, resource.BinarySI)},
	}
	raw := get[*berth.BlockDevice](c, "BlockDevice//bd-1").DeepCopy()
	raw.Name, raw.Spec.ClaimRef = "bd-raw", &berth.BlockDeviceClaimRef{Kind: "LocalVolume", Name: "pv-raw"}
	unwiped := raw.DeepCopy()
	unwiped.Name, unwiped.Status.ClaimState = "bd-unwiped", berth.ClaimStateReleased
	metadata := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "berth-system", Name: name}}
	}
	c.add(
		kept, gone, local("pv-kept", "node1"), local("pv-other", "node2"), deleting, snapshot, raw, unwiped,
		metadata("lvm-metadata.node1.fast.0123456789"), metadata("lvm-metadata.node1.example.fast.0123456789"), metadata("lvm-metadata.node2.fast.0123456789"),
	)
	for _, o := range c.objects {
		switch o.(type) {
		case *berth.LocalVolume, *berth.LocalSnapshot, *berth.Pool, *berth.BlockDevice:
			o.SetFinalizers([]string{berth.AgentFinalizer})
		}
	}
	return c
}

// names are those of all objects of a cluster, as kind/namespace/name.
func (c *cluster) names(t *testing.T, api client.Client) []string {
	t.Helper()
	var names []string
	for name, o := range c.objects {
		there := o.DeepCopyObject().(client.Object)
		err := api.Get(t.Context(), client.ObjectKeyFromObject(o), there)
		if err == nil {
			names = append(names, name)
		} else if !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	return names
}

// forget runs forget-node, with what is typed, and returns what it has removed.
func forget(t *testing.T, c *cluster, api client.Client, typed string, args ...string) (code int, said string, removed []string) {
	t.Helper()
	before := c.names(t, api)
	var out, errs strings.Builder
	code = Run(t.Context(), append([]string{"forget-node"}, args...), Streams{In: strings.NewReader(typed), Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
	after := c.names(t, api)
	for _, name := range before {
		if !slices.Contains(after, name) {
			removed = append(removed, name)
		}
	}
	return code, out.String() + errs.String(), removed
}

func TestForgetNode(t *testing.T) {
	t.Parallel()
	goes := []string{
		"BlockDevice//bd-1", "BlockDevice//bd-2", "LocalSnapshot//snap", "LocalVolume//pv-data", "LocalVolume//pv-deleting", "LocalVolume//pv-kept", "Pool//fast-node1",
	}
	all := slices.Sorted(slices.Values(append([]string{"BlockDevice//bd-raw", "BlockDevice//bd-unwiped", "ConfigMap/berth-system/lvm-metadata.node1.fast.0123456789"}, goes...)))
	for name, tc := range map[string]struct {
		change  func(*cluster)
		args    []string
		typed   string
		code    int
		removed []string
		says    []string
	}{
		"what is lost": {
			args: []string{"node1", "--dry-run"},
			says: []string{
				"Node node1 is deleted from Kubernetes.", "default/data   1Gi    lvm    fast   pv-data   Bound", "default/old    2Gi    lvm    fast   pv-kept   Released   Retain",
				"default/old    3Gi    -", "snap   1Gi    pv-data", "fast-node1   linear   10Gi", "bd-raw       /dev/sdb   10Gi    S1       LocalVolume/pv-raw   kept: so that nobody else gets it",
				"bd-unwiped   /dev/sdb   10Gi    S1       LocalVolume/pv-raw   kept: it is to be wiped", "lvm-metadata.node1.fast.0123456789   kept: ",
				"7 objects are to be removed. Nothing on the disks is touched.",
				"kubectl delete pvc --namespace default data", "kubectl delete pv pv-kept", "kubectl delete pv pv-gone",
			},
		},
		"confirmed":             {args: []string{"node1", "--confirm", "node1"}, removed: goes, says: []string{"Removed localvolume/pv-data."}},
		"typed":                 {args: []string{"node1"}, typed: "node1\n", removed: goes, says: []string{"Type the name of the node"}},
		"its disks too":         {args: []string{"node1", "--confirm=node1", "--disks-destroyed"}, removed: all},
		"another name typed":    {args: []string{"node1"}, typed: "y\n", code: exitUsage, says: []string{"nothing was changed"}},
		"nothing typed":         {args: []string{"node1"}, code: exitUsage, says: []string{"nothing was changed", "--confirm=node1"}},
		"another confirmed":     {args: []string{"node1", "--confirm=node2"}, code: exitUsage, says: []string{`--confirm is "node2"`}},
		"no node":               {code: exitUsage, says: []string{"forget-node NODE"}},
		"json without an order": {args: []string{"node1", "-o", "json"}, code: exitUsage, says: []string{"--dry-run or --confirm=node1"}},
		"a flag of another":     {args: []string{"node1", "-o", "file.tar.gz"}, code: exitUsage, says: []string{"table, wide, json"}},
		"a node of which there is nothing": {
			args: []string{"node7", "--confirm=node7"}, says: []string{"There is nothing of it to forget."},
		},
		"a node that is not ready": {
			change: func(c *cluster) {
				node := readyNode("node1")
				node.Status.Conditions[0].Status = corev1.ConditionUnknown
				agent := agentPod("node1")
				agent.Status.Conditions[0].Status = corev1.ConditionFalse
				c.add(node, agent)
			},
			args: []string{"node1", "--confirm=node1"}, removed: goes, says: []string{"Node node1 is not ready since"},
		},
		"a node that is ready": {
			change: func(c *cluster) { c.add(readyNode("node1")) },
			args:   []string{"node1", "--confirm=node1"}, code: exitTrouble, says: []string{"It is not forgotten:", "Node node1 is ready", "drain the node"},
		},
		"a node whose agent is ready": {
			change: func(c *cluster) { c.add(agentPod("node1")) },
			args:   []string{"node1", "--confirm=node1"}, code: exitTrouble, says: []string{"pod agent-node1, is ready", "delete its Node object"},
		},
		"a node that another machine has become": {
			change: replacedNode,
			args:   []string{"node1", "--confirm=node1"}, code: exitTrouble, says: []string{"Node node1 is ready", "It is the machine new, and 5 of its objects are of the machine old.", "kubectl berth forget-node node1 --machine=old"},
		},
		"the machine that it was": {
			change: replacedNode,
			args:   []string{"node1", "--machine=old", "--confirm=node1"}, removed: []string{"BlockDevice//bd-1", "LocalSnapshot//snap", "LocalVolume//pv-kept", "Pool//fast-node1"},
			says: []string{"Node node1 is the machine new now.", "This is about what was on the machine old.", "bd-raw ", "kept: so that nobody else gets it"},
		},
		"the machine that it is": {
			change: replacedNode,
			args:   []string{"node1", "--machine=new", "--confirm=node1"}, code: exitTrouble, says: []string{"Node node1 is the machine new: what is on it is not forgotten"},
		},
		"a machine, on a node that does not say which it is": {
			change: func(c *cluster) { c.add(readyNode("node1")) },
			args:   []string{"node1", "--machine=old", "--confirm=node1"}, code: exitTrouble, says: []string{"cannot be told"},
		},
		"a node that is ready, looked at": {
			change: func(c *cluster) { c.add(readyNode("node1")) },
			args:   []string{"node1", "--dry-run"}, code: exitTrouble, says: []string{"Node node1 is ready"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := lostNode()
			if tc.change != nil {
				tc.change(c)
			}
			code, said, removed := forget(t, c, c.build(t), tc.typed, tc.args...)
			if code != tc.code || !slices.Equal(removed, tc.removed) {
				t.Errorf("exit code %d, want %d; removed %s, want %s\n%s", code, tc.code, removed, tc.removed, said)
			}
			for _, part := range tc.says {
				if !strings.Contains(said, part) {
					t.Errorf("it does not say %q:\n%s", part, said)
				}
			}
		})
	}
}

// replacedNode has node1 ready as another machine than the one that some of its objects are of.
func replacedNode(c *cluster) {
	node := readyNode("node1")
	node.Status.NodeInfo.MachineID = "new"
	c.add(node, agentPod("node1"))
	c.objects["LocalVolume//pv-data"].(*berth.LocalVolume).Status.MachineID = "new"
	c.objects["LocalVolume//pv-kept"].(*berth.LocalVolume).Status.MachineID = "old"
	c.objects["LocalSnapshot//snap"].(*berth.LocalSnapshot).Status.MachineID = "old"
	c.objects["Pool//fast-node1"].(*berth.Pool).Status.MachineID = "old"
	c.objects["BlockDevice//bd-1"].(*berth.BlockDevice).Status.MachineID = "old"
	c.objects["BlockDevice//bd-2"].(*berth.BlockDevice).Status.MachineID = "new"
	c.objects["BlockDevice//bd-raw"].(*berth.BlockDevice).Status.MachineID = "old"
}

func TestForgetNodeFlagsAreItsOwn(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--dry-run", "--confirm=node1", "--disks-destroyed", "--machine=old"} {
		if code, _, errs := newCluster().run(t, "status", flag); code != exitUsage || !strings.Contains(errs, "forget-node only") {
			t.Errorf("%s: exit code %d, %s", flag, code, errs)
		}
	}
}

func TestForgetNodeJSON(t *testing.T) {
	t.Parallel()
	c := lostNode()
	code, out, errs := c.run(t, "forget-node", "node1", "--dry-run", "-o", "json")
	var l loss
	if err := json.Unmarshal([]byte(out), &l); err != nil || code != exitWell {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if len(l.Volumes) != 4 || len(l.Disks) != 4 || l.Disks[0].Name != "bd-1" || l.Disks[0].Bytes != 10<<30 || len(l.Snapshots) != 1 {
		t.Errorf("it says %+v", l)
	}
}

// An agent that comes back in the middle must never see a volume whose deletion was asked for
// and that waits for its finalizer: it would wipe it.
func TestForgetNodeNeverOrdersAWipe(t *testing.T) {
	t.Parallel()
	c := lostNode()
	var deleted []string
	api := interceptor.NewClient(c.build(t), interceptor.Funcs{
		Delete: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			there := o.DeepCopyObject().(client.Object)
			if err := api.Get(ctx, client.ObjectKeyFromObject(o), there); err != nil {
				t.Error(err)
			}
			if slices.Contains(there.GetFinalizers(), berth.AgentFinalizer) {
				t.Errorf("%s is deleted with its finalizer", describe(o))
			}
			var options client.DeleteOptions
			options.ApplyOptions(opts)
			if p := options.Preconditions; p == nil || p.ResourceVersion == nil || *p.ResourceVersion != there.GetResourceVersion() {
				t.Errorf("%s is deleted at whatever version", describe(o))
			}
			if isGuarded(o) && there.GetAnnotations()[allowDelete] != "true" {
				t.Errorf("the API server would refuse to delete %s", describe(o))
			}
			deleted = append(deleted, describe(o))
			return api.Delete(ctx, o, opts...)
		},
	})
	if code, said, _ := forget(t, c, api, "", "node1", "--confirm=node1"); code != exitWell {
		t.Fatalf("exit code %d: %s", code, said)
	}
	want := []string{"localsnapshot/snap", "localvolume/pv-data", "localvolume/pv-kept", "pool/fast-node1", "blockdevice/bd-1", "blockdevice/bd-2"}
	if !slices.Equal(deleted, want) {
		t.Errorf("deleted %s, want %s", deleted, want)
	}
}

func TestForgetNodeOfAnAgentThatComesBack(t *testing.T) {
	t.Parallel()
	back := func(ctx context.Context, t *testing.T, api client.Client, name string) {
		t.Helper()
		lv := &berth.LocalVolume{}
		if err := api.Get(ctx, client.ObjectKey{Name: name}, lv); err != nil {
			t.Fatal(err)
		}
		lv.Finalizers = []string{berth.AgentFinalizer}
		lv.Annotations = maps.Clone(lv.Annotations)
		lv.Status.Formatted = true
		if err := api.Update(ctx, lv); err != nil {
			t.Fatal(err)
		}
	}
	for name, funcs := range map[string]interceptor.Funcs{
		"before the finalizer goes": {Patch: func(ctx context.Context, api client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if o.GetName() == "pv-kept" {
				return apierrors.NewConflict(berth.GroupVersion.WithResource("localvolumes").GroupResource(), o.GetName(), nil)
			}
			return api.Patch(ctx, o, patch, opts...)
		}},
		"before the deletion": {Delete: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if o.GetName() == "pv-kept" {
				back(ctx, t, api, o.GetName())
				return apierrors.NewConflict(berth.GroupVersion.WithResource("localvolumes").GroupResource(), o.GetName(), nil)
			}
			return api.Delete(ctx, o, opts...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := lostNode()
			api := interceptor.NewClient(c.build(t), funcs)
			code, said, removed := forget(t, c, api, "", "node1", "--confirm=node1")
			if code != exitTrouble || !strings.Contains(said, "localvolume/pv-kept: it was changed meanwhile") {
				t.Errorf("exit code %d: %s", code, said)
			}
			if slices.Contains(removed, "Pool//fast-node1") || slices.Contains(removed, "LocalVolume//pv-kept") {
				t.Errorf("it went on, and removed %s", removed)
			}
			lv := &berth.LocalVolume{}
			if err := api.Get(t.Context(), client.ObjectKey{Name: "pv-kept"}, lv); err != nil {
				t.Fatal(err)
			}
			if lv.DeletionTimestamp != nil || lv.Annotations[allowDelete] != "" || !slices.Contains(lv.Finalizers, berth.AgentFinalizer) {
				t.Errorf("it was left as %+v", lv.ObjectMeta)
			}
		})
	}
}

// What was begun and cut short is finished by the next run.
func TestForgetNodeAgain(t *testing.T) {
	t.Parallel()
	c := lostNode()
	failing := true
	api := interceptor.NewClient(c.build(t), interceptor.Funcs{
		Delete: func(ctx context.Context, api client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if failing && o.GetName() == "pv-kept" {
				return apierrors.NewForbidden(berth.GroupVersion.WithResource("localvolumes").GroupResource(), o.GetName(), nil)
			}
			return api.Delete(ctx, o, opts...)
		},
	})
	if code, said, removed := forget(t, c, api, "", "node1", "--confirm=node1"); code != exitUnasked || len(removed) == 0 || !strings.Contains(said, "delete localvolume/pv-kept") {
		t.Fatalf("exit code %d, removed %s: %s", code, removed, said)
	}
	failing = false
	if code, said, removed := forget(t, c, api, "", "node1", "--confirm=node1"); code != exitWell || !slices.Contains(removed, "LocalVolume//pv-kept") || !slices.Contains(removed, "Pool//fast-node1") {
		t.Fatalf("exit code %d, removed %s: %s", code, removed, said)
	}
	code, said, removed := forget(t, c, api, "", "node1", "--confirm=node1")
	if code != exitWell || len(removed) > 0 || !strings.Contains(said, "There is nothing of it to forget") {
		t.Errorf("exit code %d, removed %s: %s", code, removed, said)
	}
}
