// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

func TestOrphans(t *testing.T) {
	t.Parallel()
	volume := func(name string) *berth.LocalVolume {
		return &berth.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-lv"}, Spec: berth.LocalVolumeSpec{NodeName: "node1", Mode: berth.ModeLVM, Pool: "fast", SizeBytes: 2 << 30}}
	}
	held := func(c *cluster, kind, name string) *berth.BlockDevice {
		d := get[*berth.BlockDevice](c, "BlockDevice//bd-2")
		d.Spec.ClaimRef = &berth.BlockDeviceClaimRef{Kind: kind, Name: name, UID: "uid-lv"}
		d.Status.ClaimState = berth.ClaimStateClaimed
		return d
	}
	for name, tc := range map[string]struct {
		change func(*cluster)
		// found is each as NODE OBJECT LACKS.
		found []string
		says  []string
	}{
		"nothing": {},
		"a volume that was kept": {
			change: func(c *cluster) { c.add(volume("pvc-kept")) },
			found:  []string{"node1 localvolume/pvc-kept NoPersistentVolume"}, says: []string{"kubectl annotate localvolume pvc-kept berth.dev/allow-delete=true"},
		},
		"a volume that is being made": {
			change: func(c *cluster) {
				lv := volume("pvc-new")
				lv.Spec.ClaimRef = &berth.ClaimReference{Namespace: "default", Name: "new", UID: "uid-new"}
				c.add(lv, claimOf("new", "fast", ""))
			},
		},
		"a volume whose claim has another": {
			change: func(c *cluster) {
				lv := volume("pvc-new")
				lv.Spec.ClaimRef = &berth.ClaimReference{Namespace: "default", Name: "data", UID: "uid-data"}
				c.add(lv)
			},
			found: []string{"node1 localvolume/pvc-new NoPersistentVolume"},
		},
		"a volume that is being deleted": {
			change: func(c *cluster) {
				lv, now := volume("pvc-old"), metav1.Now()
				lv.DeletionTimestamp, lv.Finalizers = &now, []string{berth.AgentFinalizer}
				c.add(lv)
			},
		},
		"a volume whose storage is gone": {
			change: func(c *cluster) {
				get[*berth.LocalVolume](c, "LocalVolume//pv-data").Status.Conditions = condition(berth.LocalVolumeReady, false, berth.ReasonMissing, "logical volume x is gone")
			},
			found: []string{"node1 localvolume/pv-data NoStorage"}, says: []string{"logical volume x is gone"},
		},
		"a PersistentVolume without its volume": {
			change: func(c *cluster) {
				delete(c.objects, "LocalVolume//pv-data")
				pv := get[*corev1.PersistentVolume](c, "PersistentVolume//pv-data")
				pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data"}
				pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: berth.TopologyKeyNode, Operator: corev1.NodeSelectorOpIn, Values: []string{"node1"}}},
				}}}}
			},
			found: []string{"node1 pv/pv-data NoLocalVolume"}, says: []string{"deleting it deletes no data"},
		},
		"a PersistentVolume that the provisioner is about to delete": {
			change: func(c *cluster) {
				delete(c.objects, "LocalVolume//pv-data")
				pv := get[*corev1.PersistentVolume](c, "PersistentVolume//pv-data")
				pv.Spec.PersistentVolumeReclaimPolicy, pv.Status.Phase = corev1.PersistentVolumeReclaimDelete, corev1.VolumeReleased
			},
		},
		"a PersistentVolume of somebody else": {
			change: func(c *cluster) {
				pv := get[*corev1.PersistentVolume](c, "PersistentVolume//pv-data").DeepCopy()
				pv.Name, pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle = "theirs", "other.example.com", "theirs"
				c.add(pv)
			},
		},
		"what an agent has found": {
			change: func(c *cluster) {
				s := &get[*berth.Pool](c, "Pool//fast-node1").Status
				s.LeftOverCount = 40
				s.LeftOvers = []berth.LeftOver{
					{Kind: berth.LeftOverRecord, UID: "u1", Name: "pvc-1"},
					{Kind: berth.LeftOverSnapshot, UID: "u2", Name: "snapshot-2", Of: "pvc-3 (u3)", Location: "berth-fast/snap-u2"},
					{Kind: berth.LeftOverVolume, UID: "u3", Name: "pvc-3", Location: "berth-fast/u3", SizeBytes: 3 << 30},
				}
			},
			found: []string{
				"node1 fast-node1: berth-fast/snap-u2 NoLocalSnapshot", "node1 fast-node1: berth-fast/u3 NoLocalVolume", "node1 fast-node1: others NoLocalVolume", "node1 fast-node1: u1 NoStorage",
			},
			says: []string{"3Gi", "the storage of pvc-3, which no LocalVolume stands for", "37 more", "the snapshot snapshot-2, of volume pvc-3 (u3), which no LocalSnapshot stands for", "an entry of pvc-1 in the node's ledger"},
		},
		"a disk whose volume is gone": {
			change: func(c *cluster) { held(c, "LocalVolume", "pvc-raw") },
			found:  []string{"node1 blockdevice/bd-2 NoLocalVolume"}, says: []string{"/dev/sdc is held by LocalVolume pvc-raw, which is gone"},
		},
		"a disk whose volume is there": {
			change: func(c *cluster) {
				held(c, "LocalVolume", "pv-data")
				get[*berth.LocalVolume](c, "LocalVolume//pv-data").UID = "uid-lv"
			},
		},
		"a disk whose volume was made anew": {
			change: func(c *cluster) {
				held(c, "LocalVolume", "pv-data")
				get[*berth.LocalVolume](c, "LocalVolume//pv-data").UID = "another"
			},
			found: []string{"node1 blockdevice/bd-2 NoLocalVolume"},
		},
		"a disk that is to be wiped": {
			change: func(c *cluster) { held(c, "LocalVolume", "pvc-raw").Status.ClaimState = berth.ClaimStateReleased },
		},
		"a disk whose pool is gone": {
			change: func(c *cluster) { held(c, "Pool", "slow-node1") },
			found:  []string{"node1 blockdevice/bd-2 NoPool"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			if tc.change != nil {
				tc.change(c)
			}
			wanted := exitWell
			if len(tc.found) > 0 {
				wanted = exitTrouble
			}
			code, out, errs := c.run(t, "orphans", "list", "-o", "wide")
			if code != wanted || errs != "" || !strings.HasPrefix(out, "NODE") {
				t.Errorf("exit code %d, want %d: %s%s", code, wanted, out, errs)
			}
			for _, part := range tc.says {
				if !strings.Contains(out, part) {
					t.Errorf("it does not say %q:\n%s", part, out)
				}
			}
			_, out, _ = c.run(t, "orphans", "list", "-o", "json")
			var rows []orphanRow
			if err := json.Unmarshal([]byte(out), &rows); err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, r := range rows {
				found = append(found, r.Node+" "+r.Object+" "+r.Lacks)
			}
			if !slices.Equal(found, tc.found) {
				t.Errorf("found %q, want %q", found, tc.found)
			}
		})
	}
}

