// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
	berthcsi "github.com/berth-dev/berth/internal/csi"
	"github.com/berth-dev/berth/internal/provision"
	"github.com/berth-dev/berth/internal/provision/provisiontest"
)

// groupWorld is a cluster with volumes on two nodes, and a node that takes groups.
type groupWorld struct {
	t       *testing.T
	cluster *provisiontest.Cluster
	groups  *berthcsi.GroupController
	control *berthcsi.Controller
	volumes map[string]string // IDs

	mu sync.Mutex
	// answer is what the node says to a LocalSnapshot: a reason of refusal, or "" to take it.
	answer string
	// apart: it takes each of a group by itself.
	apart bool
	taken int
}

func newGroupWorld(t *testing.T) *groupWorld {
	t.Helper()
	_, c, _ := newController(t)
	taker := &provision.Snapshots{Live: c.Client}
	w := &groupWorld{
		t: t, cluster: c, volumes: map[string]string{},
		groups:  berthcsi.NewGroupController(c.Volumes, taker),
		control: berthcsi.NewController(c.Volumes, provision.Offers{Live: c.Client}, taker, nil),
	}
	for name, node := range map[string]string{"a": "node1", "b": "node1", "far": "node2"} {
		made, err := w.control.CreateVolume(timeout(t), create(name, on(node)))
		if err != nil {
			t.Fatal(err)
		}
		w.volumes[name] = made.GetVolume().GetVolumeId()
	}
	w.followSnapshots()
	return w
}

// followSnapshots is the part of a node's agent that these tests need.
func (w *groupWorld) followSnapshots() {
	watcher, err := w.cluster.Backdoor.Watch(context.Background(), &berth.LocalSnapshotList{})
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range watcher.ResultChan() {
			s, ok := event.Object.(*berth.LocalSnapshot)
			if ok && event.Type != watch.Deleted {
				w.reconcile(s.DeepCopy())
			}
		}
	}()
	w.t.Cleanup(func() {
		watcher.Stop()
		<-done
	})
}

func (w *groupWorld) reconcile(s *berth.LocalSnapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, api := context.Background(), w.cluster.Backdoor
	if s.DeletionTimestamp != nil {
		s.Finalizers = nil
		if err := api.Update(ctx, s); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			w.t.Error(err)
		}
		return
	}
	if len(s.Status.Conditions) > 0 {
		return
	}
	at := metav1.Unix(1_800_000_000, 0)
	if w.apart {
		at = metav1.Unix(1_800_000_000+int64(w.taken), 0)
	}
	condition := metav1.Condition{Type: berth.LocalSnapshotReady, Status: metav1.ConditionTrue, Reason: berth.ReasonTaken, LastTransitionTime: at}
	if w.answer != "" {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, w.answer, "refused"
	} else {
		w.taken++
		s.Status.CreationTime, s.Status.RestoreSize = &at, resource.NewQuantity(gib, resource.BinarySI)
	}
	s.Status.Conditions = []metav1.Condition{condition}
	if err := api.Status().Update(ctx, s); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		w.t.Error(err)
	}
}

func (w *groupWorld) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *groupWorld) ask(name string, volumes ...string) (*csi.VolumeGroupSnapshot, error) {
	req := &csi.CreateVolumeGroupSnapshotRequest{Name: name}
	for _, v := range volumes {
		id, known := w.volumes[v]
		if !known {
			id = v
		}
		req.SourceVolumeIds = append(req.SourceVolumeIds, id)
	}
	response, err := w.groups.CreateVolumeGroupSnapshot(timeout(w.t), req)
	return response.GetGroupSnapshot(), err
}

func (w *groupWorld) left() (names []string) {
	w.t.Helper()
	list := &berth.LocalSnapshotList{}
	if err := w.cluster.Client.List(timeout(w.t), list); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list.Items {
		names = append(names, s.Name)
	}
	return names
}

func TestGroupSnapshot(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	group, err := w.ask("group-1", "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	if !group.GetReadyToUse() || group.GetGroupSnapshotId() != "group-1" || len(group.GetSnapshots()) != 2 {
		t.Fatalf("the group is %v", group)
	}
	var ids []string
	for _, s := range group.GetSnapshots() {
		ids = append(ids, s.GetSnapshotId())
		if s.GetGroupSnapshotId() != "group-1" || !s.GetReadyToUse() || s.GetSizeBytes() != gib || !s.GetCreationTime().AsTime().Equal(group.GetCreationTime().AsTime()) {
			t.Errorf("a member is %v", s)
		}
	}
	again, err := w.ask("group-1", "b", "a")
	if err != nil || again.String() != group.String() {
		t.Errorf("again, in another order: %v, %v", again, err)
	}
	if _, err := w.ask("group-1", "a"); code(err) != codes.AlreadyExists {
		t.Errorf("of other volumes: %v", err)
	}
	get := func(ids ...string) (*csi.GetVolumeGroupSnapshotResponse, error) {
		return w.groups.GetVolumeGroupSnapshot(timeout(t), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "group-1", SnapshotIds: ids})
	}
	if found, err := get(ids...); err != nil || found.GetGroupSnapshot().String() != group.String() {
		t.Errorf("found: %v, %v", found, err)
	}
	if _, err := get(ids[0], "other"); code(err) != codes.InvalidArgument {
		t.Errorf("found by other members: %v", err)
	}
	if _, err := w.control.DeleteSnapshot(timeout(t), &csi.DeleteSnapshotRequest{SnapshotId: ids[0]}); code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "group-1") {
		t.Errorf("a member alone is deleted: %v", err)
	}
	if _, err := w.control.CreateSnapshot(timeout(t), &csi.CreateSnapshotRequest{Name: ids[0], SourceVolumeId: w.volumes["a"]}); code(err) != codes.AlreadyExists {
		t.Errorf("a snapshot of a member's name: %v", err)
	}
	listed, err := w.control.ListSnapshots(timeout(t), &csi.ListSnapshotsRequest{SnapshotId: ids[1]})
	if err != nil || len(listed.GetEntries()) != 1 || listed.GetEntries()[0].GetSnapshot().GetGroupSnapshotId() != "group-1" {
		t.Errorf("listed: %v, %v", listed, err)
	}
	drop := func(ids ...string) error {
		_, err := w.groups.DeleteVolumeGroupSnapshot(timeout(t), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "group-1", SnapshotIds: ids})
		return err
	}
	if err := drop(ids[0]); code(err) != codes.InvalidArgument || len(w.left()) != 2 {
		t.Errorf("deleted by one of its members: %v; left are %q", err, w.left())
	}
	for range 2 {
		if err := drop(ids...); err != nil || len(w.left()) != 0 {
			t.Errorf("deleted: %v; left are %q", err, w.left())
		}
	}
	if _, err := get(ids...); code(err) != codes.NotFound {
		t.Errorf("found when it is gone: %v", err)
	}
}

