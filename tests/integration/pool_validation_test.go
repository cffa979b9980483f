// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Which disks shall leave a pool may be changed, and what the pool is may not.
func TestPoolChanges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		kind    v1alpha1.PoolKind
		change  func(*v1alpha1.PoolSpec)
		refused string
	}{
		{"a disk shall leave", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0"} }, ""},
		{"twice the same", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0", "bd-0"} }, "spec.evacuate[1]"},
		{"of directories", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.Evacuate = []string{"bd-0"} }, "spec.evacuate is for kind lvm"},
		{"a deleted volume is wanted", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{"pvc-0"} }, ""},
		{"a deleted volume of no name", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{""} }, "spec.takeBack[0]"},
		{"a deleted logical volume", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.TakeBack = []string{"pvc-0"} }, "spec.takeBack is for kind hostpath"},
		{"a left-over is asked to be purged", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", leftUID, "x", "y") }, ""},
		{"a snapshot is asked to be purged", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Snapshot", leftUID, "x", "") }, ""},
		{"a directory is asked to be purged", v1alpha1.PoolHostpath, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Directory", leftUID, "x", "") }, "only a Volume, a Snapshot or a Record can be purged"},
		{"a purge of no identity", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", leftUID, "", "") }, "spec.purge[0].identity"},
		{"a purge of a path", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Purge = purgeOf("Volume", "../x", "x", "") }, "spec.purge[0].uid"},
		{"two purges of one", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) {
			s.Purge = append(purgeOf("Volume", leftUID, "x", ""), purgeOf("Volume", leftUID, "y", "")...)
		}, "spec.purge[1]"},
		{"moves", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.NodeName = "node2" }, "spec.nodeName is immutable"},
		{"another kind", v1alpha1.PoolLVM, func(s *v1alpha1.PoolSpec) { s.Kind = v1alpha1.PoolHostpath }, "spec.kind is immutable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := &v1alpha1.Pool{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "changes-"},
				Spec:       v1alpha1.PoolSpec{NodeName: "node1", PoolSetName: "changes", Kind: test.kind},
			}
			if err := server.admin.Create(t.Context(), pool); err != nil {
				t.Fatal(err)
			}
			test.change(&pool.Spec)
			err := server.admin.Update(t.Context(), pool, client.DryRunAll)
			if test.refused != "" {
				wantRefused(t, err, test.refused)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

const leftUID = "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a12"

func purgeOf(kind v1alpha1.LeftOverKind, uid, identity, confirm string) []v1alpha1.PurgeRequest {
	return []v1alpha1.PurgeRequest{{UID: uid, Kind: kind, Identity: identity, Confirm: confirm}}
}

// Of a disk one volume at a time is asked to be purged, and the request comes to be for nothing else.
func TestPurgeOfADiskIsValidated(t *testing.T) {
	t.Parallel()
	disk := blockDevice("bd-purge-changes", "node1")
	disk.Spec.Purge = purgeOf("Volume", leftUID, "x", "")
	if err := server.admin.Create(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	const other = "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a13"
	for _, test := range []struct {
		purge   []v1alpha1.PurgeRequest
		refused string
	}{
		{purge: purgeOf("Volume", leftUID, "x", "token")},
		{purge: purgeOf("Volume", other, "x", "")},
		{},
		{purgeOf("Volume", leftUID, "y", ""), "a request to purge is for one thing"},
		{purgeOf("Record", other, "x", ""), "of a disk, a Volume can be purged"},
		{append(purgeOf("Volume", leftUID, "x", ""), purgeOf("Volume", other, "x", "")...), "spec.purge"},
	} {
		changed := disk.DeepCopy()
		changed.Spec.Purge = test.purge
		err := server.admin.Update(t.Context(), changed, client.DryRunAll)
		if test.refused != "" {
			wantRefused(t, err, test.refused)
		} else if err != nil {
			t.Errorf("change to %+v: %v", test.purge, err)
		}
	}
}

// A request to purge comes to be for nothing else: it is confirmed, or withdrawn.
func TestPurgeRequestChanges(t *testing.T) {
	t.Parallel()
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "purge-changes"},
		Spec:       v1alpha1.PoolSpec{NodeName: "node1", PoolSetName: "purge", Kind: v1alpha1.PoolLVM, Purge: purgeOf("Volume", leftUID, "x", "")},
	}
	if err := server.admin.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][]v1alpha1.PurgeRequest{purgeOf("Volume", leftUID, "y", ""), purgeOf("Record", leftUID, "x", "token")} {
		changed := pool.DeepCopy()
		changed.Spec.Purge = change
		wantRefused(t, server.admin.Update(t.Context(), changed, client.DryRunAll), "a request to purge is for one thing")
	}
	for _, change := range [][]v1alpha1.PurgeRequest{purgeOf("Volume", leftUID, "x", "token"), nil, append(purgeOf("Volume", leftUID, "x", ""), purgeOf("Record", "6b8c9d3e-3d5f-4f0e-9c3b-0d2f5d1e7a13", "z", "")...)} {
		changed := pool.DeepCopy()
		changed.Spec.Purge = change
		if err := server.admin.Update(t.Context(), changed, client.DryRunAll); err != nil {
			t.Errorf("change to %+v: %v", change, err)
		}
	}
	pool.Status.Purges = []v1alpha1.PurgeStatus{{UID: leftUID, State: "Burnt"}}
	wantRefused(t, server.admin.Status().Update(t.Context(), pool), "status.purges[0].state")
}