func TestOrphansOfASilentNode(t *testing.T) {
	t.Parallel()
	c := newCluster()
	delete(c.objects, "Pod/berth-system/agent-node1")
	code, _, errs := c.run(t, "orphans", "list")
	if code != exitWell || !strings.Contains(errs, "Node node1 has no agent that is ready") || strings.Contains(errs, "node2") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestOrphansOnlyLists(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"orphans"}, {"orphans", "purge"}, {"orphans", "list", "all"}} {
		if code, _, errs := newCluster().run(t, args...); code != exitUsage || !strings.Contains(errs, "orphans list") {
			t.Errorf("%s: exit code %d: %s", args, code, errs)
		}
	}
}

// What is made and deleted while the search reads is no orphan.
func TestOrphansWhileThingsHappen(t *testing.T) {
	t.Parallel()
	c := newCluster()
	held := get[*berth.BlockDevice](c, "BlockDevice//bd-2")
	held.Spec.ClaimRef = &berth.BlockDeviceClaimRef{Kind: "LocalVolume", Name: "pvc-raw", UID: "uid-lv"}
	held.Status.ClaimState = berth.ClaimStateClaimed
	made := get[*berth.LocalVolume](c, "LocalVolume//pv-data")
	delete(c.objects, "LocalVolume//pv-data")
	api := interceptor.NewClient(c.build(t), interceptor.Funcs{
		List: func(ctx context.Context, api client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, last := list.(*corev1.PersistentVolumeList); last {
				d := &berth.BlockDevice{}
				if err := api.Get(ctx, client.ObjectKeyFromObject(held), d); err != nil {
					return err
				}
				d.Status.ClaimState = berth.ClaimStateReleased
				if err := errors.Join(api.Update(ctx, d), api.Create(ctx, made)); err != nil {
					return err
				}
			}
			return api.List(ctx, list, opts...)
		},
	})
	var out, errs strings.Builder
	code := Run(t.Context(), []string{"orphans", "list"}, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
	if code != exitWell {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
}