// What cannot be taken together is refused with what is where, and nothing is left of it.
func TestGroupSnapshotRefused(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	for name, tc := range map[string]struct {
		volumes []string
		answer  string
		want    codes.Code
		says    string
	}{
		"no volumes":          {nil, "", codes.InvalidArgument, "source_volume_ids"},
		"on two nodes":        {[]string{"a", "far"}, "", codes.FailedPrecondition, "on node node1 and volume far on node node2"},
		"one twice":           {[]string{"a", "a"}, "", codes.InvalidArgument, "twice"},
		"one is not there":    {[]string{"a", "pvc-9"}, "", codes.NotFound, "pvc-9"},
		"what has no name":    {[]string{"a", "UPPER"}, "", codes.NotFound, "UPPER"},
		"no room":             {[]string{"a", "b"}, berth.ReasonNoSpace, codes.ResourceExhausted, "refused"},
		"volumes not of thin": {[]string{"a", "b"}, berth.ReasonInvalid, codes.InvalidArgument, "refused"},
	} {
		w.set(func() { w.answer = tc.answer })
		group, err := w.ask("group-2", tc.volumes...)
		if code(err) != tc.want || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, %v", name, group, err)
		}
		if left := w.left(); len(left) > 0 {
			t.Errorf("%s: left are %q", name, left)
		}
	}
	w.set(func() { w.answer = "" })
	if group, err := w.ask("group-2", "a", "b"); err != nil || !group.GetReadyToUse() {
		t.Errorf("then: %v, %v", group, err)
	}
}

// An agent that knows no groups takes each by itself: then it is no group.
func TestGroupSnapshotTakenApart(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	w.set(func() { w.apart = true })
	for range 2 {
		if group, err := w.ask("group-3", "a", "b"); code(err) != codes.FailedPrecondition {
			t.Errorf("%v, %v", group, err)
		}
	}
}

// A volume of another pool on the same node is told apart too.
func TestGroupSnapshotOfTwoPools(t *testing.T) {
	t.Parallel()
	w := newGroupWorld(t)
	lv := &berth.LocalVolume{}
	if err := w.cluster.Client.Get(timeout(t), client.ObjectKey{Name: w.volumes["b"]}, lv); err != nil {
		t.Fatal(err)
	}
	other := lv.DeepCopy()
	other.ObjectMeta = metav1.ObjectMeta{Name: "slow-volume", UID: "0f"}
	other.Spec.Pool = "slow"
	taker := &provision.Snapshots{Live: w.cluster.Client}
	_, err := taker.EnsureGroup(timeout(t), "group-4", []*berth.LocalVolume{lv, other})
	if code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "in pool slow") {
		t.Errorf("%v", err)
	}
	if _, err := taker.EnsureGroup(timeout(t), "group-4", slices.Repeat([]*berth.LocalVolume{lv}, 65)); code(err) != codes.InvalidArgument {
		t.Errorf("65 volumes: %v", err)
	}
}

// halfDeaf does not say what a snapshot is, and deletes it all the same.
type halfDeaf struct {
	berthcsi.Snapshots
	deleted []string
}

func (h *halfDeaf) Find(context.Context, string) (*berth.LocalSnapshot, error) {
	return nil, errors.New("the API server does not answer")
}

func (h *halfDeaf) Delete(_ context.Context, name string) error {
	h.deleted = append(h.deleted, name)
	return nil
}

// A snapshot that may be of a group is not deleted without it.
func TestDeleteSnapshotOfWhichNothingIsKnown(t *testing.T) {
	t.Parallel()
	deaf := &halfDeaf{}
	controller := berthcsi.NewController(nil, nil, deaf, slog.New(slog.DiscardHandler))
	_, err := controller.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: "snapshot-1"})
	if status.Code(berthcsi.ToStatus(err)) != codes.Unavailable || len(deaf.deleted) != 0 {
		t.Errorf("got %v, deleted %q", err, deaf.deleted)
	}
}
