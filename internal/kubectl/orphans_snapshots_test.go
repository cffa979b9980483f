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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

func snapshotOf(name string, change ...func(*berth.LocalSnapshot)) *berth.LocalSnapshot {
	s := &berth.LocalSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: berth.LocalSnapshotSpec{NodeName: "node1", Pool: "fast", VolumeName: "pv-data"},
		Status: berth.LocalSnapshotStatus{RestoreSize: gib(1)},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// contentFor is a VolumeSnapshotContent, or one of a group, with those fields.
func contentFor(kind schema.GroupVersionKind, name string, spec, status map[string]any) *unstructured.Unstructured {
	if spec["driver"] == nil {
		spec["driver"] = berth.DriverName
	}
	kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec, "status": status}}
	o.SetGroupVersionKind(kind)
	o.SetName(name)
	return o
}

func TestOrphanedSnapshots(t *testing.T) {
	t.Parallel()
	taken := func(name, handle string) *unstructured.Unstructured {
		return contentFor(snapshotContents, name, map[string]any{"volumeSnapshotRef": map[string]any{"namespace": "shop", "name": "nightly"}}, map[string]any{"snapshotHandle": handle, "restoreSize": int64(2 << 30)})
	}
	inGroup := func(s *berth.LocalSnapshot) { s.Spec.Group = &berth.SnapshotGroup{Name: "groupsnapshot-g", Members: 2} }
	for name, tc := range map[string]struct {
		objects []client.Object
		change  func(*cluster)
		found   []string
		says    []string
	}{
		"both halves":       {objects: []client.Object{snapshotOf("snapshot-1"), taken("content", "snapshot-1")}},
		"one that is named": {objects: []client.Object{snapshotOf("by-hand"), contentFor(snapshotContents, "static", map[string]any{"source": map[string]any{"snapshotHandle": "by-hand"}}, map[string]any{})}},
		"one that is being taken": {objects: []client.Object{
			snapshotOf("snapshot-u1"), contentFor(snapshotContents, "new", map[string]any{"volumeSnapshotRef": map[string]any{"uid": "u1"}, "source": map[string]any{"volumeHandle": "pv-data"}}, map[string]any{}),
		}},
		"one that is not taken yet": {objects: []client.Object{
			contentFor(snapshotContents, "new", map[string]any{"volumeSnapshotRef": map[string]any{"uid": "u1"}, "source": map[string]any{"volumeHandle": "pv-data"}}, map[string]any{}),
		}},
		"a content of somebody else": {objects: []client.Object{contentFor(snapshotContents, "theirs", map[string]any{"driver": "other.example.com"}, map[string]any{"snapshotHandle": "snapshot-1"})}},
		"a content without a snapshot": {
			objects: []client.Object{taken("content", "snapshot-1")}, found: []string{" volumesnapshotcontent/content NoLocalSnapshot"},
			says: []string{"there is no LocalSnapshot snapshot-1", "it is gone, or on a node", "kubectl delete volumesnapshot -n shop nightly, and then kubectl delete volumesnapshotcontent content", "2Gi"},
		},
		"a content whose snapshot is left over": {
			objects: []client.Object{taken("content", "snapshot-1")},
			change: func(c *cluster) {
				get[*berth.Pool](c, "Pool//fast-node1").Status.LeftOvers = []berth.LeftOver{{Kind: berth.LeftOverSnapshot, UID: "u1", Name: "snapshot-1", Location: "berth-fast/snap-u1"}}
			},
			found: []string{" volumesnapshotcontent/content NoLocalSnapshot", "node1 fast-node1: berth-fast/snap-u1 NoLocalSnapshot"},
			says:  []string{"it is left over in Pool fast-node1, as u1"},
		},
		"a content that is being deleted": {objects: []client.Object{func() client.Object {
			c, now := taken("content", "snapshot-1"), metav1.Now()
			c.SetDeletionTimestamp(&now)
			c.SetFinalizers([]string{"snapshot.storage.kubernetes.io/x"})
			return c
		}()}},
		"a snapshot without a content": {
			objects: []client.Object{snapshotOf("snapshot-1")}, found: []string{"node1 localsnapshot/snapshot-1 NoVolumeSnapshotContent"},
			says: []string{"a snapshot of pv-data", "kubectl annotate localsnapshot snapshot-1 berth.dev/allow-delete=true, then kubectl delete localsnapshot snapshot-1", "1Gi"},
		},
		"a snapshot whose storage is gone": {
			objects: []client.Object{taken("content", "snapshot-1"), snapshotOf("snapshot-1", func(s *berth.LocalSnapshot) {
				s.Status.Conditions = condition(berth.LocalSnapshotValid, false, berth.ReasonMissing, "it is gone from pool fast")
			})},
			found: []string{"node1 localsnapshot/snapshot-1 NoStorage"}, says: []string{"a snapshot of pv-data: it is gone from pool fast"},
		},
		"a snapshot that is not taken yet": {
			objects: []client.Object{snapshotOf("snapshot-1", func(s *berth.LocalSnapshot) { s.Status.RestoreSize = nil })}, found: []string{"node1 localsnapshot/snapshot-1 NoVolumeSnapshotContent"},
		},
		"a snapshot that is being deleted": {objects: []client.Object{snapshotOf("snapshot-1", func(s *berth.LocalSnapshot) {
			now := metav1.Now()
			s.DeletionTimestamp, s.Finalizers = &now, []string{berth.AgentFinalizer}
		})}},
		"a group that is being taken": {objects: []client.Object{
			snapshotOf("member", inGroup), contentFor(groupSnapshotContents, "new", map[string]any{"volumeGroupSnapshotRef": map[string]any{"uid": "g"}}, map[string]any{}),
		}},
		"a group that stands": {objects: []client.Object{
			snapshotOf("member", inGroup), contentFor(groupSnapshotContents, "group", map[string]any{}, map[string]any{"volumeGroupSnapshotHandle": "groupsnapshot-g"}),
		}},
		"a group without a content": {
			objects: []client.Object{snapshotOf("member", inGroup), contentFor(groupSnapshotContents, "other", map[string]any{}, map[string]any{"volumeGroupSnapshotHandle": "groupsnapshot-h"})},
			found:   []string{"node1 localsnapshot/member NoVolumeSnapshotContent"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			c.add(tc.objects...)
			if tc.change != nil {
				tc.change(c)
			}
			wanted := exitWell
			if len(tc.found) > 0 {
				wanted = exitTrouble
			}
			code, out, errs := c.run(t, "orphans", "list", "-o", "json")
			var rows []orphanRow
			if err := json.Unmarshal([]byte(out), &rows); err != nil || code != wanted || errs != "" {
				t.Fatalf("exit code %d, want %d; %v: %s%s", code, wanted, err, out, errs)
			}
			var found []string
			for _, r := range rows {
				found = append(found, r.Node+" "+r.Object+" "+r.Lacks)
			}
			if !slices.Equal(found, tc.found) {
				t.Errorf("found %q, want %q", found, tc.found)
			}
			_, out, _ = c.run(t, "orphans", "list", "-o", "wide")
			for _, part := range tc.says {
				if !strings.Contains(out, part) {
					t.Errorf("it does not say %q:\n%s", part, out)
				}
			}
		})
	}
}

