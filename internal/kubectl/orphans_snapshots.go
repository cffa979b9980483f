// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package kubectl

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// The lists of what leads to snapshots, of which there are no Go types here, and which not every
// cluster has.
var (
	snapshotContents      = schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContentList"}
	groupSnapshotContents = schema.GroupVersionKind{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Kind: "VolumeGroupSnapshotContentList"}
)

// ourContents are those of Berth; none, and nil, where the cluster has no such kind.
func (p *plugin) ourContents(ctx context.Context, kind schema.GroupVersionKind) (ours []*object, err error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(kind)
	err = p.list(ctx, list, kind.Kind)
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	for i := range list.Items {
		if text(&list.Items[i], "spec", "driver") == berth.DriverName {
			ours = append(ours, &list.Items[i])
		}
	}
	return ours, nil
}

// searchSnapshots finds VolumeSnapshotContents that lead to nothing, and LocalSnapshots that
// nothing leads to. A content comes before its LocalSnapshot and goes after it.
func (p *plugin) searchSnapshots(ctx context.Context, s *orphanSearch) error {
	snapshots := &berth.LocalSnapshotList{}
	if err := p.list(ctx, snapshots, "LocalSnapshots"); err != nil {
		return err
	}
	s.searchGoneSnapshots(snapshots.Items)
	contents, err := p.ourContents(ctx, snapshotContents)
	var groups []*object
	if err == nil {
		groups, err = p.ourContents(ctx, groupSnapshotContents)
	}
	if apierrors.IsForbidden(err) {
		fmt.Fprintf(p.errs, "Snapshots without their other half are not shown: %v\n", err)
		return nil
	}
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for i := range snapshots.Items {
		there[snapshots.Items[i].Name] = true
	}
	led := map[string]bool{} // what contents lead to, or groups of it
	for _, c := range contents {
		handle := handleOf(c, "snapshotHandle")
		led[handle] = true
		// One that has no handle yet: how the sidecar names what it asks for.
		led["snapshot-"+text(c, "spec", "volumeSnapshotRef", "uid")] = true
		if handle == "" || there[handle] || c.GetDeletionTimestamp() != nil {
			continue
		}
		if err := p.addLostContent(ctx, s, c, handle); err != nil {
			return err
		}
	}
	for _, c := range groups {
		led[handleOf(c, "volumeGroupSnapshotHandle")] = true
		led[text(c, "spec", "source", "groupSnapshotHandles", "volumeGroupSnapshotHandle")] = true
		led["groupsnapshot-"+text(c, "spec", "volumeGroupSnapshotRef", "uid")] = true
	}
	for i := range snapshots.Items {
		l := &snapshots.Items[i]
		if led[l.Name] || l.Spec.Group != nil && led[l.Spec.Group.Name] || l.DeletionTimestamp != nil {
			continue
		}
		row := orphanRow{Node: l.Spec.NodeName, Object: "localsnapshot/" + l.Name, Lacks: noSnapshotContent}
		if size := l.Status.RestoreSize; size != nil {
			row.Bytes = size.Value()
		}
		s.add(row, "a snapshot of %s; it is kept, with its room; to use it, make a VolumeSnapshotContent with this snapshotHandle; to remove it: kubectl annotate localsnapshot %s %s=true, then kubectl delete localsnapshot %s",
			l.Spec.VolumeName, l.Name, allowDelete, l.Name)
	}
	return nil
}

// searchGoneSnapshots finds LocalSnapshots whose storage is gone.
func (s *orphanSearch) searchGoneSnapshots(snapshots []berth.LocalSnapshot) {
	for i := range snapshots {
		l := &snapshots[i]
		if c := meta.FindStatusCondition(l.Status.Conditions, berth.LocalSnapshotValid); c != nil && c.Reason == berth.ReasonMissing && l.DeletionTimestamp == nil {
			s.add(orphanRow{Node: l.Spec.NodeName, Object: "localsnapshot/" + l.Name, Lacks: noStorage}, "a snapshot of %s: %s", l.Spec.VolumeName, c.Message)
		}
	}
}

// handleOf is what an object says that it leads to, in its status or from the beginning.
func handleOf(o *object, field string) string {
	if handle := text(o, "status", field); handle != "" {
		return handle
	}
	return text(o, "spec", "source", field)
}

// addLostContent tells of a VolumeSnapshotContent that leads to nothing, if that is so still.
func (p *plugin) addLostContent(ctx context.Context, s *orphanSearch, c *object, handle string) error {
	err := p.client.Get(ctx, client.ObjectKey{Name: handle}, &berth.LocalSnapshot{})
	switch {
	case err == nil:
		return nil
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("read LocalSnapshot %s: %w", handle, err)
	}
	size, _, _ := unstructured.NestedInt64(c.Object, "status", "restoreSize")
	where := "it is gone, or on a node that does not tell of it"
	for i := range s.pools.Items {
		for _, l := range s.pools.Items[i].Status.LeftOvers {
			if l.Kind == berth.LeftOverSnapshot && l.Name == handle {
				where = fmt.Sprintf("it is left over in Pool %s, as %s", s.pools.Items[i].Name, l.UID)
			}
		}
	}
	remove := "kubectl delete volumesnapshotcontent " + c.GetName()
	if name := text(c, "spec", "volumeSnapshotRef", "name"); name != "" {
		remove = fmt.Sprintf("kubectl delete volumesnapshot -n %s %s, and then %s if it is there still", text(c, "spec", "volumeSnapshotRef", "namespace"), name, remove)
	}
	s.add(orphanRow{Object: "volumesnapshotcontent/" + c.GetName(), Lacks: noLocalSnapshot, Bytes: size},
		"nothing is restored from it: there is no LocalSnapshot %s, and the snapshot itself: %s; only a restore of etcd brings the LocalSnapshot back; otherwise: %s", handle, where, remove)
	return nil
}
