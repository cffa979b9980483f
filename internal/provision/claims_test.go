// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
)

// A claim that the library gives back to the scheduler has no selected node any more, and
// gets the one that the scheduler chooses next, whichever of the two the informer sees
// first.
func TestClaimsThatAreGivenBack(t *testing.T) {
	t.Parallel()
	const byUID = "uid"
	inner := toolscache.NewSharedIndexInformer(nil, &corev1.PersistentVolumeClaim{}, 0, toolscache.Indexers{
		byUID: func(obj any) ([]string, error) { return []string{string(obj.(*corev1.PersistentVolumeClaim).UID)}, nil },
	})
	informer := &claimInformer{nudgedInformer: nudgedInformer{SharedIndexInformer: inner}}
	claim := func(version, node string) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "data", UID: "c1", ResourceVersion: version, Annotations: map[string]string{"of": "mine"},
		}}
		if node != "" {
			c.Annotations[annotationSelectedNode] = node
		}
		return c
	}
	seen := func(c *corev1.PersistentVolumeClaim) {
		t.Helper()
		if err := inner.GetIndexer().Update(c); err != nil {
			t.Fatal(err)
		}
	}
	want := func(version, node string) {
		t.Helper()
		found, err := informer.GetIndexer().ByIndex(byUID, "c1")
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		c := found[0].(*corev1.PersistentVolumeClaim)
		if c.ResourceVersion != version || c.Annotations[annotationSelectedNode] != node || c.Annotations["of"] != "mine" {
			t.Fatalf("version %s with %v, want %s on %q", c.ResourceVersion, c.Annotations, version, node)
		}
	}
	giveBack := func(version string) {
		t.Helper()
		if err := informer.GetStore().Update(claim(version, "")); err != nil {
			t.Fatal(err)
		}
	}
	first := claim("5", "node1")
	seen(first)
	want("5", "node1")
	giveBack("5")
	want("5", "")
	if first.Annotations[annotationSelectedNode] != "node1" {
		t.Error("the informer's own object was changed")
	}
	seen(claim("6", ""))
	want("6", "")
	seen(claim("7", "node2"))
	want("7", "node2")
	// The scheduler was faster than the library.
	seen(claim("9", "node1"))
	giveBack("7")
	want("9", "node1")
	want("9", "node1")
	if err := informer.GetStore().Update("nonsense"); err == nil {
		t.Error("what is no claim was taken")
	}
}