// What cannot be read of snapshots does not keep the rest from being shown; what cannot be asked does.
func TestOrphansWithoutSnapshotKinds(t *testing.T) {
	t.Parallel()
	group := schema.GroupResource{Group: snapshotContents.Group, Resource: "volumesnapshotcontents"}
	for name, tc := range map[string]struct {
		err   error
		code  int
		shown bool
		says  string
	}{
		"the kinds are not installed":    {err: &meta.NoKindMatchError{GroupKind: snapshotContents.GroupKind()}, code: exitTrouble, shown: true},
		"they are not served":            {err: apierrors.NewNotFound(group, ""), code: exitTrouble, shown: true},
		"they may not be read":           {err: apierrors.NewForbidden(group, "", nil), code: exitWell, says: "Snapshots without their other half are not shown"},
		"the API server does not answer": {err: errors.New("it is away"), code: exitUnasked, says: "it is away"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster()
			c.add(snapshotOf("snapshot-1"))
			api := interceptor.NewClient(c.build(t), interceptor.Funcs{
				List: func(ctx context.Context, api client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
					if _, is := list.(*unstructured.UnstructuredList); is {
						return tc.err
					}
					return api.List(ctx, list, opts...)
				},
			})
			var out, errs strings.Builder
			code := Run(t.Context(), []string{"orphans", "list"}, Streams{Out: &out, Err: &errs}, func(Options) (Cluster, error) { return Cluster{Client: api}, nil })
			if code != tc.code || strings.Contains(out.String(), "localsnapshot/snapshot-1") != tc.shown || !strings.Contains(errs.String(), tc.says) {
				t.Errorf("exit code %d, want %d: %s%s", code, tc.code, out.String(), errs.String())
			}
		})
	}
}
