// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

const namespace = "berth-system"

func offer(name, className, nodeName, size string) *storagev1.CSIStorageCapacity {
	quantity := resource.MustParse(size)
	return &storagev1.CSIStorageCapacity{
		ObjectMeta:       metav1.ObjectMeta{Namespace: namespace, Name: name},
		StorageClassName: className, Capacity: &quantity, MaximumVolumeSize: &quantity,
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{berth.TopologyKeyNode: nodeName}},
	}
}

func poolSet(name string, kind berth.PoolKind) *berth.PoolSet {
	return &berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: berth.PoolSetSpec{Kind: kind}}
}

// advise returns the events about the claim, after looking at it twice.
func advise(t *testing.T, objects ...client.Object) []string {
	t.Helper()
	recorder := events.NewFakeRecorder(10)
	a := &provision.Advisor{Reader: provisiontest.New(t, objects...).Backdoor, Namespace: namespace, Recorder: recorder}
	for range 2 {
		if _, err := a.Reconcile(context.Background(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(claim("1Gi"))}); err != nil {
			t.Fatal(err)
		}
	}
	close(recorder.Events)
	var got []string
	for event := range recorder.Events {
		got = append(got, event)
	}
	return got
}

func TestAdvisorSaysEachProblemOnce(t *testing.T) {
	t.Parallel()
	immediate := storagev1.VolumeBindingImmediate
	old := metav1.NewTime(time.Now().Add(-time.Hour))
	tests := map[string]struct {
		claim   func(*corev1.PersistentVolumeClaim)
		class   func(*storagev1.StorageClass)
		objects []client.Object
		says    []string // nil: nothing is said
	}{
		"nothing is wrong":   {objects: []client.Object{poolSet("fast", berth.PoolLVM), offer("a", "fast", "node1", "500Mi"), offer("b", "fast", "node2", "2Gi")}},
		"unknown mode":       {class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"mode": "zfs"} }, says: []string{`unknown mode "zfs"`, "make the class anew"}},
		"misspelt parameter": {class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"mode": "lvm", "pol": "fast"} }, says: []string{`"pol" is not known; did you mean "pool"?`}},
		"missing pool":       {objects: []client.Object{poolSet("fats", berth.PoolLVM), poolSet("archive", berth.PoolLVM), poolSet("home", berth.PoolHostpath)}, says: []string{`PoolSet "fast" of StorageClass "fast" does not exist; did you mean "fats"; create it or name one of: archive, fats`}},
		"no pool at all":     {says: []string{`PoolSet "fast" of StorageClass "fast" does not exist; create it`}},
		"pool of other kind": {objects: []client.Object{poolSet("fast", berth.PoolHostpath)}, says: []string{"is of kind hostpath", "mode lvm"}},
		"RWX":                {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, says: []string{"ReadWriteMany"}},
		"selector":           {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, says: []string{"spec.selector"}},
		"request of 0":       {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests["storage"] = resource.MustParse("0") }, says: []string{"asks for 0"}},
		"larger than any": {
			claim: func(c *corev1.PersistentVolumeClaim) {
				c.Spec.Resources.Requests["storage"] = resource.MustParse("500Gi")
			},
			objects: []client.Object{poolSet("fast", berth.PoolLVM), offer("a", "fast", "node1", "99Gi"), offer("b", "fast", "node2", "20Gi"), offer("c", "other", "node3", "900Gi")},
			says:    []string{`500Gi is larger than the largest free space of StorageClass "fast": 99Gi on node node1`},
		},
		"no space anywhere": {
			claim:   func(c *corev1.PersistentVolumeClaim) { c.CreationTimestamp = old },
			class:   func(c *storagev1.StorageClass) { c.CreationTimestamp = old },
			objects: []client.Object{poolSet("fast", berth.PoolLVM)},
			says:    []string{`no node has free space for StorageClass "fast" (mode lvm, pool fast)`, "kubectl get pools"},
		},
		"no disk is meant": {
			claim: func(c *corev1.PersistentVolumeClaim) { c.CreationTimestamp = old },
			class: func(c *storagev1.StorageClass) {
				c.CreationTimestamp, c.Parameters = old, map[string]string{"mode": "device", "wipe": "cryptoErase"}
			},
			says: []string{`no node has a free disk as StorageClass "fast" wants it (deviceSelector {"cryptoErase":true})`, "kubectl get blockdevices"},
		},
		"not yet published": {
			claim:   func(c *corev1.PersistentVolumeClaim) { c.CreationTimestamp = metav1.Now() },
			objects: []client.Object{poolSet("fast", berth.PoolLVM)},
		},
		"bound":         {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pv" }},
		"being deleted": {claim: func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp, c.Finalizers = &old, []string{"x/y"} }},
		"node is chosen": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{"volume.kubernetes.io/selected-node": "node1"}
		}},
		"other driver":     {class: func(c *storagev1.StorageClass) { c.Provisioner = "other.example.com" }},
		"binds at once":    {class: func(c *storagev1.StorageClass) { c.VolumeBindingMode = &immediate }},
		"class is missing": {class: func(c *storagev1.StorageClass) { c.Name = "else" }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claim, class := claim("1Gi"), class(lvmParams)
			if test.claim != nil {
				test.claim(claim)
			}
			if test.class != nil {
				test.class(class)
			}
			got := advise(t, append(test.objects, claim, class)...)
			if test.says == nil {
				if len(got) != 0 {
					t.Errorf("said %q", got)
				}
				return
			}
			if len(got) != 1 || !strings.HasPrefix(got[0], "Warning CannotProvision ") {
				t.Fatalf("said %q", got)
			}
			for _, part := range test.says {
				if !strings.Contains(got[0], part) {
					t.Errorf("%q does not say %q", got[0], part)
				}
			}
		})
	}
}
